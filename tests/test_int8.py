"""Weights in 8 bits: torch's kernels and our own, built by the compiler that is there."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bonsai.engine import int8
from bonsai.engine.int8 import Int8Linear
from bonsai.engine.native import build, functions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 7, 50])  # twice as many: tiles of 8, 4 and 2
@pytest.mark.parametrize("shape", [(96, 40), (33, 7), (64, 65)])
def test_int8_linear_rounds_to_eight_bits(dtype, own, bias, rows, shape):
    torch.manual_seed(0)
    linear = nn.Linear(*shape, bias=bias)
    with torch.no_grad():
        linear.weight[5] *= 100  # a scale of its own
        x = torch.randn(2, rows, shape[0]).to(dtype)
        x[0, 0], x[1, 0] = 0, 1000 * x[1, 0]
        want, got = (
            F.linear(x.float(), linear.weight, linear.bias),
            Int8Linear(linear, dtype, own)(x),
        )
        assert got.dtype == dtype
        scale = x.float().norm(dim=-1, keepdim=True) * linear.weight.norm(dim=-1) / shape[0] ** 0.5
        assert ((got.float() - want).abs() <= 0.05 * scale + 0.02 * want.abs() + 1e-6).all()


own_product = pytest.mark.skipif(not int8.products(), reason="no C++ compiler for int8.cpp")


@pytest.fixture(params=["loops", "amx"])
def amx(request, monkeypatch) -> bool:
    """Whether many rows go through oneDNN; else int8.cpp has them all."""
    if request.param == "amx" and not int8.multiplies_bytes():
        pytest.skip("this CPU does not multiply matrices of bytes, or torch does not know how")
    monkeypatch.setattr(int8, "multiplies_bytes", lambda: request.param == "amx")
    monkeypatch.setattr(Int8Linear, "MANY_AMX", 0)  # small layers too
    return request.param == "amx"


@own_product
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [16, 33, 768, 3072, 20_000])
def test_the_own_product_is_that_of_the_rounded_weights(dtype, inputs, amx, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(Int8Linear, "CHUNK", 5)
    linear = nn.Linear(inputs, 70)
    x = torch.randn(9, inputs).to(dtype) * torch.logspace(-3, 3, 9)[:, None].to(dtype)
    with torch.no_grad():
        layer = Int8Linear(linear, dtype)
        weight = layer.q.double() * int8.to_int8(linear.weight)[1][:, None].double()
        want = x.double() @ weight.T + linear.bias.double()
        got = layer(x)
    assert layer.products and (x.numel() > layer.few) == amx
    # activations keep 2^31 / (127 inputs) steps of 15 bits at most; then the result is rounded
    bits = min(32639, (2**31 - 1) // (127 * inputs))
    step = x.double().abs().amax(-1, keepdim=True) / bits
    error = (got.double() - want).abs()
    last = torch.finfo(dtype).eps * (want.abs() + 1e-3)
    assert (error <= 3 * step * weight.norm(dim=1) + 2 * last).all()


@own_product
def test_extremes_do_not_overflow_the_own_product(amx):
    linear = nn.Linear(4096, 8, bias=False)
    with torch.no_grad():
        linear.weight.fill_(1.0)
        # 1e-42 is subnormal
        for rows, value in ((1, 1e30), (5, -3.0), (1, 0.0), (8, 1e-42), (9, -3.0), (30, 1e30)):
            x = torch.full((rows, 4096), value)
            torch.testing.assert_close(
                Int8Linear(linear, x.dtype)(x), x.sum(-1, True).expand(-1, 8)
            )
        for rows in (3, 12):
            x = torch.ones(rows, 4096)
            x[1, 7], x[2, 9] = float("nan"), float("-inf")
            y = Int8Linear(linear, x.dtype)(x)
            assert (y[0] == 4096).all() and (y[3:] == 4096).all() and y[1:3].isnan().all()


@own_product
@pytest.mark.parametrize("rows", [3, 30])
def test_a_row_in_int8_does_not_depend_on_its_neighbours(rows, amx):
    linear = Int8Linear(nn.Linear(64, 32), torch.float32)
    x = torch.randn(rows, 64) * torch.logspace(-2, 2, rows)[:, None]
    with torch.no_grad():
        together, half = linear(x), linear(x[: rows // 2])
        assert torch.equal(half, together[: rows // 2])
        for row in range(rows):
            alone = linear(x[row : row + 1])[0]
            assert torch.equal(alone, together[row]) or rows * 64 > linear.few
            torch.testing.assert_close(alone, together[row], rtol=1e-6, atol=1e-5)


def test_without_a_compiler_int8_takes_another_way(tmp_path, monkeypatch):
    build.cache_clear(), functions.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        assert int8.products() == {}
        x = torch.randn(3, 64)
        linear = nn.Linear(64, 32)
        with torch.no_grad():
            got = Int8Linear(linear, torch.float32)(x)
            torch.testing.assert_close(got, linear(x), atol=0.05, rtol=0.05)
        (tmp_path / "c++").write_text("#!/bin/sh\nexit 1\n")  # there, but compiles nothing
        (tmp_path / "c++").chmod(0o755)
        build.cache_clear(), functions.cache_clear()
        assert int8.products() == {}
    finally:
        build.cache_clear(), functions.cache_clear()
