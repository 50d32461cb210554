"""Draws the next tokens like sampling.py, but on the device alone, with the settings of rows there.

sampling.py draws rows with equal settings together and has each row's tokens as a list. Here every
setting is a tensor with a number for each row, and the tokens so far are counted on the device. So
rows with different settings are drawn together, and the draw can be captured as a graph. A graph
fixes only a `Draw`: which filters there are, and how many tokens they look at.
"""

from collections.abc import Iterable, Sequence
from math import inf, log
from typing import NamedTuple

import torch
from torch.nn import functional as F

from bonsai.engine.cuda.kernels import Kernels, load_kernels
from bonsai.engine.sampling import Row, SamplingParams, Score, noise
from bonsai.system.hashing import signed, splitmix_tensor

INTS = ("pos", "step", "key", "top_k", "limit", "greedy")
FLOATS = ("temperature", "top_p", "log_min_p", "repetition", "presence", "frequency")
NEUTRAL = SamplingParams(temperature=0)  # settings of a slot without a request


class Draw(NamedTuple):
    """How a step chooses tokens: one description for all of its rows."""

    greedy: bool  # whether some rows take the likeliest token
    random: bool  # whether some rows draw
    top_k: int  # how many tokens to look at; 0: all
    ranked: bool  # whether top_k differs between rows
    limit: int  # ids from here on are never chosen
    limited: bool  # whether the limit differs between rows
    top_p: bool  # whether a row uses it
    min_p: bool
    adjusted: bool  # whether a row has penalties or a bias
    logprobs: int | None  # how many likeliest tokens to report; None: no log-probabilities at all

    @property
    def filters(self) -> bool:
        """Whether rows keep only some of the tokens, by top_k or min_p."""
        return bool(self.top_k or self.ranked or self.min_p)

    @classmethod
    def of(cls, rows: Sequence[Row], vocab_size: int) -> "Draw":
        """The Draw that these rows need."""
        settings = [row.params for row in rows]
        limits = {limit_of(p, vocab_size) for p in settings}
        hot = [p for p in settings if p.temperature > 0]
        kept = {top_k_of(p, vocab_size) for p in hot}
        reported = [p.logprobs for p in settings if p.logprobs is not None]
        return cls(
            greedy=len(hot) < len(settings),
            random=bool(hot),
            top_k=0 if 0 in kept else max(kept, default=0),
            ranked=len(kept) > 1,
            limit=max(limits),
            limited=len(limits) > 1,
            top_p=any(p.top_p < 1 for p in hot),
            min_p=any(p.min_p > 0 for p in hot),
            adjusted=any(map(adjusts, settings)),
            logprobs=min(max(reported), max(limits)) if reported else None,
        )


def limit_of(params: SamplingParams, vocab_size: int) -> int:
    """The number of ids that may be drawn: those below it."""
    return min(params.vocab_limit or vocab_size, vocab_size)


def top_k_of(params: SamplingParams, vocab_size: int) -> int:
    """How many tokens top_k keeps; 0: all."""
    k = params.top_k or 0
    return k if k < limit_of(params, vocab_size) else 0


def adjusts(params: SamplingParams) -> bool:
    """Whether a row has penalties or a bias, which change the logits before the draw."""
    penalties = params.presence_penalty or params.frequency_penalty
    return params.repetition_penalty != 1 or bool(penalties or params.logit_bias)


def ints_of(row: Row, vocab_size: int) -> list[int]:
    """A row's values for INTS, without the position."""
    p, V = row.params, vocab_size
    greedy = p.temperature == 0
    return [len(row.tokens), signed(row.key), top_k_of(p, V), limit_of(p, V), greedy]


def floats_of(p: SamplingParams) -> list[float]:
    """A row's values for FLOATS. A setting that is not used gets the value without effect, because
    other rows of the step may use it."""
    return [
        max(p.temperature, 1e-6) if p.temperature > 0 else 1.0,
        p.top_p if p.top_p < 1 else inf,
        log(p.min_p) if p.min_p > 0 else -inf,
        *(p.repetition_penalty, p.presence_penalty, p.frequency_penalty),
    ]


