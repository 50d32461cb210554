"""How the next token is chosen: settings, penalties, filters, and noise.

The noise of a draw is a pure function of (seed, row, step, token id). There is no random generator
with a state, so what a request draws depends neither on its neighbours nor on the device.
"""

import copy
import functools
import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, log

import torch
from torch.nn import functional as F

from bonsai.system.errors import UserError
from bonsai.system.hashing import signed, splitmix, splitmix_bits


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen, and for how long. Raises UserError for impossible values."""

    max_new_tokens: int = 500
    temperature: float = 1.0  # logits are divided by it; 0: always the likeliest token
    top_k: int | None = 0  # keep the k likeliest tokens; 0 or None: all
    top_p: float = 1.0  # keep the fewest tokens that together have this probability; 1: all
    seed: int = 1337  # fixes the noise, together with the row's number and the step
    stop_tokens: Sequence[int] = ()  # ids that end a row; they are not part of its text
    vocab_limit: int | None = None  # ids from here on are padding and never chosen
    min_p: float = 0.0  # keep tokens with at least this share of the likeliest's probability
    repetition_penalty: float = 1.0  # divides positive logits of tokens in prompt or answer
    presence_penalty: float = 0.0  # subtracted from the logits of tokens in the answer
    frequency_penalty: float = 0.0  # subtracted from them once for each occurrence
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()  # added to a token's logit
    logprobs: int | None = None  # also report log-probabilities, and this many likeliest tokens'
    prompt_logprobs: bool = False  # also report those of the prompt's tokens

    def __post_init__(self) -> None:
        bias = self.logit_bias
        pairs = tuple(bias.items() if isinstance(bias, Mapping) else map(tuple, bias))
        object.__setattr__(self, "logit_bias", pairs)
        if self.max_new_tokens < 0:
            raise UserError(f"max_new_tokens={self.max_new_tokens} must be at least 0")
        if not 0 <= self.temperature < inf:
            raise UserError(f"temperature={self.temperature} must be at least 0 (0 is greedy)")
        if (self.top_k or 0) < 0:
            raise UserError(f"top_k={self.top_k} must be at least 0 (0 keeps all tokens)")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be above 0 and at most 1 (1 keeps all)")
        if self.vocab_limit is not None and self.vocab_limit < 1:
            raise UserError(f"vocab_limit={self.vocab_limit} must be at least 1")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p={self.min_p} must be between 0 (keeps all) and 1")
        if not 0 < self.repetition_penalty < inf:
            penalty = self.repetition_penalty
            raise UserError(f"repetition_penalty={penalty} must be above 0 (1 changes nothing)")
        for name in ("presence_penalty", "frequency_penalty"):
            if not isfinite(getattr(self, name)):
                raise UserError(f"{name}={getattr(self, name)} must be a finite number")
        for token, value in pairs:
            if token < 0 or not isfinite(value):
                raise UserError(f"logit_bias: {token}={value} must be a token id and a number")
        if (self.logprobs or 0) < 0:
            raise UserError(f"logprobs={self.logprobs} must be at least 0")

    @property
    def filters(self) -> tuple:
        """What rows must have in common to be drawn together."""
        return self.temperature, self.top_k or 0, self.top_p, self.min_p, self.vocab_limit


@dataclass(eq=False)
class Row:
    """One answer in the making: what choosing its next token needs to know."""

    prompt: Sequence[int]
    params: SamplingParams
    row: int = 0  # number among the answers to this prompt
    tokens: list[int] = field(default_factory=list)  # the answer so far

    def __post_init__(self) -> None:
        # of both: seed + row would give row 1 of seed 1 the noise of row 0 of seed 2
        self.key = random.Random(f"{self.params.seed} {self.row}").getrandbits(64)
        self._counts: dict[int, int] = {}  # of the first `_counted` tokens
        self._counted = 0

    def counts(self) -> dict[int, int]:
        """How often each token occurs in the answer. Called at every step, it counts only what is
        new: an answer may have a hundred thousand tokens."""
        for token in self.tokens[self._counted :]:
            self._counts[token] = self._counts.get(token, 0) + 1
        self._counted = len(self.tokens)
        return self._counts

    @functools.cached_property
    def of_prompt(self) -> frozenset[int]:
        """The tokens that occur in the prompt."""
        return frozenset(self.prompt)

    def extended(self, tokens: Sequence[int]) -> "Row":
        """A copy of the row with more tokens."""
        row = copy.copy(self)
        row.tokens, row._counts = [*self.tokens, *tokens], dict(self._counts)
        return row


class RowNumbers:
    """The numbers of further answers to prompts that were asked before. A prompt that stands twice
    in a list gets two samples; with the same row it would get one and a copy.

    >>> numbers = RowNumbers()
    >>> numbers.take("a", 2), numbers.take("b"), numbers.take("a")
    (0, 0, 2)
    """

    def __init__(self) -> None:
        self.taken: Counter[Hashable] = Counter()

    def take(self, prompt: Hashable, n: int = 1) -> int:
        """The first of the next n rows of a prompt."""
        first = self.taken[prompt]
        self.taken[prompt] += n
        return first


# ---- the distribution ----


def adjust(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Logits (n, V) with each row's penalties and bias; the argument itself is not changed.

    First the repetition penalty (Keskar et al. 2019, CTRL, section 4.1), then presence and
    frequency penalties (as in OpenAI's API, over the answer's tokens), then the bias.
    """
    changed = None
    for i, row in enumerate(rows):
        p = row.params
        edits = []
        if p.repetition_penalty != 1 and (seen := {*row.of_prompt, *row.counts()}):
            edits.append((list(seen), None))
        if (p.presence_penalty or p.frequency_penalty) and row.tokens:
            counts = row.counts()
            less = [-p.presence_penalty - p.frequency_penalty * c for c in counts.values()]
            edits.append((list(counts), less))
        if p.logit_bias:
            edits.append(([t for t, _ in p.logit_bias], [b for _, b in p.logit_bias]))
        if edits and changed is None:
            logits = changed = logits.clone()
        for ids, plus in edits:
            index = torch.tensor(ids, device=logits.device)
            x = logits[i, index]
            if plus is None:
                x = torch.where(x > 0, x / p.repetition_penalty, x * p.repetition_penalty)
            else:
                x = x + torch.tensor(plus, device=x.device)
            logits[i, index] = x
    return logits


NUCLEUS = 1024  # top_p looks at this many tokens before it sorts the whole vocabulary


def candidates(
    logits: torch.Tensor, params: SamplingParams
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits (n, V) -> logits (n, m) divided by the temperature, -inf where filtered out; and ids.

    ids (n, m) say which tokens these are; None: 0 ... m - 1. The filters apply in this order:
    vocab_limit, top_k, temperature, top_p (nucleus sampling, Holtzman et al. 2019, over the
    probabilities that top_k has left), min_p (Nguyen et al. 2024).
    """
    logits = logits[:, : params.vocab_limit].float()
    V, ids = logits.size(-1), None
    if params.top_k and params.top_k < V:  # before the temperature, which does not change the order
        logits, ids = torch.topk(logits, params.top_k)  # descending
    logits = logits / max(params.temperature, 1e-6)  # no overflow
    if params.top_p < 1:
        total = logits.logsumexp(dim=-1, keepdim=True)
        if ids is None and V > 2 * NUCLEUS:
            top, index = torch.topk(logits, NUCLEUS)
            if bool(((top - total).exp().sum(-1) > params.top_p).all()):
                logits, ids = top, index
        if ids is None:
            logits, ids = logits.sort(dim=-1, descending=True, stable=True)
        probs = (logits - total).exp()
        before = probs.cumsum(dim=-1) - probs  # probability of all likelier tokens
        before[:, 0] = 0  # the likeliest token always stays
        logits = logits.masked_fill(before >= params.top_p, -inf)
    if params.min_p > 0:
        least = logits.amax(dim=-1, keepdim=True) + log(params.min_p)
        logits = logits.masked_fill(logits < least, -inf)
    return logits, ids


# ---- the draw ----


def noise(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Gumbel noise, fp32, for tokens `ids` in draws with `keys` (int64, broadcast together).

    A key begins a stream of random bits; 24 of them at place `ids` make a uniform number u in
    (0, 1), and -log(-log(1 - u)) has the Gumbel distribution.
    """
    minus_u = splitmix_bits(keys, ids).float().mul_(-(2**-24)).sub_(2**-25)
    return minus_u.log1p_().neg_().log_().neg_()


def step_key(key: int, step: int) -> int:
    """The key of a row's draw number `step`, as int64."""
    return signed(splitmix(key, step))


def sample_next(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Logits (n, V) -> next tokens (n,), one for each row.

    argmax(log p + Gumbel noise) is a draw from p (Gumbel 1954). Rounding errors in p change the
    draw only if the two largest of these sums are that close.
    """
    logits = adjust(logits, rows)
    groups: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.params.filters, []).append(i)
    if len(groups) == 1:
        return draw(logits, rows)
    tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    for members in groups.values():
        index = torch.tensor(members, device=logits.device)
        tokens[index] = draw(logits[index], [rows[i] for i in members])
    return tokens


def draw(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Next tokens (n,) of rows with the same filters."""
    params = rows[0].params
    if params.temperature == 0:
        return logits[:, : params.vocab_limit].argmax(dim=-1)
    kept, ids = candidates(logits, params)
    keys = [[step_key(row.key, len(row.tokens))] for row in rows]
    places = torch.arange(kept.size(-1), device=kept.device) if ids is None else ids
    best = (kept + noise(torch.tensor(keys, device=kept.device), places)).argmax(-1, keepdim=True)
    return (best if ids is None else ids.gather(-1, best)).squeeze(-1)


# ---- log-probabilities ----

# log p of a token, and (id, log p) of the likeliest ones
Score = tuple[float | None, list[tuple[int, float]] | None]


def scores(logits: torch.Tensor, tokens: Sequence[int], k: int, limit: int | None) -> list[Score]:
    """For each row of logits (n, V): log p of its token, and of the k likeliest, in nats.

    p is the model's own: softmax over all logits, without temperature, penalties and filters.
    limit: ids from here on are not counted among the likeliest.
    """
    logp = F.log_softmax(logits.float(), dim=-1)
    token_logp = logp.gather(-1, torch.tensor(tokens, device=logp.device)[:, None])[:, 0].tolist()
    top, ids = torch.topk(logp[:, :limit], min(k, logp[:, :limit].size(-1)))
    return [(p, list(zip(i, t))) for p, i, t in zip(token_logp, ids.tolist(), top.tolist())]
