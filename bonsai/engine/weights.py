"""A model as the engine runs it: with weights for the kernels of this device, in bfloat16 or int8.

A one-token step reads every weight once and does little else, so the memory's speed decides: half
the bytes give nearly twice the tokens per second.
"""

import copy

import torch
from torch import nn

from bonsai.engine.cpu.attention import attend
from bonsai.engine.cpu.block import join as join_on_cpu
from bonsai.engine.cpu.int8 import Int8Linear
from bonsai.engine.cpu.linear import PackedLinear, packs
from bonsai.engine.cpu.pages import LargePages
from bonsai.engine.cuda.block import join as join_on_gpu
from bonsai.engine.cuda.int8 import CudaInt8Linear
from bonsai.engine.cuda.kernels import load_kernels
from bonsai.engine.cuda.layers import HALF
from bonsai.models.edits import is_as_written, is_exactly
from bonsai.system.errors import UserError
from model import CausalSelfAttention

QUANTIZE = {
    "": "the weights as they are",
    "int8": "int8 weights, a scale per output channel; embeddings and norms stay as they are",
}

SMALL = 16  # a layer with fewer inputs stays as it is


def prepare(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    quantize: str = "",
    pack: bool = True,
    batch: int = 1,
    overlap: bool = True,
) -> nn.Module:
    """A copy of the model for inference only, with faster linear layers. It may share weights that
    stay as they are with the model. If nothing would change: the model itself, in eval mode.

    dtype: of weights and activations; None: the weights' own.
    quantize: a key of QUANTIZE. An output head that shares the embedding's weights gets a copy.
    pack: use oneDNN's kernels and our own, which torch.compile cannot handle.
    batch: the most rows of a step.
    overlap: whether a GPU's kernel may begin while the one before it still runs; False is for
        comparisons.

    Raises UserError for an unknown `quantize`.
    """
    if quantize not in QUANTIZE:
        raise UserError(f"quantize={quantize} is not one of {', '.join(filter(None, QUANTIZE))}")
    weight = next(model.parameters())
    dtype = dtype or weight.dtype
    pack = pack and is_as_written(model)
    # int8 weights are packed by our own code, whatever the dtype that is multiplied with them
    packed = pack and packs(weight.device, None if quantize else dtype)
    on_gpu = pack and weight.is_cuda
    faster = packed or quantize or (on_gpu and dtype in HALF)
    if not faster and dtype == weight.dtype:
        return model.eval()

    pages = LargePages()
    kernels = load_kernels(weight.device) if on_gpu and dtype in HALF else None
    if kernels and not overlap:
        kernels = kernels.in_order or kernels

    def make(linear: nn.Linear) -> nn.Module | None:
        if quantize == "int8" and on_gpu:
            return CudaInt8Linear(linear, dtype)
        if quantize == "int8":
            return Int8Linear(linear, dtype, pack, pages)
        return PackedLinear(linear, dtype, pages) if packed else None

    # deepcopy uses what `memo` has for an object's id: so the large matrices are never copied
    linears = (m for m in model.modules() if is_exactly(m, nn.Linear))
    large = [m for m in linears if m.in_features >= SMALL]
    memo = {id(m): new for m in large if (new := make(m))}
    if pack:
        memo |= {id(m): nn.Identity() for m in model.modules() if isinstance(m, nn.Dropout)}
    if not (packed or quantize):  # nor are all weights copied before they change their dtype
        memo |= {
            id(p): nn.Parameter(p.detach().to(dtype), p.requires_grad)
            for p in model.parameters()
            if p.is_floating_point()
        }
    # not .to(dtype), which would take the real parts of complex numbers
    model = copy.deepcopy(model, memo).eval()
    model._apply(lambda t: t.to(dtype) if t.is_floating_point() else t)
    if packed:
        join_on_cpu(model, dtype)
        for module in model.modules():
            if isinstance(module, CausalSelfAttention):
                module.attend = attend
    if kernels:
        join_on_gpu(model, dtype, kernels, batch)
    return model
