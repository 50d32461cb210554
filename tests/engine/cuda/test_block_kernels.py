"""bonsai/engine/cuda/block_kernels.py against plain torch, by Triton's interpreter on a CPU.

Its interpreter knows no product of bfloat16, so that is of float16 here; block.py checks all of
them where they run.
"""

import pytest
import torch
from helpers.interpreted import interpreted

from bonsai.engine.cuda import layers
from bonsai.engine.cuda.layers import FOLLOWS, LAYER, RMS, Heads, NormLayer, Product
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


@pytest.mark.parametrize("M", [1, 4])
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
        given = (residual,) if M <= kernels.ALONE else ()
        close(kernels.product(x / 4, of, *given), layers.product(x / 4, of, *given), 4e-3)


@pytest.mark.parametrize("M", [5, 40])
@pytest.mark.parametrize("N, K", [(48, 64), (70, 200), (72, 520), (384, 1500)])
def test_a_sum_and_its_norm(kernels, M, N, K):
    """Of one part of the inputs and of several, the last of which has fewer."""
    parts = -(-K // kernels.shape_of_parts(M, N, K)["SIZE"])
    assert (parts == 1) == (K <= 128)
    norms = [None, NormLayer(LAYER, torch.randn(N).half(), torch.randn(N).half())]
    norms += [NormLayer(LAYER), NormLayer(LAYER, norms[1].gain), NormLayer(RMS, norms[1].gain)]
    for i, norm in enumerate(norms):
        of = layer(N, K, int8=i % 2 == 1, bias=i % 3 == 0)
        x, stream = torch.randn(M, 1, K).half() / 8, 2 + torch.randn(M, 1, N).half()
        before = stream.clone()
        got, want = (f(x, of, stream, norm) for f in (kernels.add_and_norm, layers.add_and_norm))
        close(got[0], want[0])
        assert torch.equal(stream, before)  # others may read it
        assert (got[1] is None) == (norm is None)
        if norm is not None:
            close(got[1], want[1], 8e-3)
            close(kernels.normed(stream, *norm), layers.normed(stream, *norm), 4e-3)


def test_programs_fill_a_gpu_but_not_twice(kernels):
    """GPT-2's layers that add to the stream, of all sizes: each input is in one part."""
    for width, least in ((384, 36), (768, 120), (1024, 100), (1280, 100), (1600, 100)):
        for K in (width, 4 * width):
            shape = kernels.shape_of_parts(64, width, K)
            parts = -(-K // shape["SIZE"])
            programs = parts * -(-width // shape["BN"])
            assert shape["SIZE"] % shape["BK"] == 0 and parts * shape["SIZE"] >= K
            assert least <= programs <= 264


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
