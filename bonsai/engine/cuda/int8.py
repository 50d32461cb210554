"""Weights in 8 bits on a GPU."""

import torch
from torch import nn
from torch.nn import functional as F

from bonsai.engine.cpu.int8 import to_int8
from bonsai.engine.cpu.linear import FastLinear
from bonsai.engine.cuda.kernels import Kernels
from bonsai.engine.cuda.layers import Product


class CudaInt8Linear(FastLinear):
    """y = x W^T + b with W as int8 and a scale per output channel, as Int8Linear.

    Few rows go through a kernel that reads the weights as they are. Of many rows, and without
    Triton, they are converted first, which for a few rows takes longer than weights in bfloat16.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        # no buffers: the scale stays in float32 whatever the model is converted to
        self.q, self.scale = to_int8(linear.weight)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.use(None)

    def use(self, kernels: Kernels | None) -> None:
        """Have few rows go through these kernels, which were compared with plain torch; None: have
        none of them do."""
        self.kernels, self.few = kernels, kernels.sizes[-1] if kernels else 0

    @property
    def product(self) -> Product:
        return Product(self.q, self.scale, self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() <= self.few * x.size(-1):
            return self.kernels.product(x, self.product)
        y = F.linear(x, self.q.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias
