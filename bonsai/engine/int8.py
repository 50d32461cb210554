"""Weights in 8 bits: the conversion, and a linear layer that reads them.

A few rows of activations on a CPU go through int8.cpp, some hundred lines that the system's C++
compiler builds in half a second when they are first needed; without a compiler, and inside
torch.compile, through torch's own kernel, which takes longer.
"""

import ctypes
import functools
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

SOURCE = Path(__file__).with_suffix(".cpp")


class FastLinear(nn.Module):
    """A linear layer for inference only: without hooks, which cost as much as a small product."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x)


class Int8Linear(FastLinear):
    """y = x W^T + b with W as int8 and a scale per output channel (symmetric, to nearest).

    own: use int8.cpp where it can be built. Not for torch.compile.
    """

    FEW, FEW_TORCH = 32, 16  # rows up to which each beats a product with converted weights

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, own: bool = True):
        super().__init__()
        n, k = linear.weight.shape
        q, scale = to_int8(linear.weight)
        self.register_buffer("q", q)
        self.register_buffer("scale", scale.to(dtype))
        bias = None if linear.bias is None else linear.bias.detach()
        self.register_buffer("bias", None if bias is None else bias.to(dtype))
        # no buffers: these keep their dtype, and are found faster. The numbers of activations up to
        # which each product is taken; torch's knows whole vectors of inputs and bfloat16 alone
        self.shape, self.few, self.few_torch = (n, k), 0, 0
        if q.device.type == "cpu":
            self.products = products() if own else {}
            self.few = self.FEW * k if self.products else 0
            self.few_torch = self.FEW_TORCH * k if k % 32 == 0 else 0
            self.fp32 = q, scale, None if bias is None else bias.float().contiguous()
            self.bf16 = q, scale.to(torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, k = self.shape
        if x.numel() <= self.few and (product := self.products.get(x.dtype)):
            (q, scale, bias), x = self.fp32, x.contiguous()
            y = torch.empty((*x.shape[:-1], n), dtype=x.dtype)
            product(
                *(q.data_ptr(), scale.data_ptr(), None if bias is None else bias.data_ptr()),
                *(x.data_ptr(), y.data_ptr(), x.numel() // k, n, k, torch.get_num_threads()),
            )
            return y
        if x.numel() <= self.few_torch:
            y = torch._weight_int8pack_mm(x.reshape(-1, k).to(torch.bfloat16), *self.bf16)
            y = y.to(x.dtype).view(*x.shape[:-1], n)
        else:
            y = F.linear(x, self.q.to(x.dtype)) * self.scale
        return y if self.bias is None else y + self.bias


def to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight (N, K) -> int8 (N, K) and fp32 scales (N,), of which it is about the product."""
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


@functools.cache
def products() -> dict:
    """The functions of int8.cpp by dtype; none of them where it cannot be built."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or sys.platform == "win32":
        return {}
    options = ["-O3", "-march=native", "-fopenmp", "-std=c++17", "-shared", "-fPIC"]
    if platform.machine() == "x86_64":
        options.append("-mprefer-vector-width=512")
    with tempfile.TemporaryDirectory() as folder:  # not kept: it fits this processor alone
        library = Path(folder) / "int8.so"
        command = [compiler, *options, str(SOURCE), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            built = ctypes.CDLL(str(library))
        except (OSError, subprocess.SubprocessError):
            return {}
    found = {torch.float32: built.product_float32, torch.bfloat16: built.product_bfloat16}
    for product in found.values():
        product.restype = None
        product.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 3 + [ctypes.c_int]
    return found