def to_device(numbers: Sequence, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers as a tensor, without waiting for the device, as torch.tensor(device=...) would."""
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)


class Rows:
    """Rows on a device: their last tokens, positions and settings, by slot.

    token (B, 1); for each name in INTS and FLOATS an attribute (B,), a column of a table.
    """

    def __init__(self, batch: int, vocab_size: int, device: torch.device):
        self.vocab_size, self.device = vocab_size, device
        self.token = torch.zeros((batch, 1), dtype=torch.int64, device=device)
        self.ints = torch.zeros((batch, len(INTS)), dtype=torch.int64, device=device)
        self.floats = torch.zeros((batch, len(FLOATS)), device=device)
        self.texts: Texts | None = None  # made for the first row that needs it
        self.put(range(batch), [Row((0,), NEUTRAL)] * batch, [0] * batch)

    def __getattr__(self, name: str) -> torch.Tensor:
        if name in INTS:
            return self.ints[:, INTS.index(name)]
        if name in FLOATS:
            return self.floats[:, FLOATS.index(name)]
        raise AttributeError(name)

    def put(self, slots: Sequence[int], rows: Sequence[Row], positions: Sequence[int]) -> None:
        """Put rows into these slots, no slot twice. The last token of a row is the next one that
        the model reads, at the row's position. All rows are written with the same few copies."""
        ints, floats = [], []
        for slot, row, pos in zip(slots, rows, positions):
            last = (row.tokens or row.prompt)[-1]
            ints.append([slot, last, pos, *ints_of(row, self.vocab_size)])
            floats.append(floats_of(row.params))
        ints = to_device(ints, torch.int64, self.device)
        index = ints[:, 0]
        self.token.index_copy_(0, index, ints[:, 1:2])
        self.ints.index_copy_(0, index, ints[:, 2:])
        self.floats.index_copy_(0, index, to_device(floats, torch.float32, self.device))
        if self.texts is None and any(adjusts(row.params) for row in rows):
            with torch.inference_mode(False):  # else `move` fails outside of inference mode
                self.texts = Texts(len(self.token), self.vocab_size, self.device)
        if self.texts is not None:
            self.texts.put(slots, rows, index)

    def move(self, source: int, target: int) -> None:
        """Copy one slot to another."""
        texts = self.texts.all if self.texts is not None else ()
        for x in (self.token, self.ints, self.floats, *texts):
            x[target].copy_(x[source])

    def take(self, tokens: torch.Tensor, draw: Draw) -> None:
        """Take the next tokens (n,) of the first rows; these advance by a step and a position."""
        n = len(tokens)
        # Among logits that are NaN a kernel may choose any number. Looking up the embedding of an
        # invalid id would end the process
        tokens = torch.clamp(tokens, 0, draw.limit - 1, out=self.token[:n, 0])
        self.ints[:n, :2].add_(1)
        if draw.adjusted:
            self.texts.take(tokens)


class Texts:
    """Tables for penalties and biases: which tokens a row's prompt has, how often each is in its
    answer, and its biases."""

    def __init__(self, batch: int, vocab_size: int, device: torch.device):
        self.prompt = torch.zeros((batch, vocab_size), dtype=torch.bool, device=device)
        self.counts = torch.zeros((batch, vocab_size), device=device)  # in the answer
        self.bias = torch.zeros((batch, vocab_size), device=device)
        self.one = torch.ones((batch, 1), device=device)
        self.all = self.prompt, self.counts, self.bias

    def put(self, slots: Sequence[int], rows: Sequence[Row], index: torch.Tensor) -> None:
        """Like `Rows.put`. index: the slots, on the device."""
        for x in self.all:
            x.index_fill_(0, index, 0)
        changed = [(slot, row) for slot, row in zip(slots, rows) if adjusts(row.params)]
        if not changed:
            return
        prompts = self.places((slot, row.prompt) for slot, row in changed)
        answers = self.places((slot, row.tokens) for slot, row in changed)
        biases = [(slot, dict(row.params.logit_bias)) for slot, row in changed]
        values = [float(value) for _, bias in biases for value in bias.values()]
        values = to_device(values, torch.float32, index.device)
        self.prompt.view(-1).scatter_(0, prompts, True)
        self.counts.view(-1).scatter_add_(0, answers, torch.ones(len(answers), device=index.device))
        self.bias.view(-1).scatter_(0, self.places(biases), values)

    def places(self, tokens_of: Iterable[tuple[int, Iterable[int]]]) -> torch.Tensor:
        """The places of slots' tokens in a flattened table (B, V)."""
        V = self.counts.size(1)
        places = [slot * V + token for slot, tokens in tokens_of for token in tokens]
        return to_device(places, torch.int64, self.counts.device)

    def take(self, tokens: torch.Tensor) -> None:
        n = len(tokens)
        self.counts[:n].scatter_add_(1, tokens[:, None], self.one[:n])


# ---- the next tokens ----


def next_tokens(logits: torch.Tensor, rows: Rows, draw: Draw) -> torch.Tensor:
    """Logits (n, V) of the first rows -> their next tokens (n,), those of `sample_next`."""
    n = len(logits)
    if draw.adjusted:
        logits = adjust(logits, rows)
    logits = within_limit(logits, rows, draw)
    if not draw.random:
        return logits.argmax(dim=-1)
    kernels = load_kernels(logits.device) if logits.is_cuda else None
    if kernels and not draw.top_p:  # the kernels do not sort a row, which top_p needs
        filters = (rows.top_k[:n], rows.log_min_p[:n]) if draw.filters else ()
        of_rows = rows.key[:n], rows.step[:n], rows.temperature[:n]
        drawn = kernels.draw(logits, None, *of_rows, *filters)
    else:
        drawn = drawn_from(*candidates(logits, rows, draw), rows, kernels)
    if draw.greedy:
        drawn = torch.where(rows.greedy[:n] == 1, logits.argmax(dim=-1), drawn)
    return drawn


def adjust(logits: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Logits (n, V) with each row's penalties and bias, like sampling.py's `adjust`."""
    n, texts = len(logits), rows.texts
    counts, penalty = texts.counts[:n], rows.repetition[:n, None]
    answered = counts > 0
    less = torch.where(logits > 0, logits / penalty, logits * penalty)
    logits = torch.where(texts.prompt[:n] | answered, less, logits)
    logits = logits - (rows.presence[:n, None] * answered + rows.frequency[:n, None] * counts)
    return logits + texts.bias[:n]


def within_limit(logits: torch.Tensor, rows: Rows, draw: Draw) -> torch.Tensor:
    """Logits (n, V) -> logits (n, limit), -inf for tokens that a row may not choose."""
    logits = logits[:, : draw.limit]
    if draw.limited:
        places = torch.arange(draw.limit, device=logits.device)
        logits = logits.masked_fill(places >= rows.limit[: len(logits), None], -inf)
    return logits


def candidates(logits: torch.Tensor, rows: Rows, draw: Draw):
    """Logits (n, V) -> logits (n, m) divided by the temperature, -inf where filtered out; and their
    ids, or None if these are 0 ... m - 1.

    Like sampling.py's `candidates`. That one looks at a part of the vocabulary for top_p if this
    suffices; here it would have to wait for a number from the device to know.
    """
    n, ids = len(logits), None
    if draw.top_k:
        ordered = draw.ranked or draw.top_p  # sorting takes half of topk's time
        logits, ids = torch.topk(logits, draw.top_k, sorted=ordered)
    elif draw.ranked or draw.top_p:
        logits, ids = logits.sort(dim=-1, descending=True, stable=True)
    if draw.ranked:
        k = rows.top_k[:n, None]
        rank = torch.arange(logits.size(1), device=logits.device)
        logits = logits.masked_fill((rank >= k) & (k > 0), -inf)
    logits = logits / rows.temperature[:n, None]
    if draw.top_p:
        probs = (logits - logits.logsumexp(dim=-1, keepdim=True)).exp()
        before = probs.cumsum(dim=-1) - probs  # probability of the likelier tokens
        before[:, 0] = 0  # the likeliest token is always kept
        logits = logits.masked_fill(before >= rows.top_p[:n, None], -inf)
    if draw.min_p:
        least = logits.amax(dim=-1, keepdim=True) + rows.log_min_p[:n, None]
        logits = logits.masked_fill(logits < least, -inf)
    return logits, ids


def drawn_from(kept: torch.Tensor, ids, rows: Rows, kernels: Kernels | None) -> torch.Tensor:
    """Logits and ids from `candidates` -> tokens (n,) of the first rows, like sampling.py's `draw`:
    argmax of logits + noise(key, step, id)."""
    keys, steps = rows.key[: len(kept)], rows.step[: len(kept)]
    if kernels:
        return kernels.draw(kept, ids, keys, steps)
    places = torch.arange(kept.size(1), device=kept.device) if ids is None else ids
    best = kept + noise(splitmix_tensor(keys, steps)[:, None], places)
    best = best.argmax(-1, keepdim=True)
    return (best if ids is None else ids.gather(-1, best)).squeeze(-1)


# ---- log-probabilities ----


def packed_scores(
    logits: torch.Tensor, tokens: torch.Tensor, rows: Rows, draw: Draw
) -> torch.Tensor:
    """Logits (n, V), tokens (n,) -> (n, 1 + 2 k) float32: log p of each token, then the k likeliest
    ids, then their log p. Like sampling.py's `scores`."""
    logp = F.log_softmax(logits, dim=-1)
    top, ids = torch.topk(within_limit(logp, rows, draw), draw.logprobs)
    # float32 is exact for ids below 2^24
    return torch.cat((logp.gather(-1, tokens[:, None]), ids.float(), top), dim=1)


def unpacked(numbers: list[float], params: SamplingParams) -> Score:
    """The score in one row of `packed_scores`. params: the row's settings."""
    k = len(numbers) // 2
    ids, top = numbers[1 : 1 + k], numbers[1 + k :]
    most = min(params.logprobs, params.vocab_limit or params.logprobs)
    return numbers[0], [(int(i), p) for i, p in zip(ids[:most], top)]
