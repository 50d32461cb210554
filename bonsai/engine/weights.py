"""A model's weights as the engine reads them: packed for the CPU's kernels, in bf16 or in int8.

A one-token step reads every weight once and does little else, so its speed is that of the memory:
half the bytes are nearly twice the tokens.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from bonsai.errors import UserError
from model import Dropout

QUANTIZE = {
    "": "the weights as they are",
    "int8": "int8 weights, a scale per output channel; embeddings and norms stay as they are",
}

SMALL = 16  # a layer of fewer inputs stays as it is


def prepare(
    model: nn.Module, dtype: torch.dtype | None = None, quantize: str = "", pack: bool = True
) -> nn.Module:
    """A copy of the model for inference only: all linear layers replaced by faster ones.

    dtype: of weights and activations; None: the weights' own. quantize: a key of QUANTIZE. An
    output head that shares the embedding's weights gets a copy. pack: call oneDNN's kernels on
    CPUs, which torch.compile does not take. Raises UserError.
    """
    if quantize not in QUANTIZE:
        raise UserError(f"quantize={quantize} is not one of {', '.join(filter(None, QUANTIZE))}")
    weight = next(model.parameters())
    dtype = dtype or weight.dtype
    pack = pack and packs(weight.device)
    if not (pack or quantize) and dtype == weight.dtype:
        return model.eval()

    def make(linear: nn.Linear) -> nn.Module | None:
        if quantize == "int8":
            large = linear.weight.numel() >= Int8DynamicLinear.LARGE
            dynamic = pack and large and computes_int8()
            return (Int8DynamicLinear if dynamic else Int8Linear)(linear, dtype)
        return PackedLinear(linear, dtype) if pack else None

    # deepcopy takes what `memo` has for an object: no copy of the large matrices is made
    large = [m for m in model.modules() if isinstance(m, nn.Linear) and m.in_features >= SMALL]
    memo = {id(m): new for m in large if (new := make(m))}
    memo |= {id(m): nn.Identity() for m in model.modules() if isinstance(m, Dropout)}
    return copy.deepcopy(model, memo).to(dtype).eval()


def packs(device: torch.device) -> bool:
    """Whether torch has oneDNN's kernels, and the operators of torch.compile to call them."""
    ops = torch.ops.mkldnn
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and all(hasattr(ops, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    )


class FastLinear(nn.Module):
    """A linear layer for inference only: without hooks, which cost as much as a small product."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x)


class PackedLinear(FastLinear):
    """nn.Linear on the CPU with weights in the order in which oneDNN reads them.

    Unlike nn.Linear, which has oneDNN reorder them in every call. One token in float32 (a decoding
    step of one row) goes through a plain product with a vector, which takes less time to start;
    for it the model's own weights are kept as well.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        weight = linear.weight.detach().to(dtype)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, 16)
        self.plain = weight if dtype == torch.float32 else None
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.plain is None or x.numel() > x.size(-1):
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        row = x.view(-1)
        if self.bias is None:
            y = torch.mv(self.plain, row)
        else:
            y = torch.addmv(self.bias, self.plain, row)
        return y.view(*x.shape[:-1], -1)


class Int8Linear(FastLinear):
    """y = x W^T + b with W as int8 and a scale per output channel (symmetric, to nearest)."""

    FEW = 16  # rows up to which the CPU's kernel for them measured faster

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        q, scale = to_int8(linear.weight)
        self.register_buffer("q", q)
        self.register_buffer("scale", scale.to(dtype))
        bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.register_buffer("bias", bias)
        # the kernel takes whole vectors of inputs alone. No buffers: these keep their dtype, and
        # are found faster (a step of a small model is as much Python as products)
        self.few = (0, 0, None, None)  # numbers of a few rows, inputs, and what the kernel takes
        if q.device.type == "cpu" and linear.in_features % 32 == 0:
            few = self.FEW * linear.in_features
            self.few = (few, linear.in_features, q, scale.to(torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        few, inputs, q, scale = self.few
        if x.numel() <= few:  # reads int8, unlike a product with converted weights
            rows = x.view(-1, inputs)
            if x.dtype == torch.bfloat16:
                y = torch._weight_int8pack_mm(rows, q, scale)
            else:
                y = torch._weight_int8pack_mm(rows.to(torch.bfloat16), q, scale).to(x.dtype)
            y = y.view(x.size(0), -1, y.size(1)) if x.dim() == 3 else y.view(*x.shape[:-1], -1)
        else:
            y = F.linear(x, self.q.to(x.dtype)) * self.scale
        bias = self._buffers["bias"]
        return y if bias is None else y + bias


class Int8DynamicLinear(FastLinear):
    """As Int8Linear, with activations that become 8-bit too, with a scale per token.

    For CPUs with VNNI or AMX. Products are exact integers, so that a row does not depend on its
    neighbours at all; the conversion takes as long as a small product.
    """

    LARGE = 2**20  # weights from which this is the faster of the two

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        # plain attributes: fp32 whatever the model's dtype
        q, self.scale = to_int8(linear.weight)
        self.q = torch.ops.onednn.qlinear_prepack(q, None)
        self.zero = torch.zeros(len(q), dtype=torch.int32)
        self.least, self.middle = torch.tensor(1e-9), torch.tensor(128.5)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        full = x.float()
        step = torch.add(self.least, full.abs().amax(-1, keepdim=True), alpha=1 / 127)
        q = torch.addcdiv(self.middle, full, step).to(torch.uint8)  # round(x / step) + 128
        y = torch.ops.onednn.qlinear_pointwise(
            q, 1.0, 128, self.q, self.scale, self.zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y = y * step if self.bias is None else torch.addcmul(self.bias, y, step)
        return y.to(x.dtype)


def to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight (N, K) -> int8 (N, K) and fp32 scales (N,), of which it is about the product."""
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def computes_int8() -> bool:
    """Whether this CPU multiplies 8-bit integers without overflow on the way (VNNI, AMX)."""
    return getattr(torch.cpu, "_is_vnni_supported", bool)() and hasattr(
        torch.ops.onednn, "qlinear_pointwise"
    )
