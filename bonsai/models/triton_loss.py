"""Cross-entropy of logits in 16 bits, which are overwritten with their gradient: a Triton kernel.

A row of logits is read twice: for the norm, and for the gradient, which is written over it. Only a
few programs are on a multiprocessor at a time, each with one row after another, so that the second
pass finds the row in the cache (L2): memory is read once and written once. On an H200 this takes
2.0 ms for 32 x 1,024 rows of 50,304, and 2.1 ms with softcap and second loss; reading and writing
the bytes alone would take 1.5 ms. This module needs the package triton, which comes with torch for
CUDA; loss_kernel.py imports it.
"""

import torch
import triton
import triton.language as tl

from bonsai.system.compiler import FUSED

PROGRAMS = 64  # per multiprocessor, of which two or so are there at a time
BLOCK = 8192  # logits that a program reads at a time, 32 bytes per thread
WARPS = 16
STAGES = 1  # blocks in flight: 1 reads none ahead
HINTS = True  # tell the cache whether a row will be read again
LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e38)  # in place of -inf, as -inf minus itself would be NaN


@triton.jit
def exp2(x, FAST: tl.constexpr):
    """2^x; FAST: by the GPU's instruction alone, which gives 0 for results below 2^-126."""
    if FAST:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)


@triton.jit
def tanh(x, FAST: tl.constexpr):
    """tanh; FAST: by the GPU's instruction, whose error, 2^-11, is as large as bfloat16's."""
    if FAST:
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return 1.0 - 2.0 / (1.0 + tl.exp(2.0 * x))


@triton.jit
def add_block(
    x,
    best,
    total,
    inside,
    cap,
    CAP: tl.constexpr,
    LOW: tl.constexpr,
    PART: tl.constexpr,
    FAST: tl.constexpr,
):
    """Update each lane's maximum, and its sum of e^(x - maximum), by a block x (lanes, 8).

    With a cap the maxima are in units of log 2. PART: only those x that are `inside` count.
    """
    x = x.to(tl.float32)
    unit: tl.constexpr = 1.0 if CAP else LOG2E
    if CAP:
        x = (cap * LOG2E) * tanh(x * (1.0 / cap), FAST)
    if LOW:
        p = exp2(x - cap * LOG2E, FAST)
        if PART:
            p = tl.where(inside, p, 0.0)
        total += tl.sum(p, axis=1)
    else:
        if PART:
            x = tl.where(inside, x, float("-inf"))
        higher = tl.maximum(best, tl.max(x, axis=1))
        sums = tl.sum(exp2(x * unit - (higher * unit)[:, None], FAST), axis=1)
        total = total * exp2((best - higher) * unit, FAST) + sums
        best = higher
    return best, total


@triton.jit
def softmax_gradient(x, norm, cap, CAP: tl.constexpr, FAST: tl.constexpr):
    """The softmax of x, given its norm in units of log 2, and the slope of the cap at x."""
    x = x.to(tl.float32)
    if CAP:
        bounded = tanh(x * (1.0 / cap), FAST)
        # bounded first: triton 3.7's interpreter cannot multiply a constant by a tensor
        return exp2(bounded * (cap * LOG2E) - norm, FAST), 1.0 - bounded * bounded
    else:
        return exp2(x * LOG2E - norm, FAST), 1.0


