"""Linear layers with int8 weights on a GPU."""

import torch
from torch import nn
from torch.nn import functional as F

from bonsai.engine.cpu.int8 import to_int8
from bonsai.engine.cpu.linear import FastLinear
from bonsai.engine.cuda.kernels import Kernels
from bonsai.engine.cuda.layers import Product


class CudaInt8Linear(FastLinear):
    """y = x W^T + b with W as int8 and a scale per output channel, like Int8Linear.

    For few rows a kernel reads the int8 weights. For many rows, and without Triton, the weights are
    converted first; for a few rows this is slower than bfloat16 weights.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        # Attributes that are not buffers: so the scale stays float32 if the model is converted
        self.q, self.scale = to_int8(linear.weight)
        self.dtype, self.shape = dtype, tuple(self.q.shape)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.use(None)

    def use(self, kernels: Kernels | None) -> None:
        """Use these kernels, which were compared with plain torch, for few rows; None: use none."""
        self.kernels, self.few = kernels, kernels.sizes[-1] if kernels else 0

    @property
    def weight(self) -> torch.Tensor:
        return (self.q * self.scale[:, None]).to(self.dtype)

    @property
    def product(self) -> Product:
        return Product(self.q, self.scale, self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() <= self.few * x.size(-1):
            return self.kernels.product(x, self.product)
        y = F.linear(x, self.q.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias
