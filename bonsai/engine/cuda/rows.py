"""The next tokens of rows whose settings are on the device: sampling.py without the host.

sampling.py draws rows with the same settings together and knows each row's tokens as a list. Here
every setting is a number per row, the tokens so far are counted on the device, and rows with
different settings are drawn side by side, so that a captured graph can do it. What stays fixed in a
graph is a `Draw`: which filters there are, and how many tokens they look at.
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
NEUTRAL = SamplingParams(temperature=0)  # of a slot without a request


class Draw(NamedTuple):
    """What a step does to choose tokens, the same for all of its rows."""

    greedy: bool  # some rows take the likeliest token
    random: bool  # some draw
    top_k: int  # tokens to look at; 0: all
    ranked: bool  # rows look at different numbers of them
    limit: int  # ids from here on are never chosen
    limited: bool  # rows have different limits
    top_p: bool
    min_p: bool
    adjusted: bool  # penalties or a bias
    logprobs: int | None  # likeliest tokens to report; None: no log-probabilities either

    @property
    def filters(self) -> bool:
        """Whether rows look at a part of the tokens, by top_k or min_p."""
        return bool(self.top_k or self.ranked or self.min_p)

    @classmethod
    def of(cls, rows: Sequence[Row], vocab_size: int) -> "Draw":
        """What these rows need."""
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
    """Ids below this one may be drawn."""
    return min(params.vocab_limit or vocab_size, vocab_size)


def top_k_of(params: SamplingParams, vocab_size: int) -> int:
    """How many tokens top_k keeps; 0: all."""
    k = params.top_k or 0
    return k if k < limit_of(params, vocab_size) else 0


def adjusts(params: SamplingParams) -> bool:
    """Whether a row changes its logits before it draws."""
    penalties = params.presence_penalty or params.frequency_penalty
    return params.repetition_penalty != 1 or bool(penalties or params.logit_bias)


def ints_of(row: Row, vocab_size: int) -> list[int]:
    """INTS without the position."""
    p, V = row.params, vocab_size
    greedy = p.temperature == 0
    return [len(row.tokens), signed(row.key), top_k_of(p, V), limit_of(p, V), greedy]


def floats_of(p: SamplingParams) -> list[float]:
    """FLOATS. A setting that a row does not use has its neutral value: others may use it."""
    return [
        max(p.temperature, 1e-6) if p.temperature > 0 else 1.0,
        p.top_p if p.top_p < 1 else inf,
        log(p.min_p) if p.min_p > 0 else -inf,
        *(p.repetition_penalty, p.presence_penalty, p.frequency_penalty),
    ]


def to_device(numbers: Sequence, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers as a tensor; torch.tensor by itself would wait until the device has done its work."""
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)


