"""bonsai/engine/cuda/int8.py: weights in 8 bits give about what they give in 16."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bonsai.engine.cpu.int8 import Int8Linear
from bonsai.engine.cuda.int8 import CudaInt8Linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_what_the_layer_of_the_cpu_does(dtype, bias):
    torch.manual_seed(0)
    linear = nn.Linear(64, 40, bias=bias)
    layer, other = CudaInt8Linear(linear, dtype), Int8Linear(linear, dtype, native=False)
    for shape in ((1, 1, 64), (5, 1, 64), (100, 64)):
        x = torch.randn(shape).to(dtype)
        with torch.no_grad():
            torch.testing.assert_close(layer(x).float(), other(x).float(), atol=0.03, rtol=0.03)
            torch.testing.assert_close(layer(x).float(), linear(x.float()), atol=0.05, rtol=0.05)


def test_few_rows_go_through_the_kernel(monkeypatch):
    layer = CudaInt8Linear(nn.Linear(64, 40), torch.bfloat16)
    seen = []
    product = lambda x, of: seen.append((x.shape, of[:3]))  # noqa: E731
    layer.use(SimpleNamespace(product=product, sizes=(4, 16)))
    layer(torch.zeros(16, 1, 64, dtype=torch.bfloat16))
    assert layer(torch.zeros(17, 1, 64, dtype=torch.bfloat16)).shape == (17, 1, 40)
    ((shape, (q, scale, _)),) = seen
    assert shape == (16, 1, 64) and (q.dtype, scale.dtype) == (torch.int8, torch.float32)
    layer.use(None)
    assert layer(torch.zeros(16, 1, 64, dtype=torch.bfloat16)).shape == (16, 1, 40)
    layer.to(torch.float16)
    assert layer.scale.dtype == torch.float32
