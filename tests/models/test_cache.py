"""bonsai/models/cache.py: a GPT with its cache is the GPT without, for rows of any lengths."""

import pytest
import torch
from helpers.tiny_model import BLOCK, VARIANTS, VOCAB, tiny

from model import GPT


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny()


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope", "none"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_cached_logits_equal_uncached_at_every_length(position, variant):
    model = tiny(position=position, **VARIANTS[variant])
    idx = torch.randint(VOCAB, (2, BLOCK), generator=torch.Generator().manual_seed(1))
    want = model(idx, idx)[0]  # (B, T, V): with targets, every position's
    for chunks in ([1] * BLOCK, [7] + [1] * 9, [3, 4, 1, 2, 6], [BLOCK]):
        cache, end = model.new_cache(2, BLOCK), 0
        for size in chunks:
            got = model(idx[:, end : end + size], cache=cache)[0]
            end += size
            assert cache.used == end
            torch.testing.assert_close(got[:, -1], want[:, end - 1], atol=1e-4, rtol=0)


def test_a_cache_in_bfloat16_stays_close(model):
    idx = torch.randint(VOCAB, (1, BLOCK))
    with torch.inference_mode():
        cache = model.new_cache(1, BLOCK, dtype=torch.bfloat16)
        got = [model(idx[:, [t]], cache=cache)[0][:, -1] for t in range(BLOCK)]
        want = model(idx, idx)[0]
    torch.testing.assert_close(torch.stack(got, 1), want, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope", "none"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_ragged_cached_logits_equal_uncached_up_to_the_contexts_end(position, variant):
    model = tiny(position=position, **VARIANTS[variant])
    idx = torch.randint(VOCAB, (4, BLOCK), generator=torch.Generator().manual_seed(1))
    want = model(idx, idx)[0]  # (B, T, V)
    for starts in ([1, 9, 4, 9], [7, 7, 7, 7], [3, 1, 2, 5]):
        cache = model.new_cache(4, BLOCK)
        for row, start in enumerate(starts):
            part = cache.view(row, row + 1)
            got = model(idx[row : row + 1, :start], cache=part)[0][0, -1]
            torch.testing.assert_close(got, want[row, start - 1], atol=1e-4, rtol=0)
        cache.lengths = list(starts)
        while cache.used < BLOCK:  # the longest row to its end, two tokens at once in between
            T = 2 if cache.used == max(starts) + 1 else 1
            at = torch.tensor(cache.lengths)[:, None] + torch.arange(T)
            got = model(idx.gather(1, at), cache=cache)[0][:, -1]
            last = want[torch.arange(4), at[:, -1]]
            torch.testing.assert_close(got, last, atol=1e-4, rtol=0)
        assert cache.lengths == [start + BLOCK - max(starts) for start in starts]


@torch.inference_mode()
def test_the_same_memory_for_rows_of_other_lengths():
    model = tiny(bigram_embeddings=2, attention_window=4)
    cache = model.new_cache(2, BLOCK)
    for rows, length in ((1, 5), (4, 8), (7, 4), (2, BLOCK)):
        part, own = cache.reshaped(rows, length), model.new_cache(rows, length)
        idx = torch.randint(VOCAB, (rows, length))
        assert torch.equal(model(idx, cache=part)[0], model(idx, cache=own)[0])
        assert part.lengths == own.lengths and part.length == length
        for name, *_ in cache.buffers:
            x, y = getattr(part, name), getattr(own, name)
            assert torch.equal(x, y) and x.stride() == y.stride()
            assert x.data_ptr() == getattr(cache, name).data_ptr()
    assert cache.lengths == [0, 0]
    with pytest.raises(RuntimeError):
        cache.reshaped(3, BLOCK)


@torch.inference_mode()
def test_rows_copied_together_are_those_copied_one_by_one():
    """And rows of nobody stay as they are."""
    model = tiny(bigram_embeddings=2)
    source, caches = model.new_cache(4, 6), [model.new_cache(5, BLOCK) for _ in range(2)]
    model(torch.randint(VOCAB, (4, 6)), cache=source)
    for rows, lengths in (([3], [6]), ([4, 0, 3], [2, 5, 1]), ([0, 1, 2, 3], [6, 6, 6, 6])):
        caches[0].copy_rows(rows, source, lengths)
        for place, (row, length) in enumerate(zip(rows, lengths)):
            caches[1].copy_row(row, source, place, length)
        assert caches[0].lengths == caches[1].lengths
        for row, length in enumerate(caches[0].lengths):
            for name, at_rows, at_tokens in caches[0].buffers:
                x, y = (getattr(cache, name).narrow(at_rows, row, 1) for cache in caches)
                assert torch.equal(*(z.narrow(at_tokens, 0, length) for z in (x, y)))
                assert x.narrow(at_tokens, 0, length).any() == bool(length)
    assert not any(
        getattr(caches[0], n).narrow(t, 6, BLOCK - 6).any() for n, _, t in source.buffers
    )


def test_rows_can_be_copied_and_viewed(model):
    cache = model.new_cache(3, 10)
    model(torch.tensor([[1, 2, 3, 4]]), cache=cache.view(2, 3))
    assert cache.lengths == [0, 0, 0]  # a view counts for itself
    cache.copy_row(0, cache, 2, 3)
    assert cache.lengths == [3, 0, 0]
    assert torch.equal(cache.k[:, 0, :, :3], cache.k[:, 2, :, :3])
    assert not cache.k[:, 0, :, 3:].any()
