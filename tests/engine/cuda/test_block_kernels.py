"""bonsai/engine/cuda/block_kernels.py against plain torch, by Triton's interpreter on a CPU.

Its interpreter knows no product of bfloat16, so that is of float16 here; block.py checks all of
them where they run.
"""

from itertools import product
from types import SimpleNamespace

import numpy as np
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


def random_layer(N: int, K: int, int8=False, bias=True, **more) -> Product:
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
        layer = random_layer(N, K, int8, bias)
        close(kernels.product(x, layer), layers.product(x, layer))


@pytest.mark.parametrize("M", [1, 2])
@pytest.mark.parametrize("norm", [LAYER, RMS])
@pytest.mark.parametrize("without", [(), ("shift",), ("gain", "shift")])
def test_a_norm_before_it(kernels, M, norm, without):
    x = 3 + torch.randn(M, 1, 72).half()
    layer = random_layer(40, 72, norm=norm, **dict.fromkeys(without))
    layer = layer._replace(shift=None) if norm == RMS else layer
    close(kernels.product(x, layer), layers.product(x, layer), 4e-3)


@pytest.mark.parametrize("M", [1, 5])
@pytest.mark.parametrize("activation", FOLLOWS)
def test_an_activation_and_the_stream_behind_it(kernels, M, activation):
    for int8, bias in ((False, True), (True, False), (True, True)):
        layer = random_layer(80, 64, int8, bias, activation=activation)
        x, residual = torch.randn(M, 1, 64).half(), torch.randn(M, 1, 80).half()
        residual = residual[..., :40].contiguous() if activation == "swiglu" else residual
        given = (residual,) if M <= kernels.ALONE else ()
        close(kernels.product(x / 4, layer, *given), layers.product(x / 4, layer, *given), 4e-3)


@pytest.mark.parametrize("M", [5, 40])
@pytest.mark.parametrize("N, K", [(48, 64), (70, 200), (72, 520), (384, 1500)])
def test_a_sum_and_its_norm(kernels, M, N, K):
    """Of one part of the inputs and of several, the last of which has fewer."""
    parts = -(-K // kernels.shape_of_parts(M, N, K)["SIZE"])
    assert (parts == 1) == (K <= 128)
    norms = [None, NormLayer(LAYER, torch.randn(N).half(), torch.randn(N).half())]
    norms += [NormLayer(LAYER), NormLayer(LAYER, norms[1].gain), NormLayer(RMS, norms[1].gain)]
    for i, norm in enumerate(norms):
        layer = random_layer(N, K, int8=i % 2 == 1, bias=i % 3 == 0)
        x, stream = torch.randn(M, 1, K).half() / 8, 2 + torch.randn(M, 1, N).half()
        before = stream.clone()
        got, want = (f(x, layer, stream, norm) for f in (kernels.add_and_norm, layers.add_and_norm))
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


def test_what_a_program_reads_ahead_fits_in_shared_memory(kernels):
    """Of a GPU at home, which has 99 KiB; a program that reads n stages ahead has n - 1 of them."""
    for M, N, gated in product((5, 16, 64), (768, 4096, 5120, 8192), (False, True)):
        shape = kernels.shape_of_rows(M, N, gated)
        numbers = (shape["BM"] + (1 + gated) * shape["BN"]) * shape["BK"]
        assert 2 * numbers * (shape["num_stages"] - 1) <= 99 * 1024
        shape = kernels.shape_of_parts(M, N, 4 * N)
        numbers = (shape["BM"] + shape["BN"]) * shape["BK"]
        assert 2 * numbers * (shape["num_stages"] - 1) <= 99 * 1024


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


# ---- kernels that overlap ----


class Accesses:
    """What the programs of kernels read and write before their `turn` and after it: addresses, as
    the interpreter sees them, and for a prefetch, which it does not know."""

    def __init__(self, patch: pytest.MonkeyPatch):
        from triton.language.extra import cuda
        from triton.runtime import interpreter

        self.begin()
        for name in ("gdc_wait", "gdc_launch_dependents"):
            patch.setattr(cuda, name, lambda name=name: self.programs[-1].append((name, [])))
        builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
        for name in ("create_masked_load", "create_masked_store"):
            patch.setattr(builder, name, self.noting(getattr(builder, name), name[14:]))
        program = builder.set_grid_idx
        patch.setattr(
            builder, "set_grid_idx", lambda *given: (self.programs.append([]), program(*given))[1]
        )

        def prefetch(builder, text, constraints, values, kinds, *given):
            assert text.startswith("prefetch.global.L2")
            self.programs[-1].append(("prefetch", values[0].data.flatten().tolist()))
            none = handle(np.zeros(values[0].data.shape, np.int32), kinds[0].scalar)
            return SimpleNamespace(get_result=lambda i: none)

        patch.setattr(builder, "create_inline_asm", prefetch)

    def begin(self) -> None:
        self.programs: list[list[tuple[str, list[int]]]] = []

    def noting(self, function, kind: str):
        def noted(builder, pointers, *given):
            mask = next(x for x in given if x.data.dtype == bool).data
            self.programs[-1].append((kind, pointers.data[mask].flatten().tolist()))
            return function(builder, pointers, *given)

        return noted

    def check(self, constant: list[torch.Tensor], prefetches: bool) -> None:
        """Every program waits once, then lets the next kernel begin; before, it has read and
        prefetched nothing but these tensors and has written nothing."""
        spans = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in constant if t is not None]
        assert self.programs
        for events in self.programs:
            names = [name for name, _ in events]
            turn = names.index("gdc_wait")
            assert names[turn + 1] == "gdc_launch_dependents"
            assert sum(name.startswith("gdc") for name in names) == 2
            assert "store" in names[turn:] and "store" not in names[:turn]
            assert ("prefetch" in names[:turn]) == prefetches
            for _, addresses in events[:turn]:
                assert all(any(a <= at < b for a, b in spans) for at in addresses)
        self.begin()


