"""One-token steps of many rows as captured graphs, queued several at a time.

A step is two graphs: the model's (decode_one_token on a bucket of rows and positions) and that of
the draw (rows.py), each captured when it is first needed. Between steps the tokens stay on the
device, so the host queues the next steps while it reads the tokens of earlier ones. It notices only
later that a row has stopped at a token: the row's tokens from steps queued by then are dropped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from bonsai.engine import prefill_decode
from bonsai.engine.cuda.graphs import Graphs
from bonsai.engine.cuda.rows import Draw, Rows, next_tokens, packed_scores, unpacked
from bonsai.engine.prefill_decode import bucket, decode_one_token, fixed_view, new_cache
from bonsai.engine.sampling import Row, SamplingParams, Score
from bonsai.models.cache import KVCache

AT_ONCE = 8  # how many steps are queued before the tokens of the earlier ones are read
# Common draws: their kernels are loaded at the start, which takes half a second
USUAL = (SamplingParams(temperature=0), SamplingParams(top_k=200), SamplingParams(top_p=0.9))


@dataclass
class Flight:
    """Steps that were queued together."""

    rows: list[Row | None]  # by slot; None: nobody waits for its tokens any more
    tokens: torch.Tensor  # (steps, B), on the host; valid after `done`
    scores: torch.Tensor | None  # (steps, B, 1 + 2 k), see packed_scores
    done: torch.cuda.Event | None  # None: tokens and scores are valid already

    def drop(self, row: Row) -> None:
        """Drop the tokens of a row that nobody waits for."""
        self.rows = [None if r is row else r for r in self.rows]

    def read(self) -> Iterator[tuple[Row, int, Score | None]]:
        """Wait for the steps. Yields each row's token, step by step, with its score if wanted."""
        if self.done is not None:
            self.done.synchronize()
        tokens = self.tokens.tolist()
        scores = None if self.scores is None else self.scores.tolist()
        for step, of_step in enumerate(tokens):
            for slot, row in enumerate(self.rows):
                if row is not None:
                    score = None
                    if row.params.logprobs is not None:
                        score = unpacked(scores[step][slot], row.params)
                    yield row, of_step[slot], score


class CapturedSteps:
    """Steps of the first rows of a KVCache, for a model that is prepared for inference.

    On a CPU the functions are called again instead of replayed: so all but the capture is tested.
    """

    def __init__(self, model: torch.nn.Module, cache: KVCache):
        self.model, self.cache, device = model, cache, cache.k.device
        batch, vocab_size = len(cache.lengths), model.config.vocab_size
        self.rows = Rows(batch, vocab_size, device)
        self.joining: dict[int, Row] = {}  # by slot, see `join`
        self.logits = torch.zeros((batch, vocab_size), device=device)
        self.written = torch.zeros((AT_ONCE, batch), dtype=torch.int64, device=device)
        self.scores: dict[int, torch.Tensor] = {}  # of one step, by the number of likeliest tokens
        self.graphs = Graphs(device)
        if device.type == "cuda":  # load and compile kernels now, before anyone waits for a token
            with torch.no_grad():
                self.compute(*bucket(cache, [0]))
                for params in USUAL:
                    draw = Draw.of([Row((0,), params)], vocab_size)
                    next_tokens(self.logits[:1], self.rows, draw)

    @classmethod
    def of(cls, model: torch.nn.Module, batch: int, length: int) -> "CapturedSteps | None":
        """CapturedSteps with a cache of their own for at least `length` tokens. None if the model's
        cache does not support steps of fixed shapes."""
        unit = prefill_decode.SHORTEST  # rows begin at aligned addresses
        length = -(-length // unit) * unit
        cache = new_cache(model, batch, min(length, model.config.block_size))
        return cls(model, cache) if isinstance(cache, KVCache) else None

    # ---- which rows ----

    def put(self, slot: int, row: Row, length: int) -> None:
        """Put a row into this slot: `length` of its tokens are in the cache, its last token is not.
        It is written to the device by `join`."""
        self.cache.lengths[slot] = length
        self.joining[slot] = row

    def join(self) -> None:
        """Write all rows that were `put` since the last call to the device, together."""
        joining, self.joining = self.joining, {}
        if joining:
            positions = [self.cache.lengths[slot] for slot in joining]
            self.rows.put([*joining], [*joining.values()], positions)

    def move(self, source: int, target: int) -> None:
        """Move a row to another slot."""
        self.join()
        self.cache.copy_row(target, self.cache, source, self.cache.lengths[source])
        self.rows.move(source, target)

    # ---- steps ----

    def launch(self, rows: Sequence[Row], steps: int) -> Flight:
        """Queue up to AT_ONCE steps of the rows in the first slots."""
        self.join()
        lengths, device, n = self.cache.lengths, self.cache.k.device, len(rows)
        draw, scores = Draw.of(rows, self.rows.vocab_size), []
        if (k := draw.logprobs) is not None and k not in self.scores:
            with torch.inference_mode(False):
                self.scores[k] = torch.zeros((len(self.logits), 1 + 2 * k), device=device)
        for step in range(steps):
            size, positions = bucket(self.cache, lengths[:n])
            self.graphs.run((size, positions), lambda s=size, p=positions: self.compute(s, p))
            self.graphs.run((size, draw), lambda s=size: self.choose(s, draw))
            self.written[step].copy_(self.rows.token[:, 0])
            if k is not None:
                scores.append(self.scores[k].clone())
            # a full row is computed at its last position again; these tokens are not used
            lengths[:n] = [min(length + 1, self.cache.length) for length in lengths[:n]]
        arrived = [to_host(self.written[:steps])]
        arrived.append(to_host(torch.stack(scores)) if scores else None)
        done = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        return Flight(list(rows), *arrived, done)

    def compute(self, size: int, positions: int) -> None:
        """Compute the logits after the last tokens of the first rows."""
        part = fixed_view(self.cache, size, positions)
        # free slots and full rows may have larger positions
        part.pos = self.rows.pos[:size].clamp(max=positions - 1)
        token = self.rows.token[:size]
        self.logits[:size].copy_(decode_one_token(self.model, token, part))

    def choose(self, size: int, draw: Draw) -> None:
        """Choose the next tokens of the first rows."""
        logits = self.logits[:size]
        self.rows.take(next_tokens(logits, self.rows, draw), draw)
        if draw.logprobs is not None:
            scores = packed_scores(logits, self.rows.token[:size, 0], self.rows, draw)
            self.scores[draw.logprobs][:size].copy_(scores)

    def run(self, rows: Sequence[Row], length: int, steps: int) -> Iterator[list[int]]:
        """Yields the next tokens of all rows, step by step. length: how many tokens each row has in
        the cache."""
        for slot, row in enumerate(rows):
            self.put(slot, row, length)
        flight = None
        while steps or flight:
            before, flight = flight, None
            if steps:
                flight = self.launch(rows, min(steps, AT_ONCE))
                steps -= len(flight.tokens)
            if before:
                tokens = [token for _, token, _ in before.read()]
                yield from (tokens[i : i + len(rows)] for i in range(0, len(tokens), len(rows)))


def to_host(x: torch.Tensor) -> torch.Tensor:
    """A copy of x on the host, valid when the device has finished all work queued so far."""
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
    return host.copy_(x, non_blocking=True)
