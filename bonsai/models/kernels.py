"""The kernels that compute a model: those of model.py, and others where they are faster.

model.py is plain torch on any device. `to_device` puts in their place what is here: attention to a
window in blocks; on a CPU attention to few keys by plain products in bfloat16, squared ReLU with a
backward of its own, and dropout by bytes; on a GPU a GELU of fewer instructions, and a table of
rotations, which a compiler would compute for every element of every layer. docs/LOG.md has what
each of them gains.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from bonsai.models.decoder import Decoder
from bonsai.models.head_loss import chunked_head_loss, kernel_head_loss
from bonsai.models.loss_kernel import HALF, has_kernel
from model import GPT, MLP, CausalSelfAttention, attention, causal_mask, rope_angles

SHORT = 256  # keys up to which plain products measured faster
FEW = 16  # keys up to which a compiler's sums need less of a GPU than a kernel's blocks


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on a device, with the kernels that are fastest there, to train it or to run it.

    On a CPU every nn.Dropout in it draws a byte per element from then on, see ByteDropout. One of
    p = 0 is gone, so that a compiled model needs one graph to be trained and to be evaluated.
    """
    model, on_cpu = model.to(device), device.type == "cpu"
    if hasattr(model, "head_loss"):
        model.head_loss = kernel_head_loss if has_kernel(device) else chunked_head_loss
    for module in list(model.modules()):
        if isinstance(module, GPT | Decoder) and module.config.position == "rope" and not on_cpu:
            c, positions = module.config, torch.arange(module.config.block_size, device=device)
            module.rotation = torch.stack(rope_angles(positions, c.head_dim, c.rope_base))
        if isinstance(module, CausalSelfAttention):
            gpu_attend = attend if has_flex(device, module.hs) else attend_in_blocks
            module.attend = cpu_attend if on_cpu else gpu_attend
        if isinstance(module, MLP) and module.activation == "relu2" and on_cpu:
            module.activate = relu_squared
        if isinstance(module, MLP) and module.activation == "gelu" and device.type == "cuda":
            module.activate = gelu
        for name, child in module.named_children():
            if type(child) is nn.Dropout and child.p == 0:
                setattr(module, name, nn.Identity())
            elif type(child) is nn.Dropout and on_cpu:
                setattr(module, name, ByteDropout(child.p).train(child.training))
    return model


# ---- attention: each as model.attention, with its arguments ----


def attend(q, k, v, mask, window: int, scale: float, dropout: float) -> torch.Tensor:
    """Attention to a window by a kernel where a compiler makes one, else in blocks."""
    local = mask is None and 0 < window < q.size(2)
    if local and not dropout and q.device.type == "cuda" and torch.compiler.is_compiling():
        return flex_local_attention(q, k, v, window, scale)
    return attend_in_blocks(q, k, v, mask, window, scale, dropout)


def has_flex(device: torch.device, channels: int) -> bool:
    """Whether torch can compile FlexAttention for heads of so many channels on a device. Of more
    than these its kernels do not fit in the shared memory of most GPUs, and the first step would
    end in a traceback; none before Ampere was tried."""
    if device.type != "cuda":
        return False
    major, _ = torch.cuda.get_device_capability(device)
    return major >= 8 and 16 <= channels <= (256 if major in (9, 10) else 128)


def attend_in_blocks(q, k, v, mask, window: int, scale: float, dropout: float) -> torch.Tensor:
    """Attention to a window in blocks, to few keys by a compiler, all else as model.py does it."""
    if q.device.type == "cuda" and torch.compiler.is_compiling() and k.size(2) <= FEW:
        return attention_to_few(q, k, v, mask, window, scale, dropout)
    if mask is None and 0 < window < q.size(2):
        return local_attention(attention, q, k, v, window, scale, dropout)
    return attention(q, k, v, mask, window, scale, dropout)


def cpu_attend(q, k, v, mask, window: int, scale: float, dropout: float) -> torch.Tensor:
    """In bfloat16 with few keys, and without the mask of a cache, by plain products."""
    T = q.size(2)
    if mask is None and T > 1 and q.dtype == torch.bfloat16:
        if T <= SHORT:
            seen = causal_mask(T, T, window, q.device)
            return product_attention(q, k, v, seen, 0, scale, dropout)
        if 0 < 2 * window <= SHORT:
            return local_attention(product_attention, q, k, v, window, scale, dropout)
    return attend_in_blocks(q, k, v, mask, window, scale, dropout)


def local_attention(kernel, q, k, v, window: int, scale: float, dropout: float) -> torch.Tensor:
    """Causal attention to the last `window` positions; q (B, nh, T, hs), k, v (B, nkv, T, hs).

    In blocks of `window` queries, each of which sees its own block and the one before (Child et al.
    2019, Beltagy et al. 2020): time and memory grow with T window instead of T^2. kernel: what
    computes the blocks, given a mask.
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
    """local_attention without a mask in memory, by one kernel made for the pattern: FlexAttention
    (Dong et al. 2024), which is one only where a compiler makes it. It has no dropout."""
    blocks, grouped = window_blocks(q.size(2), window, q.device), k.size(1) != q.size(1)
    return flex_attention(q, k, v, block_mask=blocks, scale=scale, enable_gqa=grouped)


def window_blocks(T: int, window: int, device: torch.device, size: int = 128) -> BlockMask:
    """Which blocks of `size` queries see which blocks of keys, in part or whole, when T queries
    each see the last `window` positions up to their own.

    Counted from the distance of the blocks; torch's create_block_mask would look at all T x T.
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
    twice. A kernel for long rows computes a block of 64 or 128 queries and keys for each row and
    head however few there are: of the 4 bytes of a patch a thousand times the work."""
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
    """Attention by plain products, always with a mask. The backward of torch's fused kernel takes
    1.7 (S = 256) to 4.8 (S = 64) times as long in bfloat16 on CPUs."""
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
    """F.gelu; in half precision to within 1e-6, for a compiler: see half_gelu."""
    return half_gelu(x) if torch.compiler.is_compiling() and x.dtype in HALF else F.gelu(x)


def half_gelu(x: torch.Tensor) -> torch.Tensor:
    """x times the normal distribution's share below x, by formula 7.1.26 of Abramowitz & Stegun
    (1964), whose error is below 1e-7: one exponential, which the derivative needs, too. With the
    error function of a GPU's library such a kernel waits for its arithmetic, some 45 instructions
    for 4 or 6 bytes, not for the memory.
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
    # held * share with the derivative `slope`: what is added is 0
    return (held * share + (z - held) * slope).to(x.dtype)


# ---- squared ReLU and dropout on a CPU ----


def relu_squared(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0)^2. A compiler gets plain operators, as it makes one pass of their backward, too: a
    graph with an autograd.Function torch would cut and lower anew in every run."""
    return F.relu(x).square() if torch.compiler.is_compiling() else ReluSquared.apply(x)


class ReluSquared(torch.autograd.Function):
    """max(x, 0)^2; autograd's own backward takes three times as long."""

    @staticmethod
    def forward(ctx, x):
        r = x.relu()
        ctx.save_for_backward(r)
        return r * r

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]


def drop(x: torch.Tensor, p: float) -> torch.Tensor:
    """Dropout (Srivastava et al. 2014) at training time on a CPU.

    A byte of noise decides for each element, so p is rounded to a multiple of 1/256; torch draws a
    number for each, which takes three times as long. A compiler gets torch's dropout, which it
    fuses with what is around it.
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
    """nn.Dropout by `drop` on a CPU; should the model be moved to another device, torch's there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        return drop(x, self.p) if self.training else x
