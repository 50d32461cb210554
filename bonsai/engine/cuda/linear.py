"""Linear layers of few rows on a GPU: by a kernel of our own where that is faster."""

import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from bonsai.engine.cpu.linear import FastLinear
from bonsai.engine.cuda.graphs import CapturedGraph, on_stream
from bonsai.engine.cuda.kernels import kernels

HALF = (torch.bfloat16, torch.float16)
MOST_OUTPUTS = 2**14  # of a larger layer, an output head, libraries reach the memory's pace


class CudaLinear(FastLinear):
    """nn.Linear in half precision; of few rows by triton_kernels.py where it measured faster."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.weight = linear.weight.detach().to(dtype).contiguous()
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.few = few_rows(*self.weight.shape, dtype, self.bias is not None, self.weight.device)
        self.product = kernels().product if self.few else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() <= self.few * x.size(-1):
            return self.product(x, self.weight, None, self.bias)
        return F.linear(x, self.weight, self.bias)


def takes(linear: nn.Linear, dtype: torch.dtype) -> bool:
    """Whether a layer on a GPU may be faster as a CudaLinear."""
    return dtype in HALF and linear.out_features <= MOST_OUTPUTS and kernels() is not None


@functools.cache
def few_rows(n: int, k: int, dtype: torch.dtype, bias: bool, device: torch.device) -> int:
    """Rows up to which the kernel takes less time than torch's for k inputs and n outputs: 16, of
    which it computes any number in the same time, if it measures faster for one, else 0."""
    if device.type != "cuda":
        return 0
    product = kernels().product
    copies = max(4, min(64, 2**26 // (n * k)))  # so that the caches do not hold the weights
    weights = torch.zeros((copies, n, k), dtype=dtype, device=device)
    b = torch.zeros(n, dtype=dtype, device=device) if bias else None
    x = torch.zeros((1, 1, k), dtype=dtype, device=device)
    plain = seconds_of(lambda: [F.linear(x, w, b) for w in weights])
    ours = seconds_of(lambda: [product(x, w, None, b) for w in weights])
    return 16 if ours < 0.95 * plain else 0


def seconds_of(function: Callable) -> float:
    """The device's seconds for what a function launches, as a graph; infinite where it fails."""
    stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
    try:
        with torch.no_grad():
            with on_stream(stream):
                function()
            graph = CapturedGraph(function, stream, pool)
    except Exception:  # say, more shared memory than there is
        return float("inf")
    graph.replay()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(3):
        graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 3e3
