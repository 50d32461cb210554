"""From a request to a plan: the tokens of its prompts, and the settings for sampling."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bonsai.engine import SamplingParams
from bonsai.serving.api.faults import ApiError, bad_request
from bonsai.serving.api.schemas import ChatRequest, CompletionRequest, Sampling
from bonsai.serving.background import in_background
from bonsai.serving.registry import Served
from bonsai.system.errors import UserError
from bonsai.tokenizers.chat import ChatTemplate

UNSEEDED = (None, -1)  # -1: as in vLLM and llama.cpp
INLINE = 2000  # characters that are encoded in the event loop; longer texts in a thread


@dataclass(frozen=True)
class Limits:
    """Limits for one request."""

    rows: int = 128  # prompts x n
    tokens: int = 4096  # max_tokens
    # whether to cut prompts that are longer than the context if the request does not say
    truncate: bool = False


@dataclass
class Plan:
    """A checked request: the engine's prompts and settings, and the form of the answer."""

    served: Served
    prompts: list[list[int]]
    params: SamplingParams
    n: int
    stops: Sequence[str]
    echo: bool = False
    want_ids: bool = False
    seeded: bool = True  # whether the request names a seed
    hidden: Sequence[int] = ()  # for each prompt, how many of its tokens the client did not send

    @property
    def rows(self) -> int:
        return len(self.prompts) * self.n

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


# ---- from a request to a plan ----


async def plan_completion(served: Served, body: CompletionRequest, limits: Limits) -> Plan:
    n = 1 if body.n is None else body.n
    check_rows(len(body.prompt) * n, limits)
    max_tokens = 16 if body.max_tokens is None else body.max_tokens
    echo = bool(body.echo)
    params = sampling_params(
        served, body, max_tokens, limits, body.logprobs, echo and body.logprobs is not None
    )
    cut = Cut.of(served, body, max_tokens, limits)
    if sum(len(p) for p in body.prompt if isinstance(p, str)) <= INLINE:
        prompts = encode_all(served, body.prompt, cut)
    else:
        prompts = await in_background(encode_all, served, body.prompt, cut)
    hidden = [0 if ids else len(served.start) for ids in prompts]
    prompts = [cut(ids) or served.start for ids in prompts]  # "": the answer begins a text
    for i, ids in enumerate(prompts):
        check_prompt(served, ids, place(prompts, i))
    ids = bool(body.return_token_ids)
    seeded = body.seed not in UNSEEDED
    return Plan(served, prompts, params, n, body.stop, echo, ids, seeded, hidden)


async def plan_chat(served: Served, body: ChatRequest, limits: Limits) -> Plan:
    template = served.chat
    if template is None:
        raise bad_request(
            f"the model {served.name} has no chat template: to continue texts, use /v1/completions",
            "model",
            "no_chat_template",
        )
    n = 1 if body.n is None else body.n
    check_rows(n, limits)
    if body.top_logprobs and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    max_tokens = min(served.context, limits.tokens) if asked is None else asked
    cut = Cut.of(served, body, max_tokens, limits)
    messages = [(template.role_for(m.role), m.text) for m in body.messages]
    messages = cut.messages(messages)
    try:
        prompt = await in_background(template.encode, served.tokenizer, messages)
    except UserError as e:
        left_out = len(body.messages) - len(messages)
        raise bad_request(str(e), wrong_message(served, template, messages, left_out)) from None
    prompt = cut(prompt)
    stops = [*body.stop, *([template.stop] if template.stop else [])]
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = sampling_params(served, body, max_tokens, limits, logprobs, False)
    if not body.ignore_eos:
        params = replace(params, stop_tokens=tuple({*params.stop_tokens, *served.ends}))
    check_prompt(served, prompt, "messages")
    return Plan(served, [prompt], params, n, stops, want_ids=bool(body.return_token_ids))


def wrong_message(
    served: Served, template: ChatTemplate, messages: list[tuple[str, str]], first: int
) -> str:
    """The field of the first message with an unknown role or a text that cannot be encoded."""
    for i, (role, text) in enumerate(messages, first):
        if role not in template.roles:
            return f"messages[{i}].role"
        try:
            served.tokenizer.encode(text)
        except UserError:
            return f"messages[{i}].content"
    return "messages"


def encode_all(served: Served, prompts: Sequence[str | list[int]], cut: "Cut") -> list[list[int]]:
    """The tokens of prompts; "<|endoftext|>" in a text becomes that token."""
    encoded = []
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            text = cut.text(prompt, place(prompts, i))
            try:
                prompt = served.tokenizer.encode(text, allow_special=True)
            except UserError as e:  # a character that the vocabulary does not have
                raise bad_request(str(e), place(prompts, i)) from None
        encoded.append(prompt)
    return encoded


def place(prompts: Sequence, i: int) -> str:
    """The name of prompt i in error messages."""
    return f"prompt[{i}]" if len(prompts) > 1 else "prompt"


