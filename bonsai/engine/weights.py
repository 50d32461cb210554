"""A model as the engine runs it: weights packed for the CPU's kernels, in bf16 or in int8.

A one-token step reads every weight once and does little else, so its speed is that of the memory:
half the bytes are nearly twice the tokens.
"""

import copy
from collections.abc import Callable

import torch
from torch import nn

from bonsai.engine.attention import attend
from bonsai.engine.int8 import FastLinear, Int8Linear
from bonsai.errors import UserError
from model import ACTIVATIONS, Dropout

QUANTIZE = {
    "": "the weights as they are",
    "int8": "int8 weights, a scale per output channel; embeddings and norms stay as they are",
}

SMALL = 16  # a layer of fewer inputs stays as it is
FEW = 2**16  # numbers up to which GELU goes through torch's own kernel


def prepare(
    model: nn.Module, dtype: torch.dtype | None = None, quantize: str = "", pack: bool = True
) -> nn.Module:
    """A copy of the model for inference only: all linear layers replaced by faster ones.

    dtype: of weights and activations; None: the weights' own. quantize: a key of QUANTIZE. An
    output head that shares the embedding's weights gets a copy. pack: call kernels of oneDNN and
    our own on CPUs, which torch.compile does not take. Raises UserError.
    """
    if quantize not in QUANTIZE:
        raise UserError(f"quantize={quantize} is not one of {', '.join(filter(None, QUANTIZE))}")
    weight = next(model.parameters())
    dtype = dtype or weight.dtype
    own, pack = pack, pack and packs(weight.device)
    if not (pack or quantize) and dtype == weight.dtype:
        return model.eval()

    def make(linear: nn.Linear) -> nn.Module | None:
        if quantize == "int8":
            return Int8Linear(linear, dtype, own=own)
        return PackedLinear(linear, dtype) if pack else None

    # deepcopy takes what `memo` has for an object: no copy of the large matrices is made
    large = [m for m in model.modules() if isinstance(m, nn.Linear) and m.in_features >= SMALL]
    memo = {id(m): new for m in large if (new := make(m))}
    memo |= {id(m): nn.Identity() for m in model.modules() if isinstance(m, Dropout)}
    model = copy.deepcopy(model, memo).to(dtype).eval()
    if pack:
        gelus = {ACTIVATIONS[name]: own_kernel(ACTIVATIONS[name]) for name in ("gelu", "gelu_tanh")}
        for module in model.modules():
            if hasattr(module, "activation"):
                module.activation = gelus.get(module.activation, module.activation)
            if hasattr(module, "attend"):
                module.attend = attend
    return model


def packs(device: torch.device) -> bool:
    """Whether torch has oneDNN's kernels, and the operators of torch.compile to call them."""
    ops = torch.ops.mkldnn
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and all(hasattr(ops, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    )


def own_kernel(function: Callable) -> Callable:
    """The same function, by torch's own kernel where it is given few numbers.

    torch leaves GELU on CPUs to oneDNN, which needs longer to begin than for a token's numbers.
    """

    def call(x: torch.Tensor) -> torch.Tensor:
        if x.numel() > FEW or not torch.backends.mkldnn.enabled:
            return function(x)
        torch.backends.mkldnn.enabled = False
        try:
            return function(x)
        finally:
            torch.backends.mkldnn.enabled = True

    return call


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