class Rows:
    """Rows on a device: their last tokens, positions and settings, by slot.

    token (B, 1), and of each name in INTS and FLOATS a column: B numbers.
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
        """Rows go on in these slots, which differ: the last token of each is the next to be read,
        at its position. However many they are, they are written at once."""
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
            with torch.inference_mode(False):  # a row may move outside of it
                self.texts = Texts(len(self.token), self.vocab_size, self.device)
        if self.texts is not None:
            self.texts.put(slots, rows, index)

    def move(self, source: int, target: int) -> None:
        """Make one slot what another is."""
        texts = self.texts.all if self.texts is not None else ()
        for x in (self.token, self.ints, self.floats, *texts):
            x[target].copy_(x[source])

    def take(self, tokens: torch.Tensor, draw: Draw) -> None:
        """The next tokens (n,) of the first rows, each one step and one position further."""
        n = len(tokens)
        # among logits that are no numbers a kernel finds anything as the best; to look up an id
        # that is none would end the process
        tokens = torch.clamp(tokens, 0, draw.limit - 1, out=self.token[:n, 0])
        self.ints[:n, :2].add_(1)
        if draw.adjusted:
            self.texts.take(tokens)


class Texts:
    """What penalties and biases need to know: which tokens a row has, and how often."""

    def __init__(self, batch: int, vocab_size: int, device: torch.device):
        self.prompt = torch.zeros((batch, vocab_size), dtype=torch.bool, device=device)
        self.counts = torch.zeros((batch, vocab_size), device=device)  # in the answer
        self.bias = torch.zeros((batch, vocab_size), device=device)
        self.one = torch.ones((batch, 1), device=device)
        self.all = self.prompt, self.counts, self.bias

    def put(self, slots: Sequence[int], rows: Sequence[Row], index: torch.Tensor) -> None:
        """As `Rows.put`. index: the slots on the device."""
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
        """Where the tokens of slots stand in a table whose rows are one after another."""
        V = self.counts.size(1)
        places = [slot * V + token for slot, tokens in tokens_of for token in tokens]
        return to_device(places, torch.int64, self.counts.device)

    def take(self, tokens: torch.Tensor) -> None:
        n = len(tokens)
        self.counts[:n].scatter_add_(1, tokens[:, None], self.one[:n])


# ---- the next tokens ----


def next_tokens(logits: torch.Tensor, rows: Rows, draw: Draw) -> torch.Tensor:
    """Logits (n, V) of the first rows -> their next tokens (n,), as `sample_next` has them."""
    n = len(logits)
    if draw.adjusted:
        logits = adjust(logits, rows)
    logits = within_limit(logits, rows, draw)
    if not draw.random:
        return logits.argmax(dim=-1)
    kernels = load_kernels(logits.device) if logits.is_cuda else None
    if kernels and not draw.top_p:  # for which a row has to be sorted
        filters = (rows.top_k[:n], rows.log_min_p[:n]) if draw.filters else ()
        of_rows = rows.key[:n], rows.step[:n], rows.temperature[:n]
        drawn = kernels.draw(logits, None, *of_rows, *filters)
    else:
        drawn = drawn_from(*candidates(logits, rows, draw), rows, kernels)
    if draw.greedy:
        drawn = torch.where(rows.greedy[:n] == 1, logits.argmax(dim=-1), drawn)
    return drawn


def adjust(logits: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Logits (n, V) with each row's penalties and bias, as sampling.py's `adjust`."""
    n, texts = len(logits), rows.texts
    counts, penalty = texts.counts[:n], rows.repetition[:n, None]
    answered = counts > 0
    less = torch.where(logits > 0, logits / penalty, logits * penalty)
    logits = torch.where(texts.prompt[:n] | answered, less, logits)
    logits = logits - (rows.presence[:n, None] * answered + rows.frequency[:n, None] * counts)
    return logits + texts.bias[:n]


def within_limit(logits: torch.Tensor, rows: Rows, draw: Draw) -> torch.Tensor:
    """Logits (n, V) -> logits (n, limit) of the tokens that may be chosen, -inf for others."""
    logits = logits[:, : draw.limit]
    if draw.limited:
        places = torch.arange(draw.limit, device=logits.device)
        logits = logits.masked_fill(places >= rows.limit[: len(logits), None], -inf)
    return logits


def candidates(logits: torch.Tensor, rows: Rows, draw: Draw):
    """Logits (n, V) -> logits (n, m) over the temperature, -inf where filtered out; ids or None.

    As sampling.py's `candidates`, which looks at a part of the vocabulary for top_p where that is
    enough; that would be a look at a number on the device.
    """
    n, ids = len(logits), None
    if draw.top_k:
        ordered = draw.ranked or draw.top_p  # a sort takes as long as all else of it
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
        before[:, 0] = 0  # never the likeliest
        logits = logits.masked_fill(before >= rows.top_p[:n, None], -inf)
    if draw.min_p:
        least = logits.amax(dim=-1, keepdim=True) + rows.log_min_p[:n, None]
        logits = logits.masked_fill(logits < least, -inf)
    return logits, ids


def drawn_from(kept: torch.Tensor, ids, rows: Rows, kernels: Kernels | None) -> torch.Tensor:
    """What `candidates` gives -> tokens (n,) of the first rows, as sampling.py's `draw`: argmax of
    the logits and the noise of (key, step, id)."""
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
    """Logits (n, V), tokens (n,) -> (n, 1 + 2 k) fp32: log p of each token; the k likeliest ids and
    their log p. As sampling.py's `scores`."""
    logp = F.log_softmax(logits, dim=-1)
    top, ids = torch.topk(within_limit(logp, rows, draw), draw.logprobs)
    return torch.cat((logp.gather(-1, tokens[:, None]), ids.float(), top), dim=1)  # ids below 2^24


def unpacked(numbers: list[float], params: SamplingParams) -> Score:
    """The score of one row of `packed_scores`, for a row with these settings."""
    k = len(numbers) // 2
    ids, top = numbers[1 : 1 + k], numbers[1 + k :]
    most = min(params.logprobs, params.vocab_limit or params.logprobs)
    return numbers[0], [(int(i), p) for i, p in zip(ids[:most], top)]
