"""From a request to a plan: which tokens the engine gets, and how it is to sample."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from bonsai.engine import SamplingParams
from bonsai.errors import UserError
from bonsai.serving.errors import ApiError, bad_request
from bonsai.serving.registry import Served
from bonsai.serving.schemas import ChatRequest, CompletionRequest, Sampling

INLINE = 2000  # characters that are encoded at once; longer texts in a thread


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    rows: int = 128  # prompts x n
    tokens: int = 4096  # max_tokens


@dataclass
class Plan:
    """A request, checked: what the engine is asked, and what is shown of its answer."""

    served: Served
    prompts: list[list[int]]
    params: SamplingParams
    n: int
    stops: Sequence[str]
    echo: bool = False
    want_ids: bool = False
    # for each prompt: how many of its tokens the client did not send
    hidden: Sequence[int] = ()

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
    prompts = [await encode(served, p) if isinstance(p, str) else p for p in body.prompt]
    hidden = [0 if ids else len(served.start) for ids in prompts]
    prompts = [ids or served.start for ids in prompts]  # "" is the beginning of a text
    max_tokens = 16 if body.max_tokens is None else body.max_tokens
    echo = bool(body.echo)
    params = sampling_params(
        served, body, max_tokens, limits, body.logprobs, echo and body.logprobs is not None
    )
    check_prompts(served, prompts, max_tokens, "prompt")
    ids = bool(body.return_token_ids)
    return Plan(served, prompts, params, n, body.stop, echo, ids, hidden)


async def plan_chat(served: Served, body: ChatRequest, limits: Limits) -> Plan:
    template = served.chat
    if template is None:
        raise bad_request(
            f"the model {served.name} carries no chat template: it continues texts, use "
            "/v1/completions",
            "model",
            "no_chat_template",
        )
    n = 1 if body.n is None else body.n
    check_rows(n, limits)
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
    messages = [(m.role, m.content) for m in body.messages]
    if sum(len(text) for _, text in messages) > served.context * served.longest:
        raise too_long(served)
    try:
        prompt = await run_in_threadpool(template.encode, served.tokenizer, messages)
    except UserError as e:
        raise bad_request(str(e), "messages") from None
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    max_tokens = min(served.context, limits.tokens) if asked is None else asked
    stops = [*body.stop, *([template.stop] if template.stop else [])]
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = sampling_params(served, body, max_tokens, limits, logprobs, False)
    check_prompts(served, [prompt], max_tokens, "messages")
    return Plan(served, [prompt], params, n, stops, want_ids=bool(body.return_token_ids))


async def encode(served: Served, text: str) -> list[int]:
    """The tokens of a prompt; "<|endoftext|>" in it is that token."""
    if len(text) > served.context * served.longest:
        raise too_long(served)
    try:
        if len(text) <= INLINE:
            return served.tokenizer.encode(text, allow_special=True)
        return await run_in_threadpool(served.tokenizer.encode, text, allow_special=True)
    except UserError as e:  # a character that the model does not know
        raise bad_request(str(e), "prompt") from None


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
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options needs stream: true", "stream_options")
    if outside := [token for token in body.logit_bias if token >= served.vocab_size]:
        raise bad_request(
            f"logit_bias: token {outside[0]} is outside the vocabulary of {served.vocab_size}",
            "logit_bias",
        )
    eot = served.tokenizer.eot
    try:
        return SamplingParams(
            max_new_tokens=max_tokens,
            temperature=given(body.temperature, 1.0),
            top_k=given(body.top_k, 0),
            top_p=given(body.top_p, 1.0),
            min_p=given(body.min_p, 0.0),
            repetition_penalty=given(body.repetition_penalty, 1.0),
            presence_penalty=given(body.presence_penalty, 0.0),
            frequency_penalty=given(body.frequency_penalty, 0.0),
            logit_bias=body.logit_bias,
            seed=given(body.seed, random.getrandbits(62)),
            stop_tokens=() if eot is None else (eot,),
            vocab_limit=served.vocab_size,
            logprobs=None if logprobs is None else min(logprobs, served.vocab_size),
            prompt_logprobs=prompt_logprobs,
        )
    except UserError as e:
        raise bad_request(str(e)) from None


def check_rows(rows: int, limits: Limits) -> None:
    if rows > limits.rows:
        raise bad_request(f"prompts x n = {rows} is above {limits.rows}: send fewer at once", "n")


def check_prompts(served: Served, prompts: list[list[int]], max_tokens: int, param: str) -> None:
    for prompt in prompts:
        if len(prompt) > served.context:
            raise too_long(served, len(prompt), param)
        if not prompt:
            raise bad_request("the prompt is empty", param)
        if min(prompt) < 0 or max(prompt) >= served.vocab_size:
            wrong = next(t for t in prompt if not 0 <= t < served.vocab_size)
            raise bad_request(
                f"token {wrong} is outside the vocabulary of {served.vocab_size}", param
            )


def too_long(served: Served, tokens: int | None = None, param: str = "prompt") -> ApiError:
    found = "more" if tokens is None else f"{tokens}"
    return bad_request(
        f"the model {served.name} has a context of {served.context} tokens, the prompt has {found}",
        param,
        "context_length_exceeded",
    )
