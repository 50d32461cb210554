"""bonsai/engine/prefill_decode.py: one way to logits, whatever the cache, dtype and step."""

import pytest
import torch
from helpers.tiny_model import BLOCK, VOCAB, texts, tiny

from bonsai.engine import SamplingParams
from bonsai.engine.prefill_decode import (
    all_logits,
    check_request,
    compute_dtype,
    decode_one_token,
    new_cache,
    power_of_two,
    prefill,
)
from bonsai.system.errors import UserError
from model import GPT


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny()


@pytest.mark.parametrize("half_stream", [False, True])
def test_generate_under_autocast(model, half_stream):
    model.config.bfloat16_stream = half_stream
    assert compute_dtype(model) == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compute_dtype(model) == torch.bfloat16
        (row,) = texts(model, [1, 2], max_new_tokens=2 * BLOCK)
        (uncached,) = texts(model, [1, 2], max_new_tokens=1, use_cache=False)
    assert len(row) == 2 * BLOCK and row[:1] == uncached


@torch.no_grad()
def test_a_prompt_in_pieces_is_the_prompt_in_one(model):
    idx = torch.randint(VOCAB, (2, BLOCK), generator=torch.Generator().manual_seed(2))
    want = model(idx, idx)[0]
    torch.testing.assert_close(prefill(model, idx), want[:, -1])  # no cache
    cache = new_cache(model, 2, BLOCK)
    torch.testing.assert_close(prefill(model, idx[:, :3], cache), want[:, 2], atol=1e-4, rtol=0)
    got = all_logits(model, idx[:, 3:8], cache)
    torch.testing.assert_close(got, want[:, 3:8], atol=1e-4, rtol=0)
    got = decode_one_token(model, idx[:, 8:9], cache)
    torch.testing.assert_close(got, want[:, 8], atol=1e-4, rtol=0)
    assert cache.lengths == [9, 9]


def test_sizes_of_buckets_are_powers_of_two_between_bounds():
    assert [power_of_two(n, 4, 48) for n in (1, 4, 5, 8, 9, 33, 48)] == [4, 4, 8, 8, 16, 48, 48]
    assert power_of_two(1, 1, 5) == 1


@pytest.mark.parametrize(
    "prompt, n, options, says",
    [
        ([], 1, {}, "the prompt is empty"),
        ([1, VOCAB], 1, {}, f"token {VOCAB} is outside the model's vocabulary of {VOCAB}"),
        ([-1], 1, {}, "token -1 is outside"),
        ([1], 0, {}, "n=0 must be at least 1"),
        ([1], 1, {"logit_bias": {VOCAB: 1.0}}, f"logit_bias: token {VOCAB} is outside"),
    ],
)
def test_what_a_model_of_this_vocabulary_cannot_do(prompt, n, options, says):
    with pytest.raises(UserError, match=says):
        check_request(prompt, SamplingParams(**options), n, VOCAB)
    check_request([0, VOCAB - 1], SamplingParams(logit_bias={VOCAB - 1: 1.0}), 1, VOCAB)
