"""What a request may say. A field that is not here is refused, never ignored; null is as if absent.

Names and ranges are OpenAI's; top_k, min_p, repetition_penalty and return_token_ids are further
ones (`extra_body` in its Python client).
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

MOST_STOPS, LONGEST_STOP = 4, 256
MOST_BIASES = 1024

Int = Annotated[int, Field(ge=-(2**63), lt=2**63)]


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: object) -> bool:
    """A string that UTF-8 can hold: JSON can also write halves of emoji."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


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


def check_stop(value: object) -> list[str]:
    """Up to four strings."""
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(map(is_text, stops)):
        raise ValueError(f"stop must be a string or a list of up to {MOST_STOPS} strings")
    if any(not 1 <= len(stop) <= LONGEST_STOP for stop in stops):
        raise ValueError(f"a stop string must have 1 to {LONGEST_STOP} characters")
    return stops


def check_logit_bias(value: object) -> dict[int, float]:
    """{"50256": -100}: token ids, in JSON written as strings, to what is added to their logits."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MOST_BIASES:
        raise ValueError(f"logit_bias must be an object of up to {MOST_BIASES} token ids")
    biases = {}
    for token, bias in value.items():
        # isdecimal is true of other scripts' digits too
        if not (token.isascii() and token.isdecimal() and len(token) < 10):
            raise ValueError(f"logit_bias: {token[:20]!a} is not a token id")
        if not isinstance(bias, int | float) or isinstance(bias, bool) or not -100 <= bias <= 100:
            raise ValueError(f"logit_bias of token {token} must be a number from -100 to 100")
        biases[int(token)] = float(bias)
    return biases


def check_content(value: object) -> str:
    """A message's text: a string, or parts that are all text."""
    if is_text(value):
        return value
    if isinstance(value, list) and all(
        isinstance(part, dict)
        and set(part) == {"type", "text"}
        and part["type"] == "text"
        and is_text(part["text"])
        for part in value
    ):
        return "".join(part["text"] for part in value)
    raise ValueError("content must be a string, or a list of parts of the type text")


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
Content = field_of(check_content, {"anyOf": [{"type": "string"}, {"type": "array"}]})
Text = field_of(check_text, {"type": "string"})


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding against eavesdroppers: accepted, not done


class Sampling(Body):
    """What a completion and a chat have in common."""

    model: Text
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=1024)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop = []
    seed: Int | None = None
    logit_bias: LogitBias = {}
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    user: Text | None = None
    # beyond OpenAI's
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    return_token_ids: bool | None = None


class CompletionRequest(Sampling):
    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None


class Message(Body):
    role: Text
    content: Content
    name: Text | None = None  # accepted, as templates have no place for it


class ChatRequest(Sampling):
    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class TokenizeRequest(Body):
    text: Text
    model: Text | None = None
    tokenizer: Text | None = None


class DetokenizeRequest(Body):
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=100_000)]
    model: Text | None = None
    tokenizer: Text | None = None


class InspectRequest(Body):
    model: Text
    prompt: Text
