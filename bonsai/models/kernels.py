"""Faster ways to compute what model.py computes, for each kind of device.

model.py is plain torch on any device. `to_device` moves a model and replaces parts of it by what is
here: attention to a window in blocks; on a CPU attention to few keys by plain products in bfloat16,
squared ReLU with its own backward pass, and dropout by bytes; on a GPU a GELU with fewer
instructions, and a table of rotations, which a compiler would compute for every element of every
layer. docs/LOG.md says what each of them gains.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from bonsai.models.decoder import Decoder
from bonsai.models.edits import ATTENTION, LOSS, as_written, is_as_written, is_exactly
from bonsai.models.head_loss import chunked_head_loss, kernel_head_loss
from bonsai.models.loss_kernel import HALF, has_kernel
from model import GPT, attention, causal_mask, head_loss, relu2, rope_angles

SHORT = 256  # number of keys up to which plain products were measured to be faster
FEW = 16  # number of keys up to which a compiler's sums take less work than a kernel's blocks
# Number of queries from which on FlexAttention takes its kernel for training. For fewer it takes
# that for steps of decoding, which cannot be made for all shapes: training would end in a traceback
MANY = 128


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on a device, with the kernels that are fastest there, for training and inference.

    On a CPU every nn.Dropout is replaced by one that draws a byte per element, see ByteDropout.
    Dropout with p = 0 is removed, so that a compiled model has one graph for training and
    evaluation. Code of model.py that was edited stays as it is: edits.py.
    """
    model, on_cpu = model.to(device), device.type == "cpu"
    written = is_as_written(model)
    if is_plain_head(model) and as_written(*LOSS):
        model.head_loss = kernel_head_loss if has_kernel(device) else chunked_head_loss
    attends = as_written(*ATTENTION)
    for module in list(model.modules()):
        if isinstance(module, GPT | Decoder) and module.config.position == "rope" and not on_cpu:
            c, positions = module.config, torch.arange(module.config.block_size, device=device)
            module.rotation = torch.stack(rope_angles(positions, c.head_dim, c.rope_base))
        # a function that is model.py's own, whatever was edited around it
        if attends and getattr(module, "attend", None) in (attention, *ATTENDS):
            gpu_attend = attend if has_flex(device, getattr(module, "hs", 0)) else attend_in_blocks
            module.attend = cpu_attend if on_cpu else gpu_attend
        if on_cpu and getattr(module, "activate", None) is relu2 and as_written("relu2"):
            module.activate = relu_squared
        if device.type == "cuda" and getattr(module, "activate", None) is F.gelu:
            module.activate = gelu
        for name, child in module.named_children() if written else ():
            if type(child) is nn.Dropout and child.p == 0:
                setattr(module, name, nn.Identity())
            elif type(child) is nn.Dropout and on_cpu:
                setattr(module, name, ByteDropout(child.p).train(child.training))
    return model


def is_plain_head(model: nn.Module) -> bool:
    """Whether the loss of a model is model.head_loss, of a head that is one product."""
    loss, head = getattr(model, "head_loss", None), getattr(model, "lm_head", None)
    ours = loss in (head_loss, chunked_head_loss, kernel_head_loss)
    return ours and type(model).head is GPT.head and is_exactly(head, nn.Linear)


# ---- attention: each function computes what model.attention does, from the same arguments ----


def attend(q, k, v, mask, window: int, scale: float, dropout: float) -> torch.Tensor:
    """Attention to a window: by FlexAttention if it is compiled for a GPU, else in blocks."""
    local = mask is None and 0 < window < q.size(2) and q.size(2) >= MANY
    if local and not dropout and q.device.type == "cuda" and torch.compiler.is_compiling():
        return flex_local_attention(q, k, v, window, scale)
    return attend_in_blocks(q, k, v, mask, window, scale, dropout)


def has_flex(device: torch.device, channels: int) -> bool:
    """Whether torch can compile FlexAttention for heads of so many channels on a device. For larger
    heads its kernels do not fit in the shared memory of most GPUs, and the first step would end in
    a traceback. GPUs before Ampere were not tried."""
    if device.type != "cuda":
        return False
    major, _ = torch.cuda.get_device_capability(device)
    return major >= 8 and 16 <= channels <= (256 if major in (9, 10) else 128)


def attend_in_blocks(q, k, v, mask, window: int, scale: float, dropout: float) -> torch.Tensor:
    """Attention to few keys by sums if it is compiled, to a window in blocks, else model.py's."""
    if q.device.type == "cuda" and torch.compiler.is_compiling() and k.size(2) <= FEW:
        return attention_to_few(q, k, v, mask, window, scale, dropout)
    if mask is None and 0 < window < q.size(2):
        return local_attention(attention, q, k, v, window, scale, dropout)
    return attention(q, k, v, mask, window, scale, dropout)


