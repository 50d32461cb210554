"""bonsai/engine/cuda/block_kernels.py against plain torch, by Triton's interpreter on a CPU.

Its interpreter knows no product of bfloat16, so that is of float16 here; block.py checks all of
them where they run.
"""

import pytest
import torch
from helpers.interpreted import interpreted

from bonsai.engine.cuda import layers
from bonsai.engine.cuda.layers import FOLLOWS, LAYER, RMS, Heads, Product
from model import rope_angles


@pytest.fixture(scope="module")
def kernels():
    yield from interpreted("bonsai.engine.cuda.block_kernels")


def close(got, want, at_most=2e-3):
    assert got.shape == want.shape and got.dtype == want.dtype
    assert (got.float() - want.float()).abs().max() < at_most * want.float().abs().max()


def layer(N: int, K: int, int8=False, bias=True, **more) -> Product:
    weight, scale = torch.randn(N, K).half(), None
    if int8:
        weight, scale = torch.randint(-127, 128, (N, K), dtype=torch.int8), torch.rand(N) / 64
    if more.get("norm"):
        more = {"gain": torch.randn(K).half(), "shift": torch.randn(K).half()} | more
    return Product(weight, scale, torch.randn(N).half() if bias else None, **more)


@pytest.mark.parametrize("M", [1, 3, 16, 40])
@pytest.mark.parametrize("N, K", [(48, 64), (70, 200), (33, 128)])
@pytest.mark.parametrize("int8", [True, False])
def test_a_product(kernels, M, N, K, int8):
    x = torch.randn(M, 1, K).half()
    for bias in (True, False):
        of = layer(N, K, int8, bias)
        close(kernels.product(x, of), layers.product(x, of))


@pytest.mark.parametrize("M", [1, 5])
@pytest.mark.parametrize("norm", [LAYER, RMS])
@pytest.mark.parametrize("without", [(), ("shift",), ("gain", "shift")])
def test_a_norm_before_it(kernels, M, norm, without):
    x = 3 + torch.randn(M, 1, 72).half()
    of = layer(40, 72, norm=norm, **dict.fromkeys(without))
    of = of._replace(shift=None) if norm == RMS else of
    close(kernels.product(x, of), layers.product(x, of), 4e-3)


@pytest.mark.parametrize("M", [1, 5])
@pytest.mark.parametrize("activation", FOLLOWS)
def test_an_activation_and_the_stream_behind_it(kernels, M, activation):
    for int8, bias in ((False, True), (True, False), (True, True)):
        of = layer(80, 64, int8, bias, activation=activation)
        x, residual = torch.randn(M, 1, 64).half(), torch.randn(M, 1, 80).half()
        residual = residual[..., :40].contiguous() if activation == "swiglu" else residual
        close(kernels.product(x / 4, of, residual), layers.product(x / 4, of, residual), 4e-3)


@pytest.mark.parametrize("nh, nkv, hs", [(4, 4, 64), (4, 2, 48), (3, 1, 16)])
@pytest.mark.parametrize("S, window", [(40, 0), (700, 0), (700, 20), (300, 1)])
@pytest.mark.parametrize(
    "norm, rope, more", [(0, False, False), (LAYER, True, True), (RMS, True, 0)]
)
def test_a_step_of_attention(kernels, nh, nkv, hs, S, window, norm, rope, more):
    heads = Heads(nh, nkv, hs, 0.3, window, norm, 1e-3)
    for pos in ([0, S // 2, S - 1], [S - 1]):
        pos = torch.tensor(pos)
        cache = torch.randn(2, len(pos), nkv, S + 8, hs).half()[:, :, :, :S]  # a view, as in steps
        qkv = torch.randn(len(pos), 1, (nh + 2 * nkv) * hs).half()
        turns = rope_angles(pos[:, None, None], hs, 100.0) if rope else None
        extra = torch.randn(len(pos), 1, nkv * hs).half() if more else None
        found = []
        for attend in (kernels.attend_step, layers.attend_step):
            k, v = cache.clone()
            found.append((attend(qkv, k, v, pos, heads, turns, extra), k, v))
        for got, want in zip(*found):
            close(got, want, 4e-3)
