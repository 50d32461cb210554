"""The fields of requests. An unknown field is refused, never ignored, unless its value means that
it is not used (EMPTY, UNUSED). null means the same as a missing field.

Names and ranges are OpenAI's. Further fields, named as in vLLM, are top_k, min_p,
repetition_penalty, ignore_eos, truncate_prompt_tokens and return_token_ids; OpenAI's Python client
sends them as `extra_body`.
"""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

MOST_STOPS, LONGEST_STOP = 16, 256  # OpenAI allows 4 stops; evaluation harnesses send more
MOST_BIASES = 1024
MOST_TOKENS = 100_000

Int = Annotated[int, Field(ge=-(2**63), lt=2**63)]


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: object) -> bool:
    """Whether a value is a string that UTF-8 can encode; JSON can also contain half an emoji."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_text(value: object) -> str:
    if not is_text(value):
        raise ValueError("must be a string of whole characters")
    return value


def check_prompt(value: object) -> list[str] | list[list[int]]:
    """The prompts of a request: strings, or lists of token ids."""
    if is_text(value):
        return [value]
    if isinstance(value, list) and value:
        if all(is_text(v) for v in value):
            return value
        if all(is_int(v) for v in value):
            return [value]
        if all(isinstance(v, list) and v and all(is_int(t) for t in v) for v in value):
            return value
    raise ValueError(
        "prompt must be a string, a list of strings, a list of token ids, or a list of such lists; "
        "no list may be empty"
    )


def check_tokens(value: object) -> list[int]:
    """Token ids of any vocabulary."""
    if not isinstance(value, list) or len(value) > MOST_TOKENS:
        raise ValueError(f"tokens must be a list of up to {MOST_TOKENS:,} token ids")
    for i, token in enumerate(value):
        if not is_int(token) or not 0 <= token < 2**31:
            raise ValueError(f"tokens[{i}] is not a token id")
    return value


def check_stop(value: object) -> list[str]:
    """Up to MOST_STOPS strings."""
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(map(is_text, stops)):
        raise ValueError(f"stop must be a string or a list of up to {MOST_STOPS} strings")
    if any(not 1 <= len(stop) <= LONGEST_STOP for stop in stops):
        raise ValueError(f"a stop string must have 1 to {LONGEST_STOP} characters")
    return stops


def check_logit_bias(value: object) -> dict[int, float]:
    """{"50256": -100}: from token ids, which JSON writes as strings, to biases of their logits."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MOST_BIASES:
        raise ValueError(f"logit_bias must be an object of up to {MOST_BIASES} token ids")
    biases = {}
    for token, bias in value.items():
        # isdecimal is also true for digits of other scripts
        if not (token.isascii() and token.isdecimal() and len(token) < 10):
            raise ValueError(f"logit_bias: {token[:20]!a} is not a token id")
        if not isinstance(bias, int | float) or isinstance(bias, bool) or not -100 <= bias <= 100:
            raise ValueError(f"logit_bias of token {token} must be a number from -100 to 100")
        biases[int(token)] = float(bias)
    return biases


def no_false(value: object) -> object:
    """false means null in a field for a number."""
    return None if value is False else value


def field_of(check: Any, schema: dict) -> Any:
    return Annotated[Any, PlainValidator(check), WithJsonSchema(schema)]


IDS = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
Prompt = field_of(
    check_prompt,
    {
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}, "minItems": 1},
            IDS,
            {"type": "array", "items": IDS, "minItems": 1},
        ]
    },
)
STOP = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}
Stop = field_of(
    check_stop,
    {"anyOf": [STOP, {"type": "array", "items": STOP, "maxItems": MOST_STOPS}, {"type": "null"}]},
)
LogitBias = field_of(
    check_logit_bias,
    {
        "anyOf": [
            {
                "type": "object",
                "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
                "propertyNames": {"pattern": "^[0-9]{1,9}$"},
                "maxProperties": MOST_BIASES,
            },
            {"type": "null"},
        ]
    },
)
Text = field_of(check_text, {"type": "string"})

EMPTY: tuple[Any, ...] = (None, "", [], {})  # values that have no effect in any field

