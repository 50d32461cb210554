"""bonsai/engine/cuda/linear.py: the layer's numbers are the same, whichever way it takes."""

import pytest
import torch
from torch import nn

from bonsai.engine.cuda import linear as module
from bonsai.engine.cuda.linear import CudaLinear, few_rows, takes


@pytest.mark.parametrize("bias", [True, False])
def test_without_a_kernel_it_is_the_layer_in_half_precision(bias):
    linear = nn.Linear(64, 40, bias=bias)
    layer, x = CudaLinear(linear, torch.bfloat16), torch.randn(3, 1, 64).bfloat16()
    assert layer.few == 0 and torch.equal(layer(x), linear.bfloat16()(x))


def test_few_rows_go_through_the_kernel():
    layer, seen = CudaLinear(nn.Linear(64, 40), torch.bfloat16), []
    layer.few, layer.product = 16, lambda x, *given: seen.append((x.shape, given))
    layer(torch.zeros(16, 1, 64, dtype=torch.bfloat16))
    assert layer(torch.zeros(17, 1, 64, dtype=torch.bfloat16)).shape == (17, 1, 40)
    ((shape, (weight, scale, _)),) = seen
    assert shape == (16, 1, 64) and weight is layer.weight and scale is None


@pytest.mark.parametrize("times, want", [([9, 5], 16), ([9, 8.9], 0), ([9, torch.inf], 0)])
def test_the_kernel_is_taken_where_it_measured_faster(monkeypatch, times, want):
    """One row, by torch and by the kernel."""
    given = iter(times)
    monkeypatch.setattr(module, "seconds_of", lambda function: (function(), next(given))[1])
    calls = []
    kernels = type("Module", (), {"product": staticmethod(lambda x, *w: calls.append(x.shape))})
    monkeypatch.setattr(module, "kernels", lambda: kernels)

    class Gpu(str):
        type = "cuda"

    monkeypatch.setattr(torch, "zeros", lambda *a, zeros=torch.zeros, device, **k: zeros(*a, **k))
    few_rows.cache_clear()
    assert few_rows(32, 64, torch.bfloat16, True, Gpu("cuda")) == want
    assert {tuple(shape) for shape in calls} == {(1, 1, 64)}
    few_rows.cache_clear()


def test_on_a_cpu_no_layer_is_one():
    assert not takes(nn.Linear(64, 40), torch.bfloat16)  # without a GPU there are no kernels
    assert few_rows(32, 64, torch.bfloat16, True, torch.device("cpu")) == 0
