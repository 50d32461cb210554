"""The attention of one-token steps: attention.cpp against torch's, and where it is taken."""

import pytest
import torch
from helpers.tiny_model import tiny
from torch.nn import functional as F

from bonsai.engine import Engine, SamplingParams
from bonsai.engine.cpu import attention, native
from bonsai.engine.cpu.attention import attend

own_kernel = pytest.mark.skipif(not attention.kernels(), reason="no C++ compiler")
B, S = 5, 70
LENGTHS = [70, 1, 33, 64, 2]


def inputs(dtype=torch.float32, channels=64, heads=6, kv_heads=6):
    """One query per row, and keys and values that are part of a larger cache."""
    torch.manual_seed(0)
    qkv = torch.randn(B, 1, heads + 2 * kv_heads, channels).to(dtype).transpose(1, 2)
    cache = torch.randn(2, B + 1, kv_heads, 128, channels).to(dtype)
    k, v = (x[1:, :, :].narrow(2, 0, S) for x in cache)
    return qkv[:, :heads], k, v


def ragged(window: int = S) -> torch.Tensor:
    """Mask (B, 1, 1, S) of rows of LENGTHS that see their last `window` keys."""
    at, ends = torch.arange(S), torch.tensor(LENGTHS)[:, None]
    return ((at < ends) & (at >= ends - window))[:, None, None]


def ours(q, k, v, mask=None, scale=None) -> torch.Tensor:
    """The engine's attention, with torch's scale unless one is given."""
    return attend(q, k, v, mask, 0, scale or q.size(3) ** -0.5, 0.0)


@pytest.fixture
def calls(monkeypatch) -> list:
    """The dtypes of calls of attention.cpp, in turn."""
    seen, kernels = [], attention.kernels()

    def spy(dtype):
        return lambda *arguments: (seen.append(dtype), kernels[dtype](*arguments))

    monkeypatch.setattr(attention, "kernels", lambda: {dtype: spy(dtype) for dtype in kernels})
    return seen


MASKS = {"none": None, "ragged": ragged(), "window": ragged(7), "shared": ragged()[2:3]}


@own_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [16, 32, 48, 64, 96, 128])
@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_one_query_sees_what_torch_shows_it(dtype, channels, kv_heads, mask, calls):
    q, k, v = inputs(dtype, channels, kv_heads=kv_heads)
    mask, gqa = MASKS[mask], kv_heads != 6
    got = ours(q, k, v, mask, 0.3)
    wide = (x.double() for x in (q, k, v))
    want = F.scaled_dot_product_attention(*wide, mask, scale=0.3, enable_gqa=gqa)
    assert calls == [dtype] and got.dtype == dtype
    error = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(got.double(), want, atol=error, rtol=error / 2)


@own_kernel
def test_large_and_broken_scores_are_as_torchs(calls):
    q, k, v = inputs()
    q, k, v = q * 100, k.clone(), v.clone()  # one key takes all
    want = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(ours(q, k, v), want, atol=1e-3, rtol=0)
    k[1, 2, 3] = torch.nan
    v[3, 0, 50] = torch.inf
    got, want = ours(q, k, v), F.scaled_dot_product_attention(q, k, v)
    assert got[1, 2].isnan().all() and want[1, 2].isnan().all()
    assert torch.equal(got.isfinite(), want.isfinite()) and len(calls) == 2


@own_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_neighbours(dtype, calls):
    q, k, v = inputs(dtype)
    together = ours(q, k, v, ragged())
    for row, n in enumerate(LENGTHS):
        pair = q[[row, row]], k[[row, row], :, :n], v[[row, row], :, :n]
        assert torch.equal(ours(*pair)[0], together[row])
    assert len(calls) == 1 + B


@own_kernel
def test_what_the_kernel_does_not_know_goes_to_torch(calls):
    q, k, v = inputs(channels=40)
    torch.testing.assert_close(ours(q, k, v), F.scaled_dot_product_attention(q, k, v))
    q, k, v = inputs()
    ours(q[:1], k[:1], v[:1])  # one row: torch's is as fast
    ours(q.double(), k.double(), v.double())
    ours(k, k, v)  # many queries
    assert calls == []


@own_kernel
@pytest.mark.parametrize("quantize", ["", "int8"])
def test_the_engine_takes_it_for_rows_of_any_lengths(quantize, calls):
    # blocks that block.cpp does not know
    model = tiny(n_embd=128, n_head=4, n_kv_head=2, position="rope", norm_placement="post")
    params = SamplingParams(5, temperature=0)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]

    def answers(prompts, max_batch):
        engine = Engine(model, max_batch, quantize=quantize)
        requests = [engine.submit(p, params)[0] for p in prompts]
        while engine.busy:
            engine.step()
        return [r.tokens for r in requests]

    alone = [answers([p], 1)[0] for p in prompts]
    assert calls == []
    assert answers(prompts, 3) == alone
    assert calls == [torch.float32] * 4 * model.config.n_layer


def test_without_a_compiler_torch_attends(tmp_path, monkeypatch):
    native.build.cache_clear(), native.functions.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        q, k, v = inputs()
        want = F.scaled_dot_product_attention(q, k, v, ragged())
        assert attention.kernels() == {} and torch.equal(ours(q, k, v, ragged()), want)
    finally:
        native.build.cache_clear(), native.functions.cache_clear()
