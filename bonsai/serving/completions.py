"""From a request to its answer: prompts to token ids, rows in the engine, text as it comes.

An answer has prompts x n choices; choice i * n + j is sample j of prompt i. Streamed and whole
answers are made of the same pieces.
"""

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool

from bonsai.errors import UserError
from bonsai.serving._interim import Event, SamplingParams
from bonsai.serving.errors import ApiError, bad_request
from bonsai.serving.registry import Served
from bonsai.serving.schemas import ChatRequest, CompletionRequest, Sampling
from bonsai.serving.textstream import TextStream
from bonsai.serving.worker import Busy, Failed, Worker

LOWEST = -9999.0  # what stands for a log-probability of minus infinity, which JSON does not have
INLINE = 2000  # characters that are encoded at once; longer texts in a thread


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    rows: int = 128  # prompts x n
    tokens: int = 4096  # max_tokens


@dataclass
class TokenInfo:
    id: int
    logprob: float | None  # None: nothing stands before it
    top: list[tuple[int, float]] | None
    offset: int = 0


@dataclass
class Piece:
    """What is new of one choice."""

    index: int
    text: str = ""
    tokens: list[TokenInfo] = field(default_factory=list)
    finish: str | None = None


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


# ---- the pieces of an answer ----


class Choice:
    """One choice: takes the events of its row, gives pieces."""

    def __init__(self, plan: Plan, index: int):
        self.plan, self.index = plan, index
        self.prompt = plan.prompts[index // plan.n]
        self.infos: list[TokenInfo] = []
        self.shown = 0  # of infos
        self.completion_tokens = 0
        self.begun = False
        self.done = False
        served = plan.served
        before = b"" if plan.echo else b"".join(map(served.token_bytes, self.prompt[-8:]))
        self.text = TextStream(served.token_bytes, plan.stops, before)

    def feed(self, event: Event) -> Piece:
        """The piece that an event gives; it may be empty."""
        piece = Piece(self.index)
        if not self.begun:
            self.begun = True
            if self.plan.echo:
                self.repeat_prompt(piece, event.prompt_logprobs)
        if event.token is not None:
            self.completion_tokens += 1
            piece.text += self.text.push(event.token)
            self.infos.append(TokenInfo(event.token, event.logprob, event.top))
        if self.text.stopped:
            piece.finish = "stop"
        elif event.finish is not None:
            piece.text += self.text.finish()
            piece.finish = "stop" if self.text.stopped else event.finish
        self.done = piece.finish is not None
        for i in range(self.shown, self.text.released):
            self.infos[i].offset = self.text.offsets[i]
            piece.tokens.append(self.infos[i])
        self.shown = max(self.shown, self.text.released)
        return piece

    def repeat_prompt(self, piece: Piece, logprobs: list | None) -> None:
        scores = logprobs if logprobs is not None else [None] * len(self.prompt)
        for i, (token, score) in enumerate(zip(self.prompt, scores)):
            if i < self.plan.hidden[self.index // self.plan.n]:
                continue
            logprob, top = score if score is not None else (None, None)
            piece.text += self.text.push(token, match=False)
            self.infos.append(TokenInfo(token, logprob, top))


def merged(pieces: Sequence[Piece]) -> list[Piece]:
    """One piece per choice, in the order in which they first occur."""
    found: dict[int, Piece] = {}
    for piece in pieces:
        if piece.index not in found:
            found[piece.index] = piece
        else:
            whole = found[piece.index]
            whole.text += piece.text
            whole.tokens += piece.tokens
            whole.finish = piece.finish
    return list(found.values())


class Answer:
    """The pieces of all choices of a request, as they come."""

    def __init__(self, worker: Worker, plan: Plan):
        self.plan = plan
        self.choices = [Choice(plan, i) for i in range(plan.rows)]
        try:
            engine = plan.served.engine
            self.stream = worker.submit(engine, plan.prompts, plan.params, plan.n)
        except Busy as e:
            raise ApiError(
                429, str(e), code="queue_full", headers={"Retry-After": str(e.seconds)}
            ) from None

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """Lists of pieces, at most one per choice, none of them empty; raises ApiError."""
        left = len(self.choices)
        while left:
            try:
                events = await self.stream.take()
            except UserError as e:
                raise bad_request(str(e)) from None
            except Failed as e:
                raise ApiError(500, str(e)) from None
            pieces = []
            for row, event in events:
                choice = self.choices[row]
                if choice.done:
                    continue
                pieces.append(choice.feed(event))
                if choice.done:
                    left -= 1
                    self.stream.cancel(row)  # a stop string: the engine does not know
            pieces = [p for p in merged(pieces) if p.text or p.tokens or p.finish]
            if pieces:
                yield pieces

    def usage(self) -> dict:
        prompt, completion = self.plan.prompt_tokens, sum(c.completion_tokens for c in self.choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def close(self) -> None:
        """Give back what is still running; to be called however the answer ends."""
        self.stream.cancel()


# ---- their JSON ----


def clamp(logprob: float | None) -> float | None:
    return logprob if logprob is None or logprob > LOWEST else LOWEST


class CompletionForm:
    """/v1/completions: `text_completion` objects."""

    prefix, kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def __init__(self, plan: Plan):
        self.plan, self.served = plan, plan.served

    def first(self) -> list[dict]:
        """What a stream begins with."""
        return []

    def choice(self, piece: Piece, chunk: bool) -> dict:
        logprobs = None
        if self.plan.params.logprobs is not None:
            logprobs = self.logprobs(piece.tokens)
        choice = {
            "index": piece.index,
            "text": piece.text,
            "logprobs": logprobs,
            "finish_reason": piece.finish,
        }
        if self.plan.want_ids:
            choice["token_ids"] = [token.id for token in piece.tokens]
        return choice

    def logprobs(self, tokens: Sequence[TokenInfo]) -> dict:
        """Four parallel lists."""
        name, tops, top_ids = self.served.token_text, [], []
        for token in tokens:
            top = None
            if token.top is not None:
                ranked = {i: clamp(logprob) for i, logprob in token.top}
                ranked.setdefault(token.id, clamp(token.logprob))
                top, ids = {}, []
                for i, logprob in ranked.items():
                    if (text := name(i)) not in top:  # the likelier of two that look alike
                        top[text] = logprob
                        ids.append(i)
                top_ids.append(ids)
            else:
                top_ids.append(None)
            tops.append(top)
        found = {
            "tokens": [name(token.id) for token in tokens],
            "token_logprobs": [clamp(token.logprob) for token in tokens],
            "top_logprobs": tops,
            "text_offset": [token.offset for token in tokens],
        }
        if self.plan.want_ids:
            found["top_token_ids"] = top_ids
        return found


class ChatForm(CompletionForm):
    """/v1/chat/completions: `chat.completion` objects and chunks."""

    prefix, kind, chunk_kind = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def first(self) -> list[dict]:
        delta = {"role": "assistant", "content": ""}
        return [
            {"index": i, "delta": delta, "logprobs": None, "finish_reason": None}
            for i in range(self.plan.rows)
        ]

    def choice(self, piece: Piece, chunk: bool) -> dict:
        logprobs = None
        if self.plan.params.logprobs is not None:
            logprobs = {"content": [self.token(t) for t in piece.tokens], "refusal": None}
        if chunk:
            message = {"delta": {"content": piece.text} if piece.text else {}}
        else:
            message = {"message": {"role": "assistant", "content": piece.text, "refusal": None}}
        choice = {
            "index": piece.index,
            **message,
            "logprobs": logprobs,
            "finish_reason": piece.finish,
        }
        if self.plan.want_ids:
            choice["token_ids"] = [token.id for token in piece.tokens]
        return choice

    def token(self, token: TokenInfo) -> dict:
        def entry(i: int, logprob: float) -> dict:
            text, data = self.served.token_text(i), self.served.token_bytes(i)
            return {"token": text, "logprob": clamp(logprob), "bytes": list(data)}

        top = [entry(i, logprob) for i, logprob in token.top or []]
        return {**entry(token.id, token.logprob), "top_logprobs": top}


class Writer:
    """An answer's JSON, whole or as server-sent events."""

    def __init__(self, answer: Answer, form: CompletionForm, include_usage: bool = False):
        self.answer, self.form, self.include_usage = answer, form, include_usage
        self.head = {
            "id": form.prefix + uuid.uuid4().hex,
            "object": form.chunk_kind,
            "created": int(time.time()),
            "model": form.served.name,
        }

    def event(self, choices: list[dict], usage: dict | None = None) -> bytes:
        body = {**self.head, "choices": choices}
        if self.include_usage:
            body["usage"] = usage
        return b"data: " + json.dumps(body).encode() + b"\n\n"

    async def events(self, on_first: Callable[[], None]) -> AsyncIterator[bytes]:
        """Server-sent events; one chunk for each choice that has something new."""
        try:
            for choice in self.form.first():
                yield self.event([choice])
            async for pieces in self.answer.pieces():
                on_first()
                yield b"".join(self.event([self.form.choice(p, chunk=True)]) for p in pieces)
            if self.include_usage:
                yield self.event([], self.answer.usage())
            yield b"data: [DONE]\n\n"
        except ApiError as e:  # too late for a status
            yield b"data: " + e.body() + b"\n\n"
        finally:
            self.answer.close()

    async def whole(self, on_first: Callable[[], None]) -> dict:
        """The one JSON object of an answer that is not streamed."""
        found: list[Piece] = [Piece(i) for i in range(self.answer.plan.rows)]
        try:
            async for pieces in self.answer.pieces():
                on_first()
                for piece in pieces:
                    found[piece.index] = merged([found[piece.index], piece])[0]
        finally:
            self.answer.close()
        choices = [self.form.choice(piece, chunk=False) for piece in found]
        head = {**self.head, "object": self.form.kind}
        return {**head, "choices": choices, "usage": self.answer.usage()}


async def until_gone(receive: Callable) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(work: "asyncio.Future", receive: Callable) -> bool:
    """Wait for `work`, or for the client to leave, which cancels it; whether it was done."""
    work, gone = asyncio.ensure_future(work), asyncio.ensure_future(until_gone(receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.done()
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)
