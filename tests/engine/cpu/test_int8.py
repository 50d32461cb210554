"""Weights in 8 bits: torch's kernels and our own, built by the compiler that is there."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bonsai.engine.cpu import int8, linear
from bonsai.engine.cpu.int8 import Int8Linear
from bonsai.engine.cpu.native import build, functions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 7, 50])  # twice as many: groups of 8, 4 and 2, tiles
@pytest.mark.parametrize("shape", [(96, 40), (33, 7), (64, 65)])
def test_int8_linear_rounds_to_eight_bits(dtype, own, bias, rows, shape):
    torch.manual_seed(0)
    layer = nn.Linear(*shape, bias=bias)
    with torch.no_grad():
        layer.weight[5] *= 100  # a scale of its own
        x = torch.randn(2, rows, shape[0]).to(dtype)
        x[0, 0], x[1, 0] = 0, 1000 * x[1, 0]
        want, got = (
            F.linear(x.float(), layer.weight, layer.bias),
            Int8Linear(layer, dtype, own)(x),
        )
        assert got.dtype == dtype
        scale = x.float().norm(dim=-1, keepdim=True) * layer.weight.norm(dim=-1) / shape[0] ** 0.5
        assert ((got.float() - want).abs() <= 0.05 * scale + 0.02 * want.abs() + 1e-6).all()


own_product = pytest.mark.skipif(not linear.products(), reason="no C++ compiler")


@own_product
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [2, 9, 50])
@pytest.mark.parametrize("inputs", [16, 33, 64, 768, 3072, 20_000])  # some in whole tiles
def test_the_own_product_is_that_of_the_rounded_weights(dtype, inputs, rows):
    torch.manual_seed(0)
    layer = nn.Linear(inputs, 70)
    x = torch.randn(rows, inputs).to(dtype) * torch.logspace(-3, 3, rows)[:, None].to(dtype)
    with torch.no_grad():
        own = Int8Linear(layer, dtype)
        weight = own.q.double() * int8.to_int8(layer.weight)[1][:, None].double()
        want = x.double() @ weight.T + layer.bias.double()
        got = linear.call(own.products[dtype], x, *own.fp32)
    # activations keep 2^31 / (127 inputs) steps of 15 bits at most; then the result is rounded
    bits = min(32639, (2**31 - 1) // (127 * inputs))
    step = x.double().abs().amax(-1, keepdim=True) / bits
    error = (got.double() - want).abs()
    last = torch.finfo(dtype).eps * (want.abs() + 1e-3)
    assert (error <= 3 * step * weight.norm(dim=1) + 2 * last).all()


@own_product
@pytest.mark.parametrize("inputs", [4096, 4095])
def test_extremes_do_not_overflow_the_own_product(inputs):
    layer = nn.Linear(inputs, 40, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        # 1e-42 is subnormal
        for rows, value in ((1, 1e30), (5, -3.0), (1, 0.0), (8, 1e-42), (9, -3.0), (30, 1e30)):
            x = torch.full((rows, inputs), value)
            torch.testing.assert_close(
                Int8Linear(layer, x.dtype)(x), x.sum(-1, True).expand(-1, 40)
            )
        for rows in (3, 12):
            x = torch.ones(rows, inputs)
            x[1, 7], x[2, 9] = float("nan"), float("-inf")
            y = Int8Linear(layer, x.dtype)(x)
            others = torch.cat((y[:1], y[3:]))
            assert ((others / inputs - 1).abs() < 1e-6).all() and y[1:3].isnan().all()


@own_product
@pytest.mark.parametrize("shape", [(64, 32), (128, 70), (100, 48)])
def test_a_row_in_int8_does_not_depend_on_its_neighbours(shape):
    """Not by a bit, though few rows are multiplied by other instructions than many."""
    own = Int8Linear(nn.Linear(*shape), torch.float32)
    x = torch.randn(520, shape[0]) * torch.logspace(-2, 2, 520)[:, None]
    product = own.products[torch.float32]
    with torch.no_grad():
        together = linear.call(product, x, *own.fp32)
        for rows in (1, 2, 3, 4, 7, 16, 17, 33, 257, 513):  # begins with others, and elsewhere
            part = x[520 - rows :]
            assert torch.equal(linear.call(product, part, *own.fp32), together[520 - rows :])


def test_without_a_compiler_int8_takes_another_way(tmp_path, monkeypatch):
    build.cache_clear(), functions.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        assert linear.products() == {}
        x = torch.randn(3, 64)
        layer = nn.Linear(64, 32)
        with torch.no_grad():
            got = Int8Linear(layer, torch.float32)(x)
            torch.testing.assert_close(got, layer(x), atol=0.05, rtol=0.05)
        (tmp_path / "c++").write_text("#!/bin/sh\nexit 1\n")  # there, but compiles nothing
        (tmp_path / "c++").chmod(0o755)
        build.cache_clear(), functions.cache_clear()
        assert linear.products() == {}
    finally:
        build.cache_clear(), functions.cache_clear()
