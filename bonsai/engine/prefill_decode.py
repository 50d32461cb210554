"""The two phases of inference, prefill and one-token steps, with a cache or without; and what they
need: a new cache, steps of few fixed shapes, and the check of a request."""

import sys
import weakref
from collections.abc import Sequence

import torch

from bonsai.engine.sampling import SamplingParams
from bonsai.models.cache import Cache, KVCache, TokenCache
from bonsai.models.edits import MODEL, edited, say
from bonsai.models.megabyte import Megabyte
from bonsai.models.spacebyte import Spacebyte
from bonsai.system.errors import UserError, kept_from_compiling, one_line
from model import GPT, dtype_of_products


def prefill(model: torch.nn.Module, idx: torch.Tensor, cache=None) -> torch.Tensor:
    """idx (B, T), tokens after those in the cache -> logits (B, V) of what follows them."""
    if isinstance(cache, TokenCache):
        return cache.forward(model, idx)
    return model(idx, cache=cache)[0][:, -1] if cache is not None else model(idx)[0][:, -1]


def all_logits(model: torch.nn.Module, idx: torch.Tensor, cache) -> torch.Tensor:
    """As prefill, but logits after each of the tokens, (B, T, V). The rows are equally long."""
    if isinstance(cache, TokenCache):
        cache.append(idx)
        seen = cache.ids[:, : cache.lengths[0]]
        return model(seen, seen)[0][:, -idx.size(1) :]
    return model(idx, idx, cache=cache)[0]


def decode_one_token(model: torch.nn.Module, idx: torch.Tensor, cache) -> torch.Tensor:
    """idx (B, 1), the tokens after those in the cache -> logits (B, V) of what follows them.

    The computation is that of prefill; only the cache makes it cheap.
    """
    return prefill(model, idx, cache)


class CompiledStep:
    """decode_one_token through torch.compile; on CUDA every step is the replay of one CUDA graph.

    A compiled step has fixed shapes and addresses, see `bucket`; each bucket is compiled when it is
    first needed, which takes a while. If the compiler cannot write its files, because the disk is
    full, say, the steps of a bucket run uncompiled.
    """

    def __init__(self, model: torch.nn.Module, cache):
        if not isinstance(cache, KVCache):
            raise UserError("compile=True needs a model with a cache of keys and values")
        device = cache.k.device
        batch = len(cache.lengths)
        self.cache, self.buckets = cache, {}
        self.idx = torch.zeros((batch, 1), dtype=torch.int64, device=device)
        self.pos = torch.zeros(batch, dtype=torch.int64, device=device)
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        self.plain = lambda idx, rows: decode_one_token(model, idx, rows)
        self.step = torch.compile(self.plain, mode=mode, fullgraph=True, dynamic=False)

    def __call__(self, tokens: list[int], lengths: list[int]) -> torch.Tensor:
        """The last tokens of the first rows, and the rows' lengths -> logits (B, V)."""
        n = len(tokens)
        rows, positions = bucket(self.cache, lengths)
        idle = [0] * (rows - n)  # free slots compute something, too, at position 0
        inputs = torch.tensor([tokens + idle, lengths + idle])
        inputs = inputs.to(self.idx.device, non_blocking=True)
        self.idx[:rows, 0], self.pos[:rows] = inputs[0], inputs[1]
        if (rows, positions) not in self.buckets:
            idx, part = self.idx[:rows], fixed_view(self.cache, rows, positions)
            part.pos = self.pos[:rows]
            written = [getattr(part, name) for name, *_ in part.buffers]
            for buffer in (*written, part.pos, idx):
                torch._dynamo.mark_static_address(buffer)  # steps write to it: else no CUDA graph
            self.buckets[rows, positions] = self.step, idx, part
        step, idx, part = self.buckets[rows, positions]
        torch.compiler.cudagraph_mark_step_begin()
        try:
            with torch._dynamo.config.patch(recompile_limit=64):  # one per bucket
                return step(idx, part)[:n]
        except RuntimeError as e:
            if not (said := kept_from_compiling(e)):
                raise
        shape = f"steps of {rows} rows and {positions} positions"
        print(f"{shape} are not compiled, slower: {one_line(said)}", file=sys.stderr)
        self.buckets[rows, positions] = self.plain, idx, part
        return self.plain(idx, part)[:n]


# ---- steps of fixed shapes ----

SHORTEST = 128  # positions of the smallest bucket


def bucket(cache: KVCache, lengths: Sequence[int]) -> tuple[int, int]:
    """How many rows and positions a step computes when the first rows hold `lengths` tokens.

    Both are rounded up to a power of two, so that there are few shapes. Free slots among the rows
    compute something that nobody reads; positions come from a tensor, and all that lies after a
    row's position is masked.
    """
    rows = power_of_two(len(lengths), 1, len(cache.lengths))
    return rows, power_of_two(max(lengths) + 1, SHORTEST, cache.length)


def fixed_view(cache: KVCache, rows: int, positions: int) -> KVCache:
    """The part of a cache that such a step reads and writes; the caller sets its `pos`."""
    part = cache.view(0, rows, positions)
    part.lengths = [0] * rows
    return part


def power_of_two(n: int, least: int, most: int) -> int:
    """n rounded up to a power of two between bounds."""
    return min(most, max(least, 1 << (n - 1).bit_length()))


def new_cache(model: torch.nn.Module, batch: int, length: int, dtype=None) -> Cache:
    """A cache for the model, by default in the dtype in which keys and values are computed. Says
    so if a model that was edited gives other results with a cache."""
    if model not in compared:
        compared.add(model)
        if differs_with_cache(model):
            say(
                "with a cache of keys and values this model gives other results than without: only "
                "sample.py --kv_cache=False is right"
            )
    return model.new_cache(batch, length, dtype or compute_dtype(model))


compared: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


@torch.no_grad()
def differs_with_cache(model: torch.nn.Module) -> bool:
    """Whether 16 tokens read at once give other results than four and one at a time with a cache.
    So it is with an edited model if a token depends on those before in other ways than by keys and
    values."""
    if type(model) in (GPT, Megabyte, Spacebyte) and not any(map(edited, MODEL)):
        return False
    try:
        most = min(16, model.config.block_size)
        device = next(model.parameters()).device
        idx = torch.arange(most, device=device)[None] * 7 % model.config.vocab_size
        cache = model.new_cache(1, most, compute_dtype(model))
        parts = (idx[:, :4], *idx[:, 4:].split(1, dim=1))
        got = torch.stack([prefill(model, part, cache) for part in parts], 1)
        want = model(idx, idx)[0][:, 3:]
    except Exception:  # what cannot be read like this says so itself where it is used
        return False
    # with int8 weights rounding is up to 0.1
    return bool((got - want).abs().max() > 0.15 * want.std())


def compute_dtype(model: torch.nn.Module) -> torch.dtype:
    """The dtype of computed keys and values: autocast's if that is on, else the weights'."""
    return dtype_of_products(next(model.parameters()))


def check_request(prompt: Sequence[int], params: SamplingParams, n: int, vocab_size: int) -> None:
    """Raise UserError for a request that a model with this vocabulary cannot answer."""
    if not prompt:
        raise UserError("the prompt is empty: give at least one token to continue")
    for token in prompt:
        if not 0 <= token < vocab_size:
            raise UserError(f"token {token} is outside the model's vocabulary of {vocab_size}")
    if n < 1:
        raise UserError(f"n={n} must be at least 1")
    for token, _ in params.logit_bias:
        if token >= vocab_size:
            raise UserError(f"logit_bias: token {token} is outside the vocabulary of {vocab_size}")
