"""bonsai/engine/cpu/linear.py: products of rows by linear.cpp, exact and each row by itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bonsai.engine.cpu import linear
from bonsai.engine.cpu.pages import LargePages

own_kernel = pytest.mark.skipif(not linear.products(), reason="no C++ compiler")


@own_kernel
@pytest.mark.parametrize("n, k", [(33, 100), (64, 64), (1, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_row_of_a_product_does_not_depend_on_its_neighbours(n, k, bias):
    torch.manual_seed(0)
    layer = nn.Linear(k, n, bias=bias)
    packed = linear.PackedLinear(layer, torch.float32, LargePages())
    x = torch.randn(2, 8, k)
    with torch.no_grad():
        got = [packed(x.reshape(-1, k)[:rows]) for rows in range(1, 17)]  # as linear.cpp takes
        want = F.linear(x.reshape(-1, k), layer.weight, layer.bias)
    for rows, y in enumerate(got, 1):
        assert (y - want[:rows]).abs().max() < 1e-5 and torch.equal(y, got[-1][:rows])


@own_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 16, 33, 300])
@pytest.mark.parametrize("n, k", [(70, 64), (33, 100), (16, 32), (5, 768)])
def test_products_are_as_exact_as_their_numbers(n, k, rows, dtype):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, k).to(dtype), torch.randn(n, k).to(dtype), torch.randn(n)
    got = linear.call(linear.products()[dtype], x, weight, None, bias)
    want = x.double() @ weight.double().T + bias
    error = torch.finfo(dtype).eps * want.abs() + 2e-6 * k**0.5  # of the result, of the sums
    assert got.dtype == dtype and ((got.double() - want).abs() <= error).all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2])
def test_without_a_compiler_one_row_is_a_plain_product(rows, bias, monkeypatch):
    monkeypatch.setattr(linear, "products", dict)
    layer, x = nn.Linear(48, 20, bias=bias), torch.randn(rows, 1, 48)
    with torch.no_grad():
        got = linear.PackedLinear(layer, torch.float32, LargePages())(x)
        torch.testing.assert_close(got, layer(x))
