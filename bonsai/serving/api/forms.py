"""Answers in OpenAI's JSON: as one object, or as server-sent events."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence

from bonsai.serving.api.answers import Answer, AnswerPiece, TokenInfo, merged
from bonsai.serving.api.faults import ApiError
from bonsai.serving.api.plans import Plan
from bonsai.serving.counters import AnswerTimer

LOWEST = -9999.0  # stands for a log-probability of minus infinity, which JSON does not have


def clamp(logprob: float | None) -> float | None:
    return logprob if logprob is None or logprob > LOWEST else LOWEST


class CompletionForm:
    """/v1/completions: `text_completion` objects."""

    prefix, kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def __init__(self, plan: Plan):
        self.plan, self.served = plan, plan.served
        self.prompt_sent: set[int] = set()  # choices that were told the ids of their prompt

    def first(self) -> list[dict]:
        """The choices of the chunks that begin a stream."""
        return []

    def choice(self, piece: AnswerPiece, chunk: bool) -> dict:
        """A choice of a complete answer or, if `chunk`, of a chunk of a stream."""
        logprobs = None if self.plan.params.logprobs is None else self.logprobs(piece.tokens)
        choice = {"index": piece.index, **self.content(piece, chunk)}
        choice |= {"logprobs": logprobs, "finish_reason": piece.finish}
        return choice | self.ids(piece) if self.plan.want_ids else choice

    def content(self, piece: AnswerPiece, chunk: bool) -> dict:
        return {"text": piece.text}

    def ids(self, piece: AnswerPiece) -> dict:
        """The fields that return_token_ids adds: a choice's tokens and, in its first piece, those
        of its prompt. With both as the next prompt a client can continue exactly; encoding the text
        again may give other tokens."""
        fields = {"token_ids": [token.id for token in piece.tokens]}
        if piece.index not in self.prompt_sent:
            self.prompt_sent.add(piece.index)
            fields["prompt_token_ids"] = self.plan.prompts[piece.index // self.plan.n]
        return fields

    def logprobs(self, tokens: Sequence[TokenInfo]) -> dict:
        """Four lists with an entry per token; with return_token_ids also top_token_ids, the ids for
        the texts in top_logprobs."""
        name, tops, top_ids = self.served.token_text, [], []
        for token in tokens:
            top = None
            if token.top is not None:
                ranked = {i: clamp(logprob) for i, logprob in token.top}
                ranked.setdefault(token.id, clamp(token.logprob))
                top, ids = {}, {}
                for i, logprob in ranked.items():
                    if (text := name(i)) not in top:  # of two with the same text the likelier one
                        top[text] = logprob
                        ids[text] = i
                top_ids.append(ids)
            else:
                top_ids.append(None)
            tops.append(top)
        fields = {
            "tokens": [name(token.id) for token in tokens],
            "token_logprobs": [clamp(token.logprob) for token in tokens],
            "top_logprobs": tops,
            "text_offset": [token.offset for token in tokens],
        }
        if self.plan.want_ids:
            fields["top_token_ids"] = top_ids
        return fields


class ChatForm(CompletionForm):
    """/v1/chat/completions: `chat.completion` objects and chunks."""

    prefix, kind, chunk_kind = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def first(self) -> list[dict]:
        delta = {"role": "assistant", "content": ""}
        return [
            {"index": i, "delta": delta, "logprobs": None, "finish_reason": None}
            for i in range(self.plan.rows)
        ]

    def content(self, piece: AnswerPiece, chunk: bool) -> dict:
        if chunk:
            return {"delta": {"content": piece.text} if piece.text else {}}
        return {"message": {"role": "assistant", "content": piece.text, "refusal": None}}

    def logprobs(self, tokens: Sequence[TokenInfo]) -> dict:
        return {"content": [self.token(token) for token in tokens], "refusal": None}

    def token(self, token: TokenInfo) -> dict:
        def entry(i: int, logprob: float) -> dict:
            text, data = self.served.token_text(i), self.served.token_bytes(i)
            return {"token": text, "logprob": clamp(logprob), "bytes": list(data)}

        top = [entry(i, logprob) for i, logprob in token.top or []]
        return {**entry(token.id, token.logprob), "top_logprobs": top}


class Writer:
    """Writes an answer's JSON, as one object or as server-sent events."""

    def __init__(
        self,
        answer: Answer,
        form: CompletionForm,
        include_usage: bool = False,
        continuous: bool = False,
    ):
        self.answer, self.form = answer, form
        self.include_usage, self.continuous = include_usage, continuous
        self.head = {
            "id": form.prefix + uuid.uuid4().hex,
            "object": form.chunk_kind,
            "created": int(time.time()),
            "model": form.served.name,
        }
        self.begin = b"data: " + json.dumps(self.head)[:-1].encode() + b", "  # of each event

    def event(self, choices: list[dict], usage: dict | None = None) -> bytes:
        rest: dict = {"choices": choices}
        if self.include_usage:
            rest["usage"] = self.answer.usage() if self.continuous else usage
        return self.begin + json.dumps(rest)[1:].encode() + b"\n\n"

    async def events(self, stopwatch: AnswerTimer) -> AsyncIterator[bytes]:
        """Server-sent events, with one chunk for each choice that has something new."""
        try:
            for choice in self.form.first():
                yield self.event([choice])
            async for pieces in self.answer.pieces():
                stopwatch.piece()
                yield b"".join(self.event([self.form.choice(p, chunk=True)]) for p in pieces)
            if self.include_usage:
                yield self.event([], self.answer.usage())
            yield b"data: [DONE]\n\n"
            stopwatch.done()
        except ApiError as e:  # the status has been sent already
            yield b"data: " + e.body() + b"\n\ndata: [DONE]\n\n"
        finally:
            self.answer.close()

    async def whole(self, stopwatch: AnswerTimer) -> bytes:
        """The JSON object of an answer that is not streamed."""
        answers: list[AnswerPiece] = [AnswerPiece(i) for i in range(self.answer.plan.rows)]
        try:
            async for pieces in self.answer.pieces():
                stopwatch.piece()
                for piece in pieces:
                    answers[piece.index] = merged([answers[piece.index], piece])[0]
        finally:
            self.answer.close()
        stopwatch.done()
        choices = []
        for piece in answers:
            choices.append(dumped(self.form.choice(piece, chunk=False)))
            await asyncio.sleep(0)  # log-probabilities take time; other requests have their turn
        head = dumped({**self.head, "object": self.form.kind, "usage": self.answer.usage()})
        return b'%b, "choices": [%b]}' % (head[:-1], b", ".join(choices))


def dumped(value: dict) -> bytes:
    return json.dumps(value, allow_nan=False).encode()
