"""bonsai/engine/cuda/triton_kernels.py against plain torch, by Triton's interpreter on a CPU.

Its interpreter knows no product of bfloat16, so that is of float16 here; kernels.py checks all of
them where they run.
"""

import importlib
import sys

import pytest
import torch
from torch.nn import functional as F

from bonsai.engine.sampling import noise
from bonsai.system.hashing import splitmix_tensor


@pytest.fixture(scope="module")
def kernels():
    if "triton" in sys.modules:
        pytest.skip("triton is here to compile, and cannot interpret any more")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # read where a kernel is declared
        pytest.importorskip("triton", reason="triton is not installed")
        module = importlib.import_module("bonsai.engine.cuda.triton_kernels")
        x = torch.zeros(1, 1, 1, 16)
        try:
            module.attend(x, x, x, x[..., :1], 1.0)
        except Exception as e:  # triton 3.6 with numpy 2.4
            pytest.skip(f"this interpreter does not work here: {e}")
        yield module


@pytest.mark.parametrize("M", [1, 3, 16, 40])
@pytest.mark.parametrize("N, K", [(48, 64), (70, 200), (33, 128)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_of_weights_in_int8(kernels, M, N, K, bias):
    x, scale = torch.randn(M, 1, K).half(), torch.rand(N)
    weight = torch.randint(-127, 128, (N, K), dtype=torch.int8)
    b = torch.randn(N).half() if bias else None
    want = F.linear(x.float(), weight.float()) * scale + (b.float() if bias else 0)
    got = kernels.product(x, weight, scale, b)
    assert got.shape == (M, 1, N) and got.dtype == torch.float16
    assert (got.float() - want).abs().max() < 2e-3 * want.abs().max()


@pytest.mark.parametrize("M, N, K", [(1, 48, 64), (3, 70, 300), (40, 33, 200)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_in_half_precision(kernels, M, N, K, bias):
    x, weight = torch.randn(M, 1, K).half(), torch.randn(N, K).half()
    b = torch.randn(N).half() if bias else None
    want = F.linear(x.float(), weight.float(), None if b is None else b.float())
    got = kernels.product(x, weight, None, b)
    assert (got.float() - want).abs().max() < 2e-3 * want.abs().max()


@pytest.mark.parametrize("m", [7, 200, 1000, 2500])
@pytest.mark.parametrize("named", [True, False])
def test_a_draw_is_that_of_the_engine(kernels, m, named):
    n, generator = 100, torch.Generator().manual_seed(m)
    numbers = torch.randint(-(2**63), 2**63 - 1, (n, 6), generator=generator)
    keys, steps = numbers[:, 2], numbers[:, 1] % 1000
    columns = torch.stack((keys, steps), dim=1)  # as the columns of a table
    keys, steps = columns[:, 0], columns[:, 1]
    logits = 2 * torch.randn(n, m, generator=generator)
    logits[:, 3] = -torch.inf  # filtered out
    ids = torch.randint(50304, (n, m), generator=generator) if named else None
    places = torch.arange(m).expand(n, m) if ids is None else ids
    best = logits + noise(splitmix_tensor(keys, steps)[:, None], places)
    want = places.gather(1, best.argmax(1, keepdim=True))[:, 0]
    assert kernels.draw(logits, ids, keys, steps).tolist() == want.tolist()


@pytest.mark.parametrize("nh, nkv, hs", [(4, 4, 64), (4, 2, 48), (3, 1, 16)])
@pytest.mark.parametrize("S, window", [(40, 0), (300, 0), (300, 20)])
def test_attention_of_one_query_to_what_a_mask_lets_through(kernels, nh, nkv, hs, S, window):
    B, ends = 3, torch.tensor([0, S // 2, S - 1])
    qkv = torch.randn(B, 1, nh + 2 * nkv, hs).transpose(1, 2)  # views, as model.py has them
    q, cache = qkv[:, :nh], torch.randn(2, B, nkv, S + 8, hs)
    k, v = cache[:, :, :, :S]
    behind = ends[:, None, None, None] - torch.arange(S)
    seen = (behind >= 0) & (behind < (window or S))
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    for rows in (slice(0, 3), slice(2, 3)):  # of one row, too
        found = (q[rows], k[rows], v[rows], mask[rows])
        want = F.scaled_dot_product_attention(*found, scale=0.3, enable_gqa=True)
        torch.testing.assert_close(kernels.attend(*found, 0.3), want, atol=1e-5, rtol=1e-5)
