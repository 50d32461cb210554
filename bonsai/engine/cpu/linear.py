"""Linear layers of few rows on a CPU, see linear.cpp."""

from ctypes import c_int, c_int64, c_void_p

import torch
from torch import nn

from bonsai.engine.cpu.native import build, functions


class FastLinear(nn.Module):
    """A linear layer for inference only: without hooks, which cost as much as a small product."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x)


def call(
    product,
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """x (..., k), weight (n, k), scale and bias (n) in float32 -> y (..., n), by one of `products`.

    weight: int8 with a scale, or of x's dtype without one.
    """
    (n, k), x = weight.shape, x.contiguous()
    y = torch.empty((*x.shape[:-1], n), dtype=x.dtype)
    addresses = [None if t is None else t.data_ptr() for t in (weight, scale, bias, x, y)]
    product(*addresses, x.numel() // k, n, k, torch.get_num_threads())
    return y


def products() -> dict:
    """The products of linear.cpp by the activations' dtype; none where it cannot be built."""
    return functions("linear", "linear", *[c_void_p] * 5, *[c_int64] * 3, c_int)


def has_tiles() -> bool:
    """Whether linear.cpp multiplies int8 and bfloat16 by the CPU's matrix unit (AMX)."""
    library = build("linear")
    return bool(library and library.linear_has_tiles())