# Fields of the APIs of OpenAI, vLLM and llama.cpp that are not supported, with their values that
# have no effect besides EMPTY. None: no value has an effect on an answer.
UNUSED: dict[str, Collection[Any] | None] = {
    # of a request
    "best_of": (1,),  # also the value of n
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": None,
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "prediction": None,
    "reasoning_effort": ("none",),
    "include_reasoning": None,
    "verbosity": ("medium",),
    "store": None,
    "metadata": None,
    "service_tier": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
    "prompt_cache_options": None,
    "prompt_cache_retention": None,
    "cache_salt": None,
    "request_id": None,
    "priority": (0,),
    "use_beam_search": (False,),
    "early_stopping": (False,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "top_logprobs": (0,),  # of a completion
    "detokenize": (True,),
    "truncation_side": ("left",),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "add_special_tokens": None,  # there are none to add
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "return_tokens_as_token_ids": (False,),
    "return_token_strs": (False,),
    "echo": (False,),  # of a chat
    # llama.cpp's, of a request
    "cache_prompt": None,
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "id_slot": (-1,),
    "min_keep": (0,),
    "mirostat": (0,),
    "n_probs": (0,),
    "post_sampling_probs": (False,),
    "repeat_penalty": (1,),
    "return_progress": (False,),
    "sse_ping_interval": (-1,),
    "timings_per_token": (False,),
    "typical_p": (1,),
    "xtc_probability": (0,),
    # of a message, or of a part of one
    "cache_control": None,
    "prompt_cache_breakpoint": None,
}


# Why some of them are not, for the message of the error
WITHOUT_TOOLS = "the models here call no tools"
REASONS = {
    "tools": WITHOUT_TOOLS,
    "tool_choice": WITHOUT_TOOLS,
    "functions": WITHOUT_TOOLS,
    "function_call": WITHOUT_TOOLS,
    "tool_calls": WITHOUT_TOOLS,  # of a message
    "tool_call_id": WITHOUT_TOOLS,
    "modalities": "answers are texts",
    "audio": "answers are texts",
    "reasoning_effort": "the models here do not reason",
}

ASKING = ("web_search_options",)  # fields in which even an empty object has an effect


def is_unused(name: str, value: object) -> bool:
    """Whether a field that is not supported has a value without effect.

    >>> is_unused("tools", []), is_unused("best_of", 2), is_unused("best_of", True)
    (True, False, False)
    """
    if value in EMPTY:
        return value is None or name not in ASKING
    nothing = UNUSED.get(name, ())
    return nothing is None or any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in nothing
    )


TokenIds = field_of(check_tokens, {"type": "array", "items": {"type": "integer"}})


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def leave_out_unused(cls, body: object) -> object:
        if not isinstance(body, dict):
            return body
        known = {k: v for k, v in body.items() if k in cls.model_fields}
        for name, value in body.items():
            if name in known or is_unused(name, value):
                continue
            if name == "best_of" and type(value) is int and value == body.get("n"):
                continue  # all answers that are written are returned
            return {**known, name: value}  # only the first mistake: there may be thousands
        return known


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: every chunk has the counts so far
    include_obfuscation: bool | None = None  # padding against eavesdroppers: accepted, no effect


def only_text(instead: str) -> BeforeValidator:
    """Refuses all but "text". instead: what a client can do."""

    def check(value: object) -> object:
        if value != "text":
            raise ValueError(f"must be 'text': {instead}")
        return value

    return BeforeValidator(check)


class ResponseFormat(Body):
    type: Annotated[
        Literal["text"],
        only_text("no form can be forced on an answer, so ask for JSON in the prompt and check it"),
    ] = "text"


class Sampling(Body):
    """The common fields of a completion and a chat."""

    model: Text
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=1024)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop = []
    seed: Int | None = None
    logit_bias: LogitBias = {}
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    user: Text | None = None
    response_format: ResponseFormat | None = None
    # beyond OpenAI's
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None  # 0 and -1: all
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    ignore_eos: bool | None = None  # continue after the end-of-text token
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    return_token_ids: bool | None = None


class CompletionRequest(Sampling):
    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[Annotated[int, Field(ge=0, le=5)] | None, BeforeValidator(no_false)] = None
    echo: bool | None = None


class Part(Body):
    type: Annotated[Literal["text"], only_text("the models here read nothing else")]
    text: Text


class Message(Body):
    role: Text
    content: Annotated[list[Part], Field(validate_default=True), FailFast()] = None
    name: Text | None = None  # accepted without effect: templates have no place for it

    @field_validator("content", mode="before")
    @classmethod
    def as_parts(cls, value: object, info: ValidationInfo) -> object:
        """A string becomes a list of one part. An answer that is sent back may have no content."""
        if isinstance(value, str):
            return [{"type": "text", "text": value}]
        if value is None and info.data.get("role") == "assistant":
            return []
        if isinstance(value, list):
            return value
        raise ValueError("must be a string, or a list of parts of the type text")

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content)


class ChatRequest(Sampling):
    messages: Annotated[list[Message], Field(min_length=1, max_length=1024), FailFast()]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class TokenizeRequest(Body):
    """`text` is for the page. `prompt` is vLLM's: the answer then has only ids."""

    text: Text | None = None
    prompt: Text | None = None
    model: Text | None = None
    tokenizer: Text | None = None


class DetokenizeRequest(Body):
    tokens: TokenIds
    model: Text | None = None
    tokenizer: Text | None = None


class InspectRequest(Body):
    model: Text
    prompt: Text