@dataclass(frozen=True)
class Cut:
    """Cuts the beginning of prompts that are too long."""

    served: Served
    most: int | None  # the most tokens; None: nothing is cut, too long prompts are refused
    keep: int  # tokens that a longer prompt keeps

    @classmethod
    def of(cls, served: Served, body: Sampling, max_tokens: int, limits: Limits) -> "Cut":
        asked = body.truncate_prompt_tokens
        if asked is None and limits.truncate:
            asked = -1
        if asked is None:
            return cls(served, None, 0)
        if asked > served.context or asked == 0:
            raise bad_request(
                f"truncate_prompt_tokens={asked} must be from 1 to the context of {served.context} "
                "tokens, or -1: as many as leave room for the answer",
                "truncate_prompt_tokens",
            )
        if asked > 0:
            return cls(served, asked, asked)
        # room for the answer, but at least half the context for the prompt
        return cls(
            served, served.context, max(served.context - max_tokens, (served.context + 1) // 2)
        )

    def __call__(self, ids: list[int]) -> list[int]:
        """The last tokens of a prompt that is too long, or all of it."""
        return ids if self.most is None or len(ids) <= self.most else ids[-self.keep :]

    @property
    def characters(self) -> int:
        """The most characters that fit into the context: longer texts need not be encoded."""
        return self.served.context * self.served.longest

    def text(self, text: str, param: str) -> str:
        """The end of a text, as much as can fit. Raises ApiError if it is too long."""
        if len(text) <= self.characters:
            return text
        if self.most is None:
            raise too_long(self.served, param=param)
        return text[-self.characters - self.served.longest :]

    def messages(self, messages: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The last messages of a chat, as much of them as can fit. Raises ApiError as `text`."""
        if sum(len(text) for _, text in messages) <= self.characters:
            return messages
        if self.most is None:
            raise too_long(self.served, param="messages")
        left, kept = self.characters + self.served.longest, []
        for role, text in reversed(messages):
            if left > 0:
                kept.append((role, text[-left:]))
            left -= len(text)
        return kept[::-1]


def sampling_params(
    served: Served,
    body: Sampling,
    max_tokens: int,
    limits: Limits,
    logprobs: int | None,
    prompt_logprobs: bool,
) -> SamplingParams:
    def given(value, default):
        return default if value is None else value  # 0 is a value

    if max_tokens > limits.tokens:
        raise bad_request(f"max_tokens={max_tokens} is above {limits.tokens}", "max_tokens")
    if not body.stream and any(dict(body.stream_options or ()).values()):
        raise bad_request("stream_options needs stream: true", "stream_options")
    if outside := [token for token in body.logit_bias if token >= served.vocab_size]:
        raise bad_request(
            f"logit_bias: token {outside[0]} is outside the vocabulary of {served.vocab_size}",
            "logit_bias",
        )
    eot = served.tokenizer.eot
    coldest = body.top_p == 0  # nothing but the likeliest token, as with temperature 0
    try:
        return SamplingParams(
            max_new_tokens=max_tokens,
            temperature=0.0 if coldest else given(body.temperature, 1.0),
            top_k=max(0, given(body.top_k, 0)),
            top_p=1.0 if coldest else given(body.top_p, 1.0),
            min_p=given(body.min_p, 0.0),
            repetition_penalty=given(body.repetition_penalty, 1.0),
            presence_penalty=given(body.presence_penalty, 0.0),
            frequency_penalty=given(body.frequency_penalty, 0.0),
            logit_bias=body.logit_bias,
            seed=random.getrandbits(62) if body.seed in UNSEEDED else body.seed,
            stop_tokens=() if eot is None or body.ignore_eos else (eot,),
            vocab_limit=served.vocab_size,
            logprobs=None if logprobs is None else min(logprobs, served.vocab_size),
            prompt_logprobs=prompt_logprobs,
        )
    except UserError as e:
        raise bad_request(str(e)) from None


def check_rows(rows: int, limits: Limits) -> None:
    if rows > limits.rows:
        raise bad_request(f"prompts x n = {rows} is above {limits.rows}: send fewer at once", "n")


def check_prompt(served: Served, prompt: list[int], param: str) -> None:
    if len(prompt) > served.context:
        raise too_long(served, len(prompt), param)
    if not prompt:
        raise bad_request("the prompt is empty", param)
    if min(prompt) < 0 or max(prompt) >= served.vocab_size:
        wrong = next(t for t in prompt if not 0 <= t < served.vocab_size)
        raise bad_request(f"token {wrong} is outside the vocabulary of {served.vocab_size}", param)


def too_long(served: Served, tokens: int | None = None, param: str = "prompt") -> ApiError:
    count = "more" if tokens is None else f"{tokens}"
    return bad_request(
        # OpenAI's words: LiteLLM and others look for them, not for the code
        f"this model's maximum context length is {served.context} tokens, the prompt has {count}",
        param,
        "context_length_exceeded",
    )
