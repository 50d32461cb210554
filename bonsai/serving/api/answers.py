"""The answer to a plan, in pieces that are made from the engine's events as they arrive.

An answer has prompts x n choices; choice i * n + j is sample j of prompt i. Streamed answers and
others are made of the same pieces.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from bonsai.engine import Event
from bonsai.engine.textstream import TextStream
from bonsai.serving.api.faults import ApiError, bad_request
from bonsai.serving.api.plans import Plan
from bonsai.serving.worker import Busy, Failed, Stopped, Worker
from bonsai.system.errors import UserError


@dataclass
class TokenInfo:
    id: int
    logprob: float | None  # None: it is the first token of all
    top: list[tuple[int, float]] | None
    offset: int = 0


@dataclass
class AnswerPiece:
    """The new text and tokens of one choice."""

    index: int
    text: str = ""
    tokens: list[TokenInfo] = field(default_factory=list)
    finish: str | None = None


class Choice:
    """One choice: turns the events of its row into pieces."""

    def __init__(self, plan: Plan, index: int):
        self.plan, self.index = plan, index
        self.prompt = plan.prompts[index // plan.n]
        self.infos: list[TokenInfo] = []
        self.shown = 0  # how many of `infos` were in pieces
        self.completion_tokens = 0
        self.begun = False
        self.done = False
        served = plan.served
        before = b"" if plan.echo else b"".join(map(served.token_bytes, self.prompt[-8:]))
        self.text = TextStream(served.token_bytes, plan.stops, before)

    def feed(self, event: Event) -> AnswerPiece:
        """The piece for an event; it may be empty."""
        piece = AnswerPiece(self.index)
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

    def repeat_prompt(self, piece: AnswerPiece, logprobs: list | None) -> None:
        scores = logprobs if logprobs is not None else [(None, None)] * len(self.prompt)
        for i, (token, score) in enumerate(zip(self.prompt, scores)):
            if i < self.plan.hidden[self.index // self.plan.n]:
                continue
            logprob, top = score
            piece.text += self.text.push(token, match=False)
            self.infos.append(TokenInfo(token, logprob, top))


def failed(e: Failed) -> ApiError:
    if isinstance(e, Stopped):  # the client may try again
        return ApiError(e.status, str(e), code="stopped", headers={"Retry-After": "5"})
    return ApiError(e.status, str(e))


def merged(pieces: Sequence[AnswerPiece]) -> list[AnswerPiece]:
    """One piece per choice, in the order of the choices' first pieces."""
    by_choice: dict[int, AnswerPiece] = {}
    for piece in pieces:
        if piece.index not in by_choice:
            by_choice[piece.index] = piece
        else:
            whole = by_choice[piece.index]
            whole.text += piece.text
            whole.tokens += piece.tokens
            whole.finish = piece.finish
    return list(by_choice.values())


class Answer:
    """The pieces of all choices of a request, as they arrive."""

    def __init__(self, worker: Worker, plan: Plan):
        self.plan = plan
        self.choices = [Choice(plan, i) for i in range(plan.rows)]
        try:
            engine = plan.served.engine
            self.stream = worker.submit(engine, plan.prompts, plan.params, plan.n, plan.seeded)
        except Busy as e:
            raise ApiError(
                429, str(e), code="queue_full", headers={"Retry-After": str(e.seconds)}
            ) from None
        except Stopped as e:
            raise failed(e) from None

    async def pieces(self) -> AsyncIterator[list[AnswerPiece]]:
        """Yields lists of pieces: at most one per choice, none of them empty. Raises ApiError."""
        left = len(self.choices)
        while left:
            try:
                events = await self.stream.take()
            except UserError as e:
                raise bad_request(str(e)) from None
            except Failed as e:
                raise failed(e) from None
            pieces = []
            for i, (row, event) in enumerate(events):
                choice = self.choices[row]
                if choice.done:
                    continue
                if event.prompt_logprobs or i % 64 == 63:  # lets other requests have their turn
                    await asyncio.sleep(0)
                pieces.append(choice.feed(event))
                if choice.done:
                    left -= 1
                    self.stream.cancel(row)  # the engine knows nothing of stop strings
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
        """Cancel the rows that still run. Must be called however the answer ends."""
        self.stream.cancel()


async def until_gone(receive: Callable) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(work: "asyncio.Future", receive: Callable) -> bool:
    """Wait for `work`, and cancel it if the client leaves. Returns whether it was done."""
    work, gone = asyncio.ensure_future(work), asyncio.ensure_future(until_gone(receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.done()
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)