def cpu_attend(q, k, v, mask, window: int, scale: float, dropout: float) -> torch.Tensor:
    """In bfloat16 attention to few keys by plain products, without a cache; else as above."""
    T = q.size(2)
    if mask is None and T > 1 and q.dtype == torch.bfloat16:
        if T <= SHORT:
            seen = causal_mask(T, T, window, q.device)
            return product_attention(q, k, v, seen, 0, scale, dropout)
        if 0 < 2 * window <= SHORT:
            return local_attention(product_attention, q, k, v, window, scale, dropout)
    return attend_in_blocks(q, k, v, mask, window, scale, dropout)


ATTENDS = (attend, attend_in_blocks, cpu_attend)


def local_attention(kernel, q, k, v, window: int, scale: float, dropout: float) -> torch.Tensor:
    """Causal attention to the last `window` positions; q (B, nh, T, hs), k, v (B, nkv, T, hs).

    A block of `window` queries attends to its own block of keys and to the one before (Child et al.
    2019, Beltagy et al. 2020): time and memory grow with T window instead of T^2. kernel: the
    function that computes the blocks, given a mask.
    """
    B, nh, T, hs = q.shape
    n, w = -(-T // window), window
    q = F.pad(q, (0, 0, 0, n * w - T)).view(B, nh, n, w, hs)
    k, v = (F.pad(x, (0, 0, w, n * w - T)).view(B, -1, n + 1, w, hs) for x in (k, v))
    k, v = (torch.cat((x[:, :, :-1], x[:, :, 1:]), 3) for x in (k, v))  # (B, nkv, n, 2w, hs)
    q, k, v = (x.transpose(1, 2).reshape(B * n, -1, x.size(3), hs) for x in (q, k, v))
    seen = causal_mask(w, 2 * w, w, q.device).repeat(n, 1, 1, 1)
    seen[0, ..., :w] = False  # nothing before the first block
    y = kernel(q, k, v, seen.repeat(B, 1, 1, 1), 0, scale, dropout)
    return y.view(B, n, nh, w, hs).transpose(1, 2).reshape(B, nh, n * w, hs)[:, :, :T]


def flex_local_attention(q, k, v, window: int, scale: float) -> torch.Tensor:
    """local_attention without a mask in memory, by one kernel made for this pattern: FlexAttention
    (Dong et al. 2024), which is a kernel only if it is compiled. It has no dropout."""
    blocks, grouped = window_blocks(q.size(2), window, q.device), k.size(1) != q.size(1)
    return flex_attention(q, k, v, block_mask=blocks, scale=scale, enable_gqa=grouped)


def window_blocks(T: int, window: int, device: torch.device, size: int = 128) -> BlockMask:
    """Which blocks of `size` queries see which blocks of keys, in part or whole, if each of T
    queries sees the last `window` positions up to its own.

    Computed from the distance between blocks; torch's create_block_mask would look at all T x T.
    """
    n = -(-T // size)
    i = torch.arange(n, device=device)
    first = (i - (window + size - 2) // size).clamp(min=0)  # block of keys that is seen at all
    whole = (i + 1 - window // size).clamp(min=0)  # ... by every query of block i
    # its own block is seen in part, and so is all by a last block that is not full of queries
    whole = torch.where((i + 1) * size <= T, torch.minimum(whole, i), i)
    near = torch.arange(n, device=device)[None, :]

    def table(*spans):  # numbers of the blocks in begin ... end - 1 of each row, then any
        inside = sum((near >= begin[:, None]) & (near < end[:, None]) for begin, end in spans) > 0
        order = torch.argsort(inside.int(), dim=1, descending=True, stable=True)
        return inside.sum(1, dtype=torch.int32)[None, None], order.int()[None, None]

    def seen(b, h, query, key):
        return (key <= query) & (key > query - window)

    part, full = table((first, whole), (i, i + 1)), table((whole, i))
    return BlockMask.from_kv_blocks(
        *part, *full, BLOCK_SIZE=size, mask_mod=seen, seq_lengths=(T, T)
    )


def attention_to_few(q, k, v, mask, window: int, scale: float, dropout: float) -> torch.Tensor:
    """Attention as sums of products in fp32, which a compiler fuses: each tensor is read once or
    twice. A kernel for long rows always computes blocks of 64 or 128 queries and keys for each row
    and head; for the 4 bytes of a patch that is a thousand times the work."""
    if k.size(1) != q.size(1):
        k, v = (x.repeat_interleave(q.size(1) // k.size(1), dim=1) for x in (k, v))
    seen = causal_mask(q.size(2), k.size(2), window, q.device) if mask is None else mask
    scores = scale * (q.float()[:, :, :, None] * k.float()[:, :, None]).sum(-1)  # (B, nh, T, S)
    if seen.dtype == torch.bool:
        scores = scores.masked_fill(~seen, -math.inf)
    else:  # a cache's, of 0 and -inf
        scores = scores + seen
    probs = F.softmax(scores, dim=-1)
    probs = F.dropout(probs, dropout) if dropout else probs
    return (probs[..., None] * v.float()[:, :, None]).sum(-2).to(q.dtype)


def product_attention(q, k, v, mask, window: int, scale: float, dropout: float) -> torch.Tensor:
    """Attention by plain products, always with a mask. In bfloat16 on CPUs the backward pass of
    torch's fused kernel takes 1.7 (S = 256) to 4.8 (S = 64) times as long."""
    (B, nh, T, hs), (nkv, S) = q.shape, k.shape[1:3]
    if nkv != nh:
        k, v = (x.repeat_interleave(nh // nkv, dim=1) for x in (k, v))
    q, k, v = (x.reshape(B * nh, -1, hs) for x in (q, k, v))
    unseen = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
    unseen = unseen.expand(B, nh, T, S).reshape(B * nh, T, S) if mask.dim() > 2 else unseen
    scores = torch.baddbmm(unseen, q, k.transpose(1, 2), alpha=scale)  # (B nh, T, S)
    probs = drop(F.softmax(scores, dim=-1), dropout)
    return torch.bmm(probs.to(v.dtype), v).view(B, nh, T, hs)


# ---- GELU on a GPU ----


def gelu(x: torch.Tensor) -> torch.Tensor:
    """F.gelu; if it is compiled, in half precision, half_gelu, which equals it to 1e-6."""
    return half_gelu(x) if torch.compiler.is_compiling() and x.dtype in HALF else F.gelu(x)


def half_gelu(x: torch.Tensor) -> torch.Tensor:
    """x times the normal distribution's share below x, by formula 7.1.26 of Abramowitz & Stegun
    (1964), whose error is below 1e-7. It takes one exponential, which the derivative needs, too.
    With the error function of a GPU's library, some 45 instructions for 4 or 6 bytes, the speed of
    such a kernel is limited by its arithmetic and not by the memory.
    """
    z = x.float()
    held = z.detach()
    bell = torch.exp(-0.5 * held * held)
    t = 1 / (1 + 0.3275911 / math.sqrt(2) * held.abs())
    series = 0.254829592 + t * (
        -0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))
    )
    tail = 0.5 * series * t * bell
    share = torch.where(held < 0, tail, 1 - tail)
    slope = share + held * bell / math.sqrt(2 * math.pi)
    # held * share, with `slope` as the derivative: the second term is 0
    return (held * share + (z - held) * slope).to(x.dtype)


# ---- squared ReLU and dropout on a CPU ----


def relu_squared(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0)^2. A compiler gets plain operators, whose backward pass it fuses, too; a graph with
    an autograd.Function is in none of torch's caches, and would be compiled anew in every run."""
    return F.relu(x).square() if torch.compiler.is_compiling() else ReluSquared.apply(x)[0]


class ReluSquared(torch.autograd.Function):
    """max(x, 0)^2 and, for the backward pass, max(x, 0); the backward pass that autograd makes
    takes three times as long.

    What is saved is an output, so that second derivatives, too, find their way to x: through a
    tensor that was made on the way here there is none, and they would be wrong without a word.
    """

    generate_vmap_rule = True  # torch.func: gradients of each sample

    @staticmethod
    def forward(x):
        r = x.relu()
        return r * r, r

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output[1])
        ctx.set_materialize_grads(False)  # a first derivative has none of the second output

    @staticmethod
    def backward(ctx, grad, grad_r):
        (r,) = ctx.saved_tensors
        terms = []
        if grad is not None:
            terms.append(2 * grad * r)
        if grad_r is not None:
            terms.append(grad_r * (r > 0))
        return sum(terms[1:], terms[0]) if terms else None


def drop(x: torch.Tensor, p: float) -> torch.Tensor:
    """Dropout (Srivastava et al. 2014) at training time on a CPU.

    One random byte decides for each element, so p is rounded to a multiple of 1/256. torch draws a
    whole number for each, which takes three times as long. A compiler gets torch's dropout, which
    it fuses with the operations around it.
    """
    if p == 0:
        return x
    if torch.compiler.is_compiling():
        return F.dropout(x, p)
    level = min(255, max(1, round(256 * p)))
    noise = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    keep = noise.view(torch.uint8)[: x.numel()].view(x.shape) >= level
    return x * (keep.to(x.dtype) * (256 / (256 - level)))


class ByteDropout(nn.Dropout):
    """nn.Dropout that uses `drop` on a CPU, and torch's dropout if the model is moved elsewhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        return drop(x, self.p) if self.training else x