@pytest.fixture
def accesses(kernels, monkeypatch):
    return Accesses(monkeypatch)


OVERLAP = {"overlap": True}


@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("M", [2, 9, 40])
def test_products_read_weights_and_wait(kernels, accesses, M, activation, int8):
    layer = random_layer(70, 200, int8, norm=LAYER, activation=activation)
    layer = layer if M <= kernels.ALONE else layer._replace(norm=0)
    x = torch.randn(M, 1, 200).half()
    got = kernels.product(x, layer, **OVERLAP)
    accesses.check(list(layer[:3]) + [layer.gain, layer.shift], prefetches=M > kernels.ALONE)
    assert torch.equal(got, kernels.product(x, layer))
    accesses.begin()
    if M <= kernels.ALONE:
        layer, residual = random_layer(70, 200, int8), torch.randn(M, 1, 70).half()
        got = kernels.product(x, layer, residual, **OVERLAP)
        accesses.check(list(layer[:3]), prefetches=False)
        assert torch.equal(got, kernels.product(x, layer, residual))


@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize("M", [9, 40])
def test_sums_read_weights_and_wait(kernels, accesses, M, int8):
    layer, stream = random_layer(72, 520, int8), torch.randn(M, 1, 72).half()
    x = torch.randn(M, 1, 520).half() / 8
    norm = NormLayer(LAYER, torch.randn(72).half(), torch.randn(72).half())
    got = kernels.add_and_norm(x, layer, stream, norm, **OVERLAP)
    programs, accesses.programs = accesses.programs, []
    shape = kernels.shape_of_parts(M, 72, 520)
    count = -(-520 // shape["SIZE"]) * -(-72 // shape["BN"])
    for part, prefetches in ((programs[:count], True), (programs[count:], False)):
        accesses.programs = part
        accesses.check([layer.weight, layer.scale, layer.bias, norm.gain, norm.shift], prefetches)
    assert all(map(torch.equal, got, kernels.add_and_norm(x, layer, stream, norm)))
    accesses.begin()
    kernels.normed(stream, *norm, **OVERLAP)
    accesses.check([norm.gain, norm.shift], prefetches=False)


def test_attention_waits_before_all_else(kernels, accesses):
    heads, pos = Heads(4, 2, 16, 0.3, 0, LAYER, 1e-3), torch.tensor([0, 30])
    cache = torch.randn(2, 2, 2, 40, 16).half()
    qkv, turns = torch.randn(2, 1, 8 * 16).half(), rope_angles(pos[:, None, None], 16, 100.0)
    found = []
    for options in (OVERLAP, {}):
        accesses.begin()
        k, v = cache.clone()
        y = kernels.attend_step(qkv, k, v, pos, heads, turns, **options)
        found.append((y, k, v))
        if options:
            accesses.check([], prefetches=False)
    assert all(map(torch.equal, *found))


def test_the_first_read_of_something_else_is_found(kernels, accesses):
    """Of the checks above: they fail where an input is taken for a weight, or nobody waits."""
    layer, x = random_layer(70, 200), torch.randn(9, 1, 200).half()
    kernels.product(x, layer, **OVERLAP)
    with pytest.raises(AssertionError):
        accesses.check([layer.weight], prefetches=True)  # the bias is not named
    accesses.begin()
    kernels.product(x, layer)
    with pytest.raises(ValueError, match="gdc_wait"):
        accesses.check([layer.weight, layer.bias], prefetches=False)
