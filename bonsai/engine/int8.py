"""Weights in 8 bits: the conversion, and a linear layer that reads them.

On a CPU a few rows of activations go through int8.cpp, see native.py, and more of them, where the
CPU multiplies matrices of bytes (AMX), through oneDNN. Without a compiler, and inside
torch.compile, all take torch's own ways, which are slower.
"""

import functools
from ctypes import c_int, c_int64, c_void_p

import torch
from torch import nn
from torch.nn import functional as F

from bonsai.engine.memory import LargePages
from bonsai.engine.native import functions

ZERO = torch.zeros(1, dtype=torch.int32)


class FastLinear(nn.Module):
    """A linear layer for inference only: without hooks, which cost as much as a small product."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x)


class Int8Linear(FastLinear):
    """y = x W^T + b with W as int8 and a scale per output channel (symmetric, to nearest).

    own: use int8.cpp where it can be built. Not for torch.compile. pages: where to put the weights.
    With AMX they are kept twice, in the order of each of the two products.
    """

    FEW, FEW_TORCH = 32, 16  # rows up to which each beats a product with converted weights
    # multiplications up to which int8.cpp beats oneDNN, and rows up to which it does in any case
    MANY_AMX, FEW_AMX = 2**24, 3
    CHUNK = 512  # rows that go through oneDNN at once, for the sake of memory

    def __init__(
        self,
        linear: nn.Linear,
        dtype: torch.dtype,
        own: bool = True,
        pages: LargePages | None = None,
    ):
        super().__init__()
        n, k = linear.weight.shape
        q, scale = to_int8(linear.weight)
        if pages is not None and q.device.type == "cpu":
            q = pages.copy(q)
        self.register_buffer("q", q)
        self.register_buffer("scale", scale.to(dtype))
        bias = None if linear.bias is None else linear.bias.detach()
        self.register_buffer("bias", None if bias is None else bias.to(dtype))
        # no buffers: these keep their dtype, and are found faster. The numbers of activations up to
        # which each product is taken; torch's knows whole vectors of inputs and bfloat16 alone
        self.shape, self.few, self.few_torch, self.packed = (n, k), 0, 0, None
        if q.device.type == "cpu":
            self.products = products() if own else {}
            if self.products and multiplies_bytes():
                self.packed = torch.ops.onednn.qlinear_prepack(q, None)
            few = self.FEW if self.products else 0
            if self.packed is not None:
                few = min(few, max(self.FEW_AMX, self.MANY_AMX // (n * k)))
            self.few = few * k
            self.few_torch = self.FEW_TORCH * k if k % 32 == 0 else 0
            self.fp32 = q, scale, None if bias is None else bias.float().contiguous()
            self.bf16 = q, scale.to(torch.bfloat16)

    def direct(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What block.cpp reads, weights and scales; None: nothing that it could."""
        return self.fp32[:2] if self.few else None

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
        if self.packed is not None and x.dtype in self.products:
            parts = [self.many(part) for part in x.reshape(-1, k).split(self.CHUNK)]
            return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(*x.shape[:-1], n)
        if x.numel() <= self.few_torch:
            y = torch._weight_int8pack_mm(x.reshape(-1, k).to(torch.bfloat16), *self.bf16)
            y = y.to(x.dtype).view(*x.shape[:-1], n)
        else:
            y = F.linear(x, self.q.to(x.dtype)) * self.scale
        return y if self.bias is None else y + self.bias

    def many(self, x: torch.Tensor) -> torch.Tensor:
        """x (rows, k) -> (rows, n), by two products of bytes: with the upper ones and the lower."""
        (n, k), rows, threads = self.shape, len(x), torch.get_num_threads()
        (_, scale, bias), x = self.fp32, x.contiguous()
        halves = torch.empty((2 * rows, k), dtype=torch.int8)
        step, y = torch.empty(rows), torch.empty((rows, n), dtype=x.dtype)
        split, join = splits()[x.dtype], joins()[x.dtype]
        split(x.data_ptr(), halves.data_ptr(), step.data_ptr(), rows, k, threads)
        found = byte_product(halves, self.packed, scale)
        bias = None if bias is None else bias.data_ptr()
        join(found.data_ptr(), step.data_ptr(), bias, y.data_ptr(), rows, n, threads)
        return y


def to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight (N, K) -> int8 (N, K) and fp32 scales (N,), of which it is about the product."""
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def products() -> dict:
    """The products of int8.cpp by dtype; none where it cannot be built. So splits and joins."""
    return functions("int8", "product", *[c_void_p] * 5, *[c_int64] * 3, c_int)


def splits() -> dict:
    return functions("int8", "split", *[c_void_p] * 3, *[c_int64] * 2, c_int)


def joins() -> dict:
    return functions("int8", "join", *[c_void_p] * 4, *[c_int64] * 2, c_int)


def byte_product(x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x (rows, k) int8, W (n, k) int8 packed, scale (n) -> x W^T scale, fp32, by oneDNN."""
    out = (1.0, 0, torch.float32, "none", [], "")  # fp32 as it is, nothing behind it
    return torch.ops.onednn.qlinear_pointwise(x, 1.0, 0, packed, scale, ZERO, None, *out)


@functools.cache
def multiplies_bytes() -> bool:
    """Whether the CPU multiplies matrices of bytes, and torch knows how: found by trying."""
    if not getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        return False
    x, w = torch.arange(-128, 128, dtype=torch.int8).view(2, 2, 64)
    try:
        found = byte_product(x, torch.ops.onednn.qlinear_prepack(w, None), torch.ones(2))
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(found, x.float() @ w.float().T)
