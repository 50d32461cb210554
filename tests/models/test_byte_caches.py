"""bonsai/models/byte_caches.py: a model of bytes with its cache is the model without."""

import math
from itertools import pairwise

import pytest
import torch
from helpers.byte_models import ALL, B, P, batch, chosen, every, logits_of, make

STARTS = {"megabyte": (1, 2, 3, 5, 8, 11), "spacebyte": (1, 2, 6, 11)}  # lengths of the prompt
CASES = [
    pytest.param(name, fields, start, id=f"{start}-{name}, {variant}")
    for name, variant, fields in ALL
    for start in STARTS[name]
]


def read(model, cache, idx: torch.Tensor, ends: list[int]) -> None:
    """Read idx up to each of `ends` in turn; holds the logits to those of all bytes at once."""
    for a, b in pairwise([0, *ends]):
        cached, _ = model(idx[:, a:b], cache=cache)
        whole = logits_of(model, idx[:, :b])[:, -1:]
        torch.testing.assert_close(cached, whole, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(idx[:, :b])[0], whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name, fields, start", CASES)
@torch.no_grad()
def test_cached_equals_whole_at_every_length(name, fields, start):
    """A prompt that ends anywhere in a patch, then byte by byte, and several at once; rows whose
    patches begin at different places, in one cache."""
    model, T = make(name, **fields), {"megabyte": 3 * P + 9, "spacebyte": 36}[name]
    singles = T if name == "megabyte" else 30
    ends = [*range(start, singles + 1), *([T] if singles < T else [])]
    read(model, model.new_cache(B, T), batch(name, T), ends)


@every
@torch.no_grad()
def test_several_bytes_at_a_time_behind_others(name, fields):
    model, idx = make(name, **fields), batch(name, 24)
    cache = model.new_cache(B, 24)
    read(model, cache, idx, [3, 7, 8, 12, 13, 24])
    cache.reset()  # and anew
    read(model, cache, idx[:, 5:], [7])


@pytest.mark.parametrize("fields", [{}, dict(cross_patch=2)], ids=str)
def test_the_global_model_steps_once_per_patch(fields):
    model, idx, calls = make("megabyte", **fields), batch("megabyte", 24), []
    model.globl.register_forward_pre_hook(lambda m, args: calls.append(args[0].size(1)))
    with torch.no_grad():
        cache = model.new_cache(B, 24)
        model(idx[:, :6], cache=cache)
        assert sum(calls) == 2
        for t in range(6, 24):
            model(idx[:, t : t + 1], cache=cache)
            assert sum(calls) == cache.globl.used == math.ceil((t + 1) / P)
            assert cache.local.used == t % P + 1 <= P
    assert cache.local.k.size(3) == P + model.config.cross_patch


def test_global_blocks_run_where_patches_begin():
    model, idx, calls = make("spacebyte"), batch("spacebyte", 36)[:1], []
    model.globl.register_forward_pre_hook(lambda m, args: calls.append(args[0].size(1)))
    with torch.no_grad():
        cache = model.new_cache(1, 36)
        model(idx[:, :9], cache=cache)
        for t in range(9, 36):
            model(idx[:, t : t + 1], cache=cache)
            assert sum(calls) == chosen(model, idx[:, : t + 1]).sum() == cache.globl.lengths[0]