@triton.jit(do_not_specialize=["N"])
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
    """losses (N,) of logits (N, V), rows of `stride`, with targets (N,). GRADIENT: overwrite the
    logits with the gradient of the sum of the losses; with AFTER also of `further` times the losses
    of a second set of targets.

    The instructions for a logit take as much time as the memory, so there are few. Exponentials are
    powers of 2. A block is (lanes, 8); each lane keeps its own maximum and sum until the end. Only
    the last block checks where the vocabulary ends. The 1 at a target is subtracted after the whole
    row has been written.

    WIDE: how many columns of a row may be read and written: V, or V rounded up to a multiple of 8,
    as 8 columns are accessed at once. LOW: the cap is so low that it can serve as the maximum of a
    row, which need not be searched for then; no exponential becomes 0.
    """
    keep: tl.constexpr = "evict_last" if HINTS else ""
    leave: tl.constexpr = "evict_first" if HINTS else ""
    FULL: tl.constexpr = V // BLOCK * BLOCK
    at = tl.arange(0, BLOCK // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    row = tl.program_id(0).to(tl.int64)  # N V may be above 2^31
    while row < N:
        here = logits + row * stride
        target = tl.load(targets + row)
        first = tl.where(target >= 0, 1.0, 0.0)
        then, second = target, 0.0
        if AFTER:
            then = tl.load(after + row)
            second = tl.where(then >= 0, tl.load(further).to(tl.float32), 0.0)
        weight = first + second
        if weight == 0:  # nothing of the row counts, whatever is in it
            tl.store(losses + row, 0.0)
            if GRADIENT:
                nothing = tl.zeros((BLOCK // 8, 8), dtype=logits.dtype.element_ty)
                for begin in range(0, V, BLOCK):
                    tl.store(here + begin + at, nothing, mask=begin + at < WIDE)
        else:
            # for an id outside the vocabulary nothing is read, and the result is NaN
            labels = tl.load(here + tl.maximum(target, 0), mask=target < V, other=float("nan"))
            thens = tl.load(here + tl.maximum(then, 0), mask=then < V, other=float("nan"))
            best = tl.full((BLOCK // 8,), LOWEST, dtype=tl.float32)
            total = tl.zeros((BLOCK // 8,), dtype=tl.float32)
            for begin in tl.range(0, FULL, BLOCK, num_stages=STAGES):
                x = tl.load(here + begin + at, eviction_policy=keep)
                best, total = add_block(x, best, total, True, cap, CAP, LOW, False, FAST)
            if FULL < V:
                x = tl.load(here + FULL + at, mask=FULL + at < WIDE, other=0.0)
                best, total = add_block(x, best, total, FULL + at < V, cap, CAP, LOW, True, FAST)
            if LOW:
                norm = cap * LOG2E + tl.log2(tl.sum(total, axis=0))
            else:
                most = tl.max(best, axis=0)
                unit: tl.constexpr = 1.0 if CAP else LOG2E
                sums = total * exp2((best - most) * unit, FAST)
                norm = most * unit + tl.log2(tl.sum(sums, axis=0))
            label = labels.to(tl.float32)
            if CAP:
                label = cap * tanh(label * (1.0 / cap), FAST)
            loss = norm * (1.0 / LOG2E) - label
            tl.store(losses + row, tl.where(target >= 0, loss, 0.0))
            if GRADIENT:
                norm = tl.where(target < V, norm, float("nan"))
                if AFTER:
                    norm -= tl.log2(weight)
                tl.debug_barrier()  # all threads have read what any of them may overwrite
                for begin in tl.range(0, FULL, BLOCK, num_stages=STAGES):
                    x = tl.load(here + begin + at, eviction_policy=leave)
                    p, slope = softmax_gradient(x, norm, cap, CAP, FAST)
                    tl.store(here + begin + at, (p * slope).to(logits.dtype.element_ty))
                if FULL < V:
                    there = FULL + at < WIDE
                    x = tl.load(here + FULL + at, mask=there, other=0.0)
                    p, slope = softmax_gradient(x, norm, cap, CAP, FAST)
                    tl.store(here + FULL + at, (p * slope).to(logits.dtype.element_ty), mask=there)
                tl.debug_barrier()
                same = tl.where(then == target, 1.0, 0.0)
                p, slope = softmax_gradient(labels, norm, cap, CAP, FAST)
                g = (p - first - same * second) * slope
                counts = (target >= 0) & (target < V)
                tl.store(here + target, g.to(logits.dtype.element_ty), mask=counts)
                if AFTER:
                    p, slope = softmax_gradient(thens, norm, cap, CAP, FAST)
                    g = (p - same * first - second) * slope
                    counts = (then >= 0) & (then < V)
                    tl.store(here + then, g.to(logits.dtype.element_ty), mask=counts)
        row += tl.num_programs(0)


def has_instructions(device: torch.device) -> bool:
    """Whether FAST is possible: not in the interpreter, on AMD, or before Turing, as older GPUs
    have no tanh."""
    nvidia = device.type == "cuda" and torch.version.cuda is not None
    return nvidia and torch.cuda.get_device_capability(device) >= (7, 5)


def launch(
    logits: torch.Tensor,
    targets: torch.Tensor,
    after: torch.Tensor | None,
    further: torch.Tensor | None,
    cap: float,
    gradient: bool,
) -> torch.Tensor:
    """loss_kernel.losses for logits in 16 bits.

    If the rows are aligned (begin at multiples of 16, by which triton recognises it), the padding
    up to a multiple of eight columns is overwritten, too: without it each logit of an odd
    vocabulary would be accessed alone.
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
    with torch.cuda.device_of(logits):  # Triton launches on the thread's device
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
            FAST=has_instructions(logits.device),
            BLOCK=block,
            STAGES=STAGES,
            HINTS=HINTS,
            num_warps=warps,
            **FUSED,
        )
    return losses
