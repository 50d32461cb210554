"""One-token steps through a block on a GPU in five kernels, see block_kernels.py."""

import functools

import torch
from torch import nn
from torch.nn import functional as F

from bonsai.engine.cuda.int8 import CudaInt8Linear
from bonsai.engine.cuda.kernels import Kernels, check_attend_step, check_product, refuse
from bonsai.engine.cuda.layers import FOLLOWS, LAYER, RMS, Heads, Product
from bonsai.models.cache import KVCache
from model import Block, Norm


class StepBlock(nn.Module):
    """A block of a GPT: a step of few rows as captured ones are, one token at the positions of
    `cache.pos`, by kernels of our own; all else by the block as it is.

    block: whose layers are prepared for `dtype`.
    """

    def __init__(self, block: Block, dtype: torch.dtype, found: Kernels):
        super().__init__()
        self.block, self.dtype, self.kernels = block, dtype, found
        a, mlp = block.attn, block.mlp
        # what gates value embeddings sees the stream after the norm, too
        self.apart = a.gate is not None
        self.qkv = self.product(a.c_attn, None if self.apart else block.ln_1)
        self.out = self.product(a.c_proj)
        self.up = self.product(mlp.c_fc, block.ln_2, mlp.activation)
        self.down = self.product(mlp.c_proj)
        kind = (RMS if a.rms else LAYER) if a.qk_norm else 0
        eps = head_eps(self.out.weight.device, dtype) if a.rms else 1e-5
        self.heads = Heads(a.nh, a.nkv, a.hs, a.scale, a.window, kind, eps)

    def product(self, linear: nn.Module, norm: Norm | None = None, activation: str = ""):
        """A prepared layer as block_kernels.Product."""
        weight, scale = getattr(linear, "weight", None), None
        if isinstance(linear, CudaInt8Linear):
            weight, scale = linear.q, linear.scale
        of = Product(weight, scale, linear.bias, activation=activation)
        if norm is None:
            return of
        kind = RMS if norm.rms else LAYER
        return of._replace(norm=kind, gain=norm.weight, shift=norm.bias)

    def forward(self, x, rotation=None, cache=None, values=None):
        if not self.takes(x, cache):
            return self.block(x, rotation, cache, values)
        product, a = self.kernels.product, self.block.attn
        k, v = cache.k[a.layer], cache.v[a.layer]
        many, extra = len(x) > self.kernels.normed, None
        if many or self.apart:
            normed = self.block.ln_1(x)
            if values is not None:
                gate = 3 * torch.sigmoid(a.gate(normed[..., : a.gate.in_features]))
                extra = (gate[..., None] * values.view(*gate.shape, -1)).flatten(-2)
            qkv = product(normed, self.qkv._replace(norm=0))
        else:
            qkv = product(x, self.qkv)
        y = self.kernels.attend_step(qkv, k, v, cache.pos, self.heads, rotation, extra)
        x = product(y, self.out, x)
        up = (self.block.ln_2(x), self.up._replace(norm=0)) if many else (x, self.up)
        return product(product(*up), self.down, x)

    def takes(self, x: torch.Tensor, cache) -> bool:
        """Whether this is a step for the kernels."""
        return (
            isinstance(cache, KVCache)
            and cache.pos is not None
            and x.size(1) == 1
            and len(x) <= self.kernels.few
            and x.dtype == cache.k.dtype == self.dtype
        )


def join(model: nn.Module, dtype: torch.dtype, found: Kernels, batch: int) -> None:
    """Make the blocks of a model of prepared layers StepBlocks where the kernels compute them; none
    of them, after one line that says why, where one would give something else in a step of up to
    `batch` rows."""
    rope = getattr(model.config, "position", "") == "rope"
    owners = [m for m in model.modules() if isinstance(getattr(m, "h", None), nn.ModuleList)]
    for owner in owners:
        blocks = [StepBlock(b, dtype, found) if computes(b) else b for b in owner.h]
        try:
            check(next((b for b in blocks if isinstance(b, StepBlock)), None), batch, rope)
        except Exception as e:  # Triton has many ways to fail, and the blocks compute the same
            return refuse(e)
        owner.h = nn.ModuleList(blocks)


def check(step: StepBlock | None, batch: int, rope: bool) -> None:
    """Raise what Triton does, or RuntimeError where a kernel gives something else for the block."""
    if step is not None:
        with torch.no_grad():
            for of in (step.qkv, step.out, step.up, step.down):
                check_product(step.kernels, of, step.dtype, batch)
            like = step.out.weight.new_empty(0, dtype=step.dtype)
            for rows in {2, max(2, batch)}:
                check_attend_step(step.kernels, step.heads, like, rope, rows)


def computes(block: nn.Module) -> bool:
    """Whether the kernels compute what this block does."""
    return isinstance(block, Block) and block.mlp.activation in FOLLOWS and not block.post


@functools.cache
def head_eps(device: torch.device, dtype: torch.dtype) -> float:
    """What torch adds to the mean square of a head in rms_norm without eps: the resolution of the
    head's numbers or of those it computes in, by release and device."""
    x = torch.full((8,), 0.01, device=device, dtype=dtype)
    small = F.rms_norm(x, (8,)).float()[0] < 0.5
    return torch.finfo(dtype if small else torch.float32).eps
