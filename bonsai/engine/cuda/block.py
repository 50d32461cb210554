"""One-token steps through a block on a GPU, with five or seven kernels, see block_kernels.py."""

import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from bonsai.engine.cuda.int8 import CudaInt8Linear
from bonsai.engine.cuda.kernels import (
    Kernels,
    check_attend_step,
    check_norm,
    check_overlap,
    check_product,
    check_products_overlap,
    check_sum,
    random,
    refuse,
    refuse_overlap,
    rows_of,
)
from bonsai.engine.cuda.layers import FOLLOWS, LAYER, RMS, Heads, NormLayer, Product
from bonsai.models.cache import KVCache
from bonsai.models.edits import can_join
from model import Block, Norm


class StepBlock(nn.Module):
    """A block of a GPT with kernels of our own for captured steps of few rows: one token in each
    row, at the positions `cache.pos`. `block` computes everything else.

    block: its layers are prepared for `dtype`. first: its first norm. following: the norm that is
    applied to this block's output, or None. In a step of more than sizes[0] rows that norm is
    computed together with the block's last sum, and passed on as an attribute of the output.
    """

    def __init__(
        self, block: Block, dtype: torch.dtype, kernels: Kernels, first: NormLayer,
        following: NormLayer | None,
    ):  # fmt: skip
        super().__init__()
        self.block, self.dtype, self.kernels = block, dtype, kernels
        a, mlp = block.attn, block.mlp
        self.first, self.second, self.following = first, norm_layer(block.ln_2), following
        # The gate of value embeddings also reads the normed stream: then the norm is a kernel apart
        self.apart = a.gate is not None
        self.qkv = product_of(a.c_attn, None if self.apart else self.first)
        self.out = product_of(a.c_proj)
        self.up = product_of(mlp.c_fc, self.second, mlp.activation)
        self.down = product_of(mlp.c_proj)
        kind = (RMS if a.rms else LAYER) if a.qk_norm else 0
        eps = head_eps(self.out.weight.device, dtype) if a.rms else 1e-5
        self.heads = Heads(a.nh, a.nkv, a.hs, a.scale, a.window, kind, eps)

    def forward(self, x, rotation=None, cache=None, values=None):
        if not self.takes(x, cache):
            return self.block(x, rotation, cache, values)
        k, v = cache.k[self.block.attn.layer], cache.v[self.block.attn.layer]
        return self.step(x, k, v, cache.pos, rotation, values)

    def step(self, x, k, v, pos, rotation=None, values=None) -> torch.Tensor:
        """x (B, 1, C) -> the block's output, as in model.py. The rest: see layers.attend_step."""
        kernels = self.kernels
        many, extra = len(x) > kernels.sizes[0], None
        if many or self.apart:
            normed = handed(x, self.first)
            normed = kernels.normed(x, *self.first) if normed is None else normed
            extra = None if values is None else self.gated(normed, values)
            qkv = kernels.product(normed, self.qkv._replace(norm=0))
        else:
            qkv = kernels.product(x, self.qkv)
        y = kernels.attend_step(qkv, k, v, pos, self.heads, rotation, extra)
        if not many:
            x = kernels.product(y, self.out, x)
            return kernels.product(kernels.product(x, self.up), self.down, x)
        x, normed = kernels.add_and_norm(y, self.out, x, self.second)
        up = kernels.product(normed, self.up._replace(norm=0))
        x, normed = kernels.add_and_norm(up, self.down, x, self.following)
        x.handed = self.following, normed
        return x

    def gated(self, normed: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Value embeddings (B, 1, nkv hs) times their gates, as in model.py's attention."""
        gate = self.block.attn.gate
        gates = 3 * torch.sigmoid(gate(normed[..., : gate.in_features]))
        return (gates[..., None] * values.view(*gates.shape, -1)).flatten(-2)

    def takes(self, x: torch.Tensor, cache) -> bool:
        """Whether the kernels can compute this step."""
        return (
            isinstance(cache, KVCache)
            and cache.pos is not None
            and x.size(1) == 1
            and len(x) <= self.kernels.sizes[-1]
            and x.dtype == cache.k.dtype == self.dtype
        )


class StepNorm(nn.Module):
    """The norm after the last block, unless that block has computed it already."""

    def __init__(self, norm: Norm, layer: NormLayer):
        super().__init__()
        self.norm, self.layer = norm, layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = handed(x, self.layer)
        return self.norm(x) if normed is None else normed


def handed(x: torch.Tensor, norm: NormLayer) -> torch.Tensor | None:
    """This norm of x, if the block before has computed it; else None."""
    by, normed = getattr(x, "handed", (None, None))
    return normed if by is norm else None


def norm_layer(norm: Norm) -> NormLayer:
    return NormLayer(RMS if norm.rms else LAYER, norm.weight, norm.bias)


def product_of(linear: nn.Module, norm: NormLayer | None = None, activation: str = "") -> Product:
    """The description of a prepared layer, with the norm before and the activation after it."""
    weight, scale = getattr(linear, "weight", None), None
    if isinstance(linear, CudaInt8Linear):
        weight, scale = linear.q, linear.scale
    return Product(weight, scale, linear.bias, *(norm or ()), activation=activation)


def join(model: nn.Module, dtype: torch.dtype, kernels: Kernels, batch: int) -> None:
    """Make a model of prepared layers use the kernels: its blocks are replaced by StepBlocks, and
    its int8 layers use them. If a kernel gives other numbers than torch in a step of up to `batch`
    rows, none is used, and one line says why."""
    rope = getattr(model.config, "position", "") == "rope"
    # other caches do not support steps of fixed shapes
    steps = isinstance(model.new_cache(1, 1), KVCache)
    owners = [m for m in model.modules() if steps and has_blocks(m) and can_join(model, m)]
    linears = [m for m in model.modules() if isinstance(m, CudaInt8Linear)]
    failed = []
    for chosen in filter(None, (kernels, kernels.in_order)):
        try:
            if chosen.in_order:
                check_products_overlap(chosen, next(model.parameters()).device)
            layers = [step_layers(model, owner, dtype, chosen) for owner in owners]
            for blocks, _ in layers:
                for block in one_of_each_kind(blocks):
                    check(block, batch, rope)
            # whatever the batch: short prompts also have few enough rows for these kernels
            for linear in {(m.q.shape, m.bias is None): m for m in linears}.values():
                check_product(chosen, linear.product, dtype, chosen.sizes[-1])
            break
        except Exception as e:  # Triton has many ways to fail, and plain torch computes the same
            failed.append(e)
    else:
        return refuse(failed[-1])
    if failed:
        refuse_overlap(failed[0])
    for linear in linears:
        linear.use(chosen)
    for owner, (blocks, last) in zip(owners, layers):
        owner.h, owner.ln_f = nn.ModuleList(blocks), last


def has_blocks(module: nn.Module) -> bool:
    return isinstance(getattr(module, "h", None), nn.ModuleList)


def one_of_each_kind(blocks: list[nn.Module]) -> list[StepBlock]:
    """One StepBlock of each kind in a model; those of a kind need the same kernels."""
    steps = [b for b in blocks if isinstance(b, StepBlock)]
    return [*{(b.apart, b.following is None, b.heads): b for b in reversed(steps)}.values()]


def step_layers(
    model: nn.Module, owner: nn.Module, dtype: torch.dtype, kernels: Kernels
) -> tuple[list[nn.Module], nn.Module]:
    """The owner's blocks `h`, as StepBlocks where the kernels can compute them, and its `ln_f`."""
    last = norm_layer(owner.ln_f) if isinstance(owner.ln_f, Norm) else None
    firsts = [norm_layer(block.ln_1) if computes(block) else None for block in owner.h]
    following = [*firsts[1:], last]
    if getattr(model.config, "residual_lambdas", False):  # the next block mixes another stream in
        following[:-1] = [None] * (len(firsts) - 1)
    blocks = [
        StepBlock(block, dtype, kernels, *norms) if norms[0] else block
        for block, *norms in zip(owner.h, firsts, following)
    ]
    return blocks, StepNorm(owner.ln_f, last) if last else owner.ln_f


def check(step: StepBlock, batch: int, rope: bool) -> None:
    """Raise Triton's error, or RuntimeError if a kernel gives other numbers than torch for this
    block, or if overlapping kernels do so in a captured graph compared with one by one."""
    kernels, dtype = step.kernels, step.dtype
    with torch.no_grad():
        like = step.out.weight.new_empty(0, dtype=dtype)
        for layer in (step.qkv, step.up):
            check_product(kernels, layer, dtype, batch)
        check_sum(kernels, step.out, step.second, dtype, batch)
        check_sum(kernels, step.down, step.following, dtype, batch)
        if step.apart or batch > kernels.sizes[0]:
            check_norm(kernels, step.first, step.up.weight.size(1), like, batch)
        for rows in {2, max(2, min(batch, kernels.sizes[-1]))}:
            check_attend_step(kernels, step.heads, like, rope, rows, step.apart)
        for rows in rows_of(kernels.sizes, batch) if kernels.in_order else ():
            check_overlap(steps_of(step, rows, rope), like.device)


def steps_of(step: StepBlock, rows: int, rope: bool) -> Callable[[], list[torch.Tensor]]:
    """A function that computes a block, with a cache, for three tokens one after another."""
    heads, like = step.heads, step.out.weight.new_empty(0, dtype=step.dtype)
    first = random((rows, 1, step.out.weight.size(0)), like, step.dtype)
    cache = random((2, rows, heads.nkv, 16, heads.hs), like, step.dtype)
    filled = cache.clone()
    turns = random((2, rows, 1, 1, heads.hs), like, torch.float32) if rope else None
    values = random((rows, 1, heads.nkv * heads.hs), like, step.dtype) if step.apart else None
    places = [torch.full((rows,), at, device=like.device) for at in (7, 8, 9)]

    def compute() -> list[torch.Tensor]:
        cache.copy_(filled)
        x = first
        for pos in places:
            x = step.step(x, *cache, pos, turns, values)
        return [x, cache]

    return compute


def computes(block: nn.Module) -> bool:
    """Whether the kernels can compute this block."""
    return isinstance(block, Block) and block.mlp.activation in FOLLOWS and not block.post


@functools.cache
def head_eps(device: torch.device, dtype: torch.dtype) -> float:
    """The eps of torch's rms_norm if none is given: that of the input's dtype or that of float32,
    depending on torch's release and on the device."""
    x = torch.full((8,), 0.01, device=device, dtype=dtype)
    small = F.rms_norm(x, (8,)).float()[0] < 0.5
    return torch.finfo(dtype if small else torch.float32).eps
