"""Cross-entropy of logits in 16 bits, its gradient in their place: a Triton kernel for CUDA.

A row of logits is read twice, for the norm and for the gradient, which is written over it. There
are a few programs per multiprocessor, each with one row after another, so that the second reading
finds the row in the cache (L2) and memory is read once and written once. This module needs the
package triton, which torch's CUDA builds bring: loss_kernel.py imports it.
"""

import torch
import triton
import triton.language as tl

PROGRAMS = 4  # per multiprocessor
BLOCK = 4096  # logits that a program reads at a time
WARPS = 8
STAGES = 1  # blocks that are read ahead of what is computed; 1: none
HINTS = True  # tell the cache that a row is read again, and when it is not
LOWEST = tl.constexpr(-3e38)  # unlike -inf it can be subtracted from itself


@triton.jit
def bounded_by(x, cap, FAST: tl.constexpr):
    """tanh(x / cap); FAST: by the GPU's instruction, whose error of 2^-11 is that of bfloat16."""
    x = x / cap
    if FAST:
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return 1.0 - 2.0 / (1.0 + tl.exp(2.0 * x))


@triton.jit
def cross_entropy_rows(
    logits,
    stride,
    targets,
    after,
    further,
    losses,
    N,
    cap,
    V: tl.constexpr,
    WIDE: tl.constexpr,
    CAP: tl.constexpr,
    LOW: tl.constexpr,
    AFTER: tl.constexpr,
    GRADIENT: tl.constexpr,
    FAST: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    HINTS: tl.constexpr,
):
    """losses (N,) of logits (N, V), rows of `stride`, with targets (N,); with GRADIENT that of
    their sum is written over the logits, with AFTER also that of further times a second one's.

    A block has a row for each lane of eight neighbours, so that its maxima and sums are of a lane
    until the end: no warp waits for another. WIDE: the columns of a row that may be read and
    written, V or as many more as make whole eights, which are accessed at once. LOW: the cap is so
    low that it serves as the maximum, which is else searched for, and no exponential is then 0.
    """
    keep: tl.constexpr = "evict_last" if HINTS else ""
    leave: tl.constexpr = "evict_first" if HINTS else ""
    at = tl.arange(0, BLOCK // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    row = tl.program_id(0).to(tl.int64)  # N V may be above 2^31
    while row < N:
        here = logits + row * stride
        target = tl.load(targets + row)
        # an id outside the vocabulary gives a loss that is no number
        label = tl.load(here + tl.maximum(target, 0), mask=target < V, other=float("nan"))
        label = label.to(tl.float32)
        if CAP:
            label = cap * bounded_by(label, cap, FAST)
        best = tl.full((BLOCK // 8,), LOWEST, dtype=tl.float32)
        total = tl.zeros((BLOCK // 8,), dtype=tl.float32)
        for begin in tl.range(0, V, BLOCK, num_stages=STAGES):
            there = begin + at
            x = tl.load(here + there, mask=there < WIDE, other=0.0, eviction_policy=keep)
            x = x.to(tl.float32)
            if CAP:
                x = cap * bounded_by(x, cap, FAST)
            if LOW:
                total += tl.sum(tl.where(there < V, tl.exp(x - cap), 0.0), axis=1)
            else:
                x = tl.where(there < V, x, float("-inf"))
                higher = tl.maximum(best, tl.max(x, axis=1))
                sums = tl.sum(tl.exp(x - higher[:, None]), axis=1)
                total = total * tl.exp(best - higher) + sums
                best = higher
        if LOW:
            norm = cap + tl.log(tl.sum(total, axis=0))
        else:
            highest = tl.max(best, axis=0)
            norm = highest + tl.log(tl.sum(total * tl.exp(best - highest), axis=0))
        tl.store(losses + row, tl.where(target >= 0, norm - label, 0.0))
        if GRADIENT:
            norm = tl.where(target < V, norm, float("nan"))
            first = tl.where(target >= 0, 1.0, 0.0)
            weight = first
            if AFTER:
                then = tl.load(after + row)
                second = tl.where(then >= 0, tl.load(further).to(tl.float32), 0.0)
                weight += second
            tl.debug_barrier()  # all have read what any may write over
            for begin in tl.range(0, V, BLOCK, num_stages=STAGES):
                there = begin + at
                x = tl.load(here + there, mask=there < WIDE, other=0.0, eviction_policy=leave)
                x = x.to(tl.float32)
                if CAP:
                    bounded = bounded_by(x, cap, FAST)
                    x = cap * bounded
                g = tl.exp(x - norm) * weight
                g -= tl.where(there == target, first, 0.0)
                if AFTER:
                    g -= tl.where(there == then, second, 0.0)
                if CAP:
                    g *= 1.0 - bounded * bounded
                g = tl.where(weight == 0, 0.0, g)  # of an ignored row, whatever is in it
                tl.store(here + there, g.to(logits.dtype.element_ty), mask=there < WIDE)
        row += tl.num_programs(0)


def launch(
    logits: torch.Tensor,
    targets: torch.Tensor,
    after: torch.Tensor | None,
    further: torch.Tensor | None,
    cap: float,
    gradient: bool,
) -> torch.Tensor:
    """loss_kernel.losses, of logits in 16 bits.

    Where they are aligned (rows begin at multiples of 16, as triton counts), columns up to the next
    eight are written on, too: without them each logit of an odd vocabulary is accessed alone.
    """
    N, V = logits.shape
    losses = torch.empty(N, device=logits.device)
    if not N:
        return losses
    block = min(BLOCK, max(64, triton.next_power_of_2(V)))
    warps = min(WARPS, max(1, block // 256))  # of a small vocabulary: more rows at a time instead
    programs = PROGRAMS * WARPS // warps
    if logits.is_cuda:
        programs *= torch.cuda.get_device_properties(logits.device).multi_processor_count
    cross_entropy_rows[(min(N, programs),)](
        logits,
        logits.stride(0),
        targets.contiguous(),
        after if after is None else after.contiguous(),
        further,
        losses,
        N,
        float(cap),
        V,
        WIDE=V if logits.stride(0) % 16 else triton.cdiv(V, 8) * 8,
        CAP=cap > 0,
        LOW=0 < cap <= 30,
        AFTER=after is not None,
        GRADIENT=gradient,
        FAST=logits.is_cuda and torch.version.cuda is not None,  # neither interpreted nor on AMD
        BLOCK=block,
        STAGES=STAGES,
        HINTS=HINTS,
        num_warps=warps,
    )
    return losses
