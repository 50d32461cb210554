"""Continuous batching: many requests share one model.

The rows of the cache are slots. A step advances all running requests together by one token, then
admits waiting ones into free slots, with one prefill each (captured: for several at once, see
cuda/prompts.py). The running requests always hold the first slots, so that a step computes no dead
rows: when a request ends, the last one moves into its slot.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bonsai.engine.cuda.prompts import Prompts
from bonsai.engine.cuda.steps import AT_ONCE, CapturedSteps, Flight
from bonsai.engine.prefill_decode import (
    CompiledStep,
    all_logits,
    check_request,
    decode_one_token,
    new_cache,
    prefill,
)
from bonsai.engine.prefix_cache import Filled, Prefixes
from bonsai.engine.sampling import Row, SamplingParams, Score, sample_next, scores
from bonsai.engine.speculative import Draft, Lookup
from bonsai.engine.weights import prepare
from bonsai.models.cache import KVCache
from bonsai.system.errors import UserError, end_if_told

CHUNK = 256  # positions of a prompt whose logits are in memory at once, to score them


@dataclass(eq=False)
class Request(Row):
    """One answer that was asked for. It has the same noise as the same row of `generate`."""

    finish: str | None = None  # 'stop', 'length' or 'cancelled'; None while it waits or runs
    alone: bool = True  # False if several answers to its prompt were submitted together
    cancelled: bool = False  # whether it was asked to end
    ahead: Lookup | Draft | None = None  # what guesses its next tokens
    held: bool = False  # whether it is set aside, by `hold`


@dataclass
class Event:
    """What a step did for one request."""

    request: Request
    token: int | None = None  # the new token; None: it ended without one (stop tokens are not text)
    logprob: float | None = None  # log p(token) in nats before temperature and filters, if asked
    top: list[tuple[int, float]] | None = None  # the likeliest ids and their log p, if asked
    # for each prompt token (log p, likeliest ones), if asked, in the first event only; for the very
    # first token (None, None), because nothing comes before it
    prompt_logprobs: list[Score] | None = None
    finish: str | None = None  # in the last event: Request.finish


class Engine:
    """Continuous batching over one model.

    Not thread-safe: one thread submits, holds and steps; only `cancel` may be called from others.

    max_batch: requests that run at once; others wait.
    length: context in tokens, for prompt and answer together (one more token can be drawn from a
        full context); 0: the model's block_size.
    dtype, quantize, overlap: arguments of `prepare`, which makes a copy of the weights.
    compile: whether to compile the one-token steps, see CompiledStep.
    prefix_cache: for how many tokens of prompts to keep keys and values, so that prompts which
        begin alike share them.
    lookup, draft: how many tokens to guess ahead while one request runs alone, from the text so far
        or by the same model in int8, see bonsai/engine/speculative.py; 0: none.
    capture: queue one-token steps as captured graphs, several before their tokens are read, see
        bonsai/engine/cuda/steps.py. Has no effect for models without a cache of keys and values,
        or together with compile, lookup or draft.

    Raises UserError for impossible values.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        max_batch: int = 16,
        length: int = 0,
        dtype: torch.dtype | None = None,
        quantize: str = "",
        compile: bool = False,
        prefix_cache: int = 0,
        lookup: int = 0,
        draft: int = 0,
        capture: bool = False,
        overlap: bool = True,
    ):
        block_size = model.config.block_size
        if max_batch < 1:
            raise UserError(f"max_batch={max_batch} must be at least 1")
        if not 0 <= length <= block_size:
            raise UserError(f"length={length} must be between 1 and the context of {block_size}")
        if min(lookup, draft) < 0:
            raise UserError(f"lookup={lookup} and draft={draft} must be at least 0")
        if lookup and draft:
            raise UserError("choose one: lookup and draft are two ways to guess ahead")
        if (lookup or draft) and compile:
            raise UserError(
                "choose one: lookup and draft make steps of changing lengths, compile fixed ones"
            )
        if draft and quantize:
            raise UserError(f"draft guesses with weights in int8: not for quantize={quantize}")
        self.model = prepare(
            model, dtype, quantize, pack=not compile, batch=max_batch, overlap=overlap
        )
        self.vocab_size = model.config.vocab_size
        self.device = next(model.parameters()).device
        self.length = length or block_size
        self.max_batch = max_batch
        self.cache = new_cache(self.model, max_batch, self.length)
        self.compiled = CompiledStep(self.model, self.cache) if compile else None
        self.lookup = lookup if self.cache.rewinds else 0  # the cache has to forget wrong guesses
        self.draft = draft if isinstance(self.cache, KVCache) else 0
        if self.draft:  # it reads and writes the same cache
            self.drafter = prepare(model, self.cache.k.dtype, "int8")
        self.prefixes = Prefixes(prefix_cache)
        self.captured: CapturedSteps | None = None
        self.prompts: Prompts | None = None  # with captured steps: prompts that are to be read
        self.flight: Flight | None = None  # steps that are queued, their tokens not yet read
        if capture and isinstance(self.cache, KVCache) and not (compile or lookup or draft):
            self.captured = CapturedSteps(self.model, self.cache)
            graphs = self.captured.graphs
            self.prompts = Prompts(self.model, self.cache, self.prefixes, graphs)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # the request in slot i is running[i]
        self.some_cancelled = False  # whether there may be requests that were asked to end

    def submit(
        self, prompt: Sequence[int], params: SamplingParams, n: int = 1, first_row: int = 0
    ) -> list[Request]:
        """Ask for n answers to `prompt`, which share its prefill. Raises UserError like `check`."""
        self.check(prompt, params, n)
        prompt = tuple(prompt)
        rows = range(first_row, first_row + n)
        requests = [Request(prompt, params, row, alone=n == 1) for row in rows]
        self.waiting.extend(requests)
        return requests

    def check(self, prompt: Sequence[int], params: SamplingParams, n: int = 1) -> None:
        """Raise UserError for what cannot be submitted, such as a prompt that is too long."""
        check_request(prompt, params, n, self.vocab_size)
        if len(prompt) > self.length:
            raise UserError(
                f"the prompt has {len(prompt)} tokens, the context {self.length}: shorten it"
            )

    def clear(self) -> None:
        """Forget all requests, for example after a step that failed."""
        self.waiting.clear()
        self.running.clear()
        self.flight = None
        if self.captured:
            self.captured.joining.clear()
            self.prompts.clear()

    def cancel(self, request: Request) -> None:
        """End a request at the next step, which reports this with finish 'cancelled'."""
        request.cancelled = True
        self.some_cancelled = True  # in this order, as drop_cancelled may run meanwhile

    def hold(self, request: Request) -> None:
        """Set a request aside: it takes no slot and makes no tokens until `resume`. Does nothing if
        it has ended."""
        if request in self.running:
            self.free(self.running.index(request))
        elif request in self.waiting:
            self.waiting.remove(request)
        else:
            return
        request.held, request.ahead = True, None

    def resume(self, request: Request) -> None:
        """Go on with a request that was set aside; it is the next to be admitted. Its tokens are
        read again, and it draws what it would have drawn."""
        if request.held:
            request.held = False
            self.waiting.appendleft(request)

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.waiting or self.running)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Advance the running requests by one token (captured: by the tokens of the steps queued
        before), then admit waiting ones. Returns what happened."""
        end_if_told()
        events = self.drop_cancelled()
        if self.captured:
            events += self.decode_captured()
        elif (self.lookup or self.draft) and len(self.running) == 1:
            events += self.decode_ahead()
        elif self.running:
            events += self.draw(self.decode(), list(self.running))
        while self.waiting and len(self.running) < self.max_batch:
            events += self.admit(self.waiting.popleft())
        if self.prompts:
            self.prompts.read()
        for slot in reversed(range(len(self.running))):
            if self.running[slot].finish:
                self.free(slot)
        return events

    # ---- the parts of a step ----

    def drop_cancelled(self) -> list[Event]:
        """End the requests that were asked to end."""
        if not self.some_cancelled:  # many may wait, and this is asked at every step
            return []
        self.some_cancelled = False
        gone = [r for r in (*self.running, *self.waiting) if r.cancelled]
        for request in gone:
            request.finish = "cancelled"
            if request in self.running:
                self.free(self.running.index(request))
            else:
                self.waiting.remove(request)
        return [Event(request, finish="cancelled") for request in gone]

    def free(self, slot: int) -> None:
        """Empty a slot: the request in the last one moves there."""
        last = len(self.running) - 1
        if self.flight:
            self.flight.drop(self.running[slot])
        if slot != last:
            if self.captured:
                self.captured.move(last, slot)
            else:
                self.cache.copy_row(slot, self.cache, last, self.cache.lengths[last])
            self.running[slot] = self.running[last]
        self.running.pop()

    def admit(self, request: Request) -> list[Event]:
        """Prefill a request into the next slot and draw its first token."""
        slot, params = len(self.running), request.params
        again = bool(request.tokens)  # it ran before, and was held
        scored = params.prompt_logprobs and not again
        if self.captured and params.max_new_tokens and not scored:
            self.admit_captured(request)
            return []
        if self.prompts:
            self.prompts.read()  # this prompt may begin like one of them
        prompt = (*request.prompt, *request.tokens) if again else request.prompt
        row = self.cache.view(slot, slot + 1)
        row.reset()
        self.running.append(request)
        if scored:
            logits, about_prompt = self.score_prompt(request, row)
        else:
            logits, about_prompt = self.prefixes.restore(prompt, row), None
            if logits is None:
                rest = torch.tensor([prompt[row.lengths[0] :]], device=self.device)
                logits = prefill(self.model, rest, row)
        keep = not again and self.siblings_wait(request)
        self.prefixes.store(row, [Filled(prompt, 0, keep)], logits)
        self.cache.lengths[slot] = len(prompt)
        if params.max_new_tokens == 0:
            request.finish = "length"
            return [Event(request, prompt_logprobs=about_prompt, finish="length")]
        (event,) = self.draw(logits, [request])
        event.prompt_logprobs = about_prompt
        if self.captured and not request.finish:
            self.captured.put(slot, request, len(prompt))
        return [event]

    def admit_captured(self, request: Request) -> None:
        """Give a request the next slot. All but its last token are read together with the prompts
        of others that are admitted; the last one is read by the next step of all rows, which also
        draws. Nothing here waits for the device."""
        slot, known = len(self.running), (*request.prompt, *request.tokens)[:-1]
        self.running.append(request)
        if known:
            self.prompts.add(slot, known, keep=self.siblings_wait(request))
        self.captured.put(slot, request, len(known))

    def siblings_wait(self, request: Request) -> bool:
        """Whether the next request in turn is another answer to the same prompt."""
        return not request.alone and bool(self.waiting) and self.waiting[0].prompt is request.prompt

    def score_prompt(self, request: Request, row) -> tuple[torch.Tensor, list[Score]]:
        """The logits at the end of the prompt, (1, V), and the scores of its tokens."""
        params, prompt = request.params, request.prompt
        idx = torch.tensor([prompt], device=self.device)
        prompt_scores: list[Score] = [(None, None)]
        for begin in range(0, len(prompt), CHUNK):
            part = idx[:, begin : begin + CHUNK]
            logits = all_logits(self.model, part, row)[0]  # (T, V)
            targets = prompt[begin + 1 : begin + 1 + CHUNK]
            got = logits[: len(targets)]
            if targets:
                prompt_scores += scores(got, targets, params.logprobs or 0, params.vocab_limit)
        return logits[-1:], prompt_scores

    def decode(self) -> torch.Tensor:
        """Read the last token of each running row: logits (n, V) of what follows."""
        last = [r.tokens[-1] for r in self.running]
        rows = self.cache.view(0, len(last))
        if self.compiled is not None:
            logits = self.compiled(last, rows.lengths)
            self.cache.lengths[: len(last)] = [n + 1 for n in rows.lengths]
            return logits
        idx = torch.tensor(last, device=self.device)[:, None]
        logits = decode_one_token(self.model, idx, rows)
        self.cache.lengths[: len(last)] = rows.lengths
        return logits

    def decode_captured(self) -> list[Event]:
        """Queue the next steps of the running rows, then read those that were queued before."""
        flight, self.flight = self.flight, None
        left = [n for n in map(self.tokens_left, range(len(self.running))) if n > 0]
        if left:  # while others wait, only up to the first row's end, so that one can take its slot
            steps = min(AT_ONCE, min(left) if self.waiting else max(left))
            self.flight = self.captured.launch(self.running, steps)
        events = []
        for request, token, score in flight.read() if flight else ():
            if not request.finish:  # tokens after its end are dropped
                events.append(self.note(request, token, score))
        return events

    def tokens_left(self, slot: int) -> int:
        """How many tokens a request may still draw after those that are queued."""
        request = self.running[slot]
        drawn = self.cache.lengths[slot] + 1 - len(request.prompt)
        room = self.length + 1 - len(request.prompt)  # one can be drawn from a full context
        return min(request.params.max_new_tokens, room) - drawn

    def decode_ahead(self) -> list[Event]:
        """The next token of the only running request, and those after it that were guessed."""
        (request,) = self.running
        total = len(request.prompt) + len(request.tokens)
        left = request.params.max_new_tokens - len(request.tokens)
        room = min(left - 1, self.length - total)
        row = self.cache.view(0, 1)
        if request.ahead is None:
            request.ahead = Lookup(self.lookup) if self.lookup else Draft(self.drafter, self.draft)
        guess = request.ahead.guess(request, row, room)
        if not guess:
            return self.draw(self.decode(), [request])
        idx = torch.tensor([[request.tokens[-1], *guess]], device=self.device)
        logits = all_logits(self.model, idx, row)[0]  # (1 + len(guess), V)
        events, right = [], 0
        drawn = sample_next(logits, [request.extended(guess[:i]) for i in range(len(logits))])
        for i, token in enumerate(drawn.tolist()):
            events.append(self.take(request, token, logits[i : i + 1]))
            if request.finish or i == len(guess) or token != guess[i]:
                break
            right += 1
        request.ahead.learn(len(guess), right)
        self.cache.lengths[0] = total + right  # the rest of the guess is forgotten
        return events

    def draw(self, logits: torch.Tensor, requests: list[Request]) -> list[Event]:
        """Choose the next token of each request from logits (n, V)."""
        tokens = sample_next(logits, requests).tolist()  # the only wait for the device
        return [
            self.take(r, t, logits[i : i + 1]) for i, (r, t) in enumerate(zip(requests, tokens))
        ]

    def take(self, request: Request, token: int, logits: torch.Tensor) -> Event:
        """As `note`, with the token's score from the logits (1, V), if that was asked for."""
        params, score = request.params, None
        if params.logprobs is not None:
            (score,) = scores(logits, [token], params.logprobs, params.vocab_limit)
        return self.note(request, token, score)

    def note(self, request: Request, token: int, score: Score | None) -> Event:
        """Give a request its next token, and end it if that is due. score: of the token."""
        params = request.params
        if token in params.stop_tokens:
            request.finish = "stop"
            return Event(request, finish="stop")
        request.tokens.append(token)
        total = len(request.prompt) + len(request.tokens)
        if len(request.tokens) == params.max_new_tokens or total > self.length:
            request.finish = "length"
        logprob, top = score or (None, None)
        return Event(request, token, logprob, top, finish=request.finish)
