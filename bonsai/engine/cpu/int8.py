"""int8 weights: the conversion, and a linear layer that uses them.

On a CPU linear.cpp multiplies them. Without a compiler, and inside torch.compile, torch's own
operators do, which are slower.
"""

import torch
from torch import nn
from torch.nn import functional as F

from bonsai.engine.cpu.linear import FastLinear, call, has_tiles, products
from bonsai.engine.cpu.pages import LargePages


class Int8Linear(FastLinear):
    """y = x W^T + b with W as int8 and a scale per output channel (symmetric, to nearest).

    native: use linear.cpp if it can be built; False for torch.compile. pages: memory for weights.
    """

    # The most rows for which linear.cpp, or torch's int8 product, beats one with converted weights
    FEW, FEW_TORCH = 32, 16

    def __init__(
        self,
        linear: nn.Linear,
        dtype: torch.dtype,
        native: bool = True,
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
        # Attributes that are not buffers keep their dtype and are looked up faster. few, few_torch:
        # the largest input (in numbers) for linear.cpp's product, and for torch's, which supports
        # only bfloat16 and multiples of 32 inputs.
        self.shape, self.few, self.few_torch = (n, k), 0, 0
        if q.device.type == "cpu":
            self.products = products() if native else {}
            if self.products:
                self.few = 2**62 if has_tiles() and k % 64 == 0 else self.FEW * k
            self.few_torch = self.FEW_TORCH * k if k % 32 == 0 else 0
            self.fp32 = q, scale, None if bias is None else bias.float().contiguous()
            self.bf16 = q, scale.to(torch.bfloat16)

    @property
    def weight(self) -> torch.Tensor:
        return self.q.to(self.scale.dtype) * self.scale[:, None]

    def direct(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The weights and scales for block.cpp; None if there are none that it can read."""
        return self.fp32[:2] if self.few else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() <= self.few and (product := self.products.get(x.dtype)):
            return call(product, x, *self.fp32)
        n, k = self.shape
        if x.numel() <= self.few_torch:
            y = torch._weight_int8pack_mm(x.reshape(-1, k).to(torch.bfloat16), *self.bf16)
            y = y.to(x.dtype).view(*x.shape[:-1], n)
        else:
            y = F.linear(x, self.q.to(x.dtype)) * self.scale
        return y if self.bias is None else y + self.bias


def to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight (N, K) -> int8 (N, K) and float32 scales (N,); their product approximates it."""
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale
