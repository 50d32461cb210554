"""Tokens from a model: one prefill, then one-token steps over a cache of keys and values.

The engine sees token ids only; text and tokenizers stay outside.

    params = SamplingParams(max_new_tokens=100, temperature=0.8, top_k=200)
    for tokens in generate(model, prompt_ids, params, n=4):  # [17, 4, 4, 52]: one new id per row
        ...

Each row draws from a random stream of its own, so that in float32 a row gets the same tokens alone
or beside others, cached or not, except where two tokens are closer than rounding.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from bonsai.errors import UserError

# What to do when the context holds block_size tokens and another is wanted:
ON_FULL = {
    "slide": "recompute the last block_size tokens for every token, as nanoGPT does: exact, slow",
    "refill": "keep the last half of the context, compute it once and go on cached: fast",
    "stop": "end the text",
}


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen, and for how long. Raises UserError for impossible values."""

    max_new_tokens: int = 500
    temperature: float = 1.0  # logits are divided by it; 0: always the likeliest token
    top_k: int | None = 0  # keep the k likeliest tokens (and ties of the last); 0 or None: all
    top_p: float = 1.0  # keep the fewest likeliest tokens that have this much probability; 1: all
    seed: int = 1337  # with the row's number it fixes the row's random stream
    stop_tokens: Sequence[int] = ()  # ids that end a row; they are not part of its text
    vocab_limit: int | None = None  # ids from here on are padding and never chosen

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise UserError(f"max_new_tokens={self.max_new_tokens} must be at least 0")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature={self.temperature} must be at least 0 (0 is greedy)")
        if (self.top_k or 0) < 0:
            raise UserError(f"top_k={self.top_k} must be at least 0 (0 keeps all tokens)")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be above 0 and at most 1 (1 keeps all)")
        if self.vocab_limit is not None and self.vocab_limit < 1:
            raise UserError(f"vocab_limit={self.vocab_limit} must be at least 1")


def generate(
    model: torch.nn.Module,
    prompt: Sequence[int],
    params: SamplingParams,
    n: int = 1,
    use_cache: bool = True,
    on_full: str = "slide",
    first_row: int = 0,
    dtype: torch.dtype | None = None,
) -> Iterator[list[int | None]]:
    """Continue `prompt` n times; yields the new token of each of the n rows, step by step.

    A row that has drawn a stop token yields None from then on (the stop token itself is not
    yielded); the iterator ends after max_new_tokens steps or the step at which the last row
    stopped. Of a prompt longer than the context its last block_size tokens count.

    use_cache: False recomputes the context for every token; the tokens are the same.
    on_full: a key of ON_FULL.
    first_row: number of the first row. Row 7 is the same drawn by (n=8) and by (n=1, first_row=7).
    dtype: of the cache; default: autocast's where it is on, else the weights'.

    The model computes in eval mode without gradients and has its mode back when the iterator ends.
    Raises UserError for an empty prompt, ids outside the vocabulary and unknown values.
    """
    if not prompt:
        raise UserError("the prompt is empty: give at least one token to continue")
    vocab_size = model.config.vocab_size
    for token in prompt:
        if not 0 <= token < vocab_size:
            raise UserError(f"token {token} is outside the model's vocabulary of {vocab_size}")
    if n < 1:
        raise UserError(f"n={n} must be at least 1")
    if on_full not in ON_FULL:
        raise UserError(f"on_full={on_full!r} is not one of {', '.join(ON_FULL)}")
    # the checks above run now, what follows with the first token
    return steps(model, prompt, params, n, use_cache, on_full, first_row, dtype)


@torch.no_grad()  # not inference_mode: there autocast converts every weight anew for each token
def steps(model, prompt, params, n, use_cache, on_full, first_row, dtype):
    """The loop behind `generate`; all arguments checked."""
    device = next(model.parameters()).device
    block_size = model.config.block_size
    begin, end = len(prompt), len(prompt) + params.max_new_tokens
    generators = [row_generator(params.seed, first_row + row, device) for row in range(n)]
    ids = torch.empty((n, end), dtype=torch.int64, device=device)  # prompt and answer of each row
    ids[:, :begin] = torch.tensor(prompt, device=device)
    context = max(0, begin - block_size)  # at step t the model sees ids[:, context:t]
    cache = None
    alive = [True] * n
    was_training = model.training
    model.eval()
    try:
        for t in range(begin, end):
            if t - context > block_size:
                if on_full == "stop":
                    return
                step = getattr(model, "context_step", 1)  # of a model of patches: whole ones go
                keep = block_size if on_full == "slide" else max(1, block_size // 2)
                context += min(-(-(t - keep - context) // step) * step, t - 1 - context)
                if cache is not None:
                    cache.reset()  # every token has a new position
            if t == begin:  # the rows are still equal: compute one
                if use_cache:
                    cache = model.new_cache(1, min(block_size, end), dtype or compute_dtype(model))
                logits = prefill(model, ids[:1, context:t], cache).expand(n, -1)
                if cache is not None:
                    cache.expand(n)
            elif cache is None or cache.used == 0:
                logits = prefill(model, ids[:, context:t], cache)
            else:
                logits = decode_one_token(model, ids[:, t - 1 : t], cache)
            ids[:, t] = sample_next(logits, params, generators)
            tokens = ids[:, t].tolist()  # the only wait for the device
            alive = [a and token not in params.stop_tokens for a, token in zip(alive, tokens)]
            yield [token if a else None for a, token in zip(alive, tokens)]
            if not any(alive):
                return
    finally:
        model.train(was_training)


# ---- the two phases ----


def prefill(model: torch.nn.Module, idx: torch.Tensor, cache=None) -> torch.Tensor:
    """idx (B, T), a whole context -> logits (B, V) of what follows; fills an empty cache."""
    return model(idx, cache=cache)[0][:, -1]


def decode_one_token(model: torch.nn.Module, idx: torch.Tensor, cache) -> torch.Tensor:
    """idx (B, 1), the tokens behind those in the cache -> logits (B, V) of what follows them."""
    return model(idx, cache=cache)[0][:, -1]


def compute_dtype(model: torch.nn.Module) -> torch.dtype:
    """What the keys and values are computed in: autocast's dtype where on, else the weights'."""
    weight = next(model.parameters())
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


# ---- choosing a token ----


def row_generator(seed: int, row: int, device: torch.device) -> torch.Generator:
    """A random stream per (seed, row).

    Seeding with seed + row would give row 1 of seed 1 the stream of row 0 of seed 2.
    """
    mixed = random.Random(f"{seed} {row}").getrandbits(63)
    return torch.Generator(device).manual_seed(mixed)


def next_probs(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Logits (n, V) -> probabilities (n, V or vocab_limit) from which the next tokens are drawn.

    In this order: vocab_limit, temperature (above 0), top_k, top_p (nucleus sampling, Holtzman et
    al. 2019, over the probabilities that top_k left).
    """
    logits = logits[:, : params.vocab_limit].float() / max(params.temperature, 1e-6)  # no overflow
    if params.top_k and params.top_k < logits.size(-1):
        kth = torch.topk(logits, params.top_k).values[:, [-1]]
        logits = logits.masked_fill(logits < kth, -float("inf"))
    probs = F.softmax(logits, dim=-1)
    if params.top_p < 1:
        ordered, index = probs.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered  # probability of the likelier tokens
        ordered = ordered.masked_fill(before >= params.top_p, 0)  # never the likeliest: before is 0
        probs = torch.zeros_like(probs).scatter(-1, index, ordered)
        probs = probs / probs.sum(dim=-1, keepdim=True)
    return probs


def sample_next(
    logits: torch.Tensor, params: SamplingParams, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Logits (n, V) -> next tokens (n,), row i drawn with generators[i]; no device sync.

    With E exponential noise, argmax(p / E) is a draw from p, which is also how torch.multinomial
    does it; drawing E per row keeps rows independent of their neighbours.
    """
    if params.temperature == 0:
        return logits[:, : params.vocab_limit].argmax(dim=-1)
    probs = next_probs(logits, params)
    noise = torch.empty_like(probs)
    for row, generator in zip(noise, generators):
        row.exponential_(generator=generator)
    return (probs / noise).argmax(dim=-1)
