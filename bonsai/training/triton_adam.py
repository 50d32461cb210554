"""AdamW of many tensors in one launch, clipping included: a Triton kernel for CUDA.

Torch's clipping reads and writes every gradient once more, and its fused AdamW takes tensors in
lists of a few dozen, at two thirds of an H200's memory bandwidth. Here each program updates one
chunk of one tensor, which it finds in a table of addresses, and reads and writes each number once.

This module needs the package triton, which is part of torch's CUDA builds; adam.py imports it.
Compiled for sm_70 to sm_120, the kernel reads and writes 16 bytes at once and keeps everything in
registers. The sizes below are not measured yet.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from bonsai.system.compiler import FUSED

CHUNK = 8192  # numbers that a program updates
BLOCK = 1024  # numbers that it has in registers at a time, 8 per thread
WARPS = 4

# A row of the table: the addresses of weight, gradient, both moments and the count of steps; the
# length; the number of the tensor's first program
COLUMNS = tl.constexpr(7)


@triton.jit
def adamw_block(
    weight,
    grad,
    mean,
    square,
    rest,
    scale,
    rate,
    decay,
    fresh,
    fresh_square,
    growth,
    eps,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """AdamW for BLOCK numbers at four pointers or, unless WHOLE, for the first `rest` of them.

    WHOLE: also says that the pointers are aligned, so that a thread reads and writes 16 bytes at
    once. rate, which contains 1 / (1 - beta^steps), and growth, 1 / sqrt(1 - beta_square^steps),
    correct the bias of running means that began at 0.
    """
    at = tl.arange(0, BLOCK)
    inside = None
    if not WHOLE:
        inside = at < rest
    g = tl.load(grad + at, mask=inside) * scale
    w, m = tl.load(weight + at, mask=inside), tl.load(mean + at, mask=inside)
    v = tl.load(square + at, mask=inside)
    m += fresh * (g - m)
    v += fresh_square * (g * g - v)
    # tl.sqrt is the GPU's instruction, which takes v below 1e-38 for 0. The exact root would branch
    # for such v, which table rows have whose tokens were not used for long.
    w = w - decay * w - rate * m / (tl.sqrt(v) * growth + eps)
    tl.store(weight + at, w, mask=inside)
    tl.store(mean + at, m, mask=inside)
    tl.store(square + at, v, mask=inside)


@triton.jit
def adamw_chunk(
    table,
    owners,
    found_inf,
    norm,
    max_norm,
    lr,
    decay,
    fresh,
    fresh_square,
    log_beta,
    log_beta_square,
    eps,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """AdamW for one chunk of one tensor. Does nothing if found_inf is not 0.

    table (tensors, COLUMNS), int64. owners (programs,), int32: the row of each program's tensor.
    norm: if given, gradients are scaled like by clip_grad_norm_. decay: the part of a weight that
    it loses. fresh: 1 - beta. log_beta: log2(beta).
    """
    if tl.load(found_inf) != 0:
        return
    row = table + tl.load(owners + tl.program_id(0)) * COLUMNS
    weight, grad, mean, square = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    steps = tl.load(tl.load(row + 4).to(tl.pointer_type(tl.float32)))
    length = tl.load(row + 5)
    begin = (tl.program_id(0) - tl.load(row + 6)) * CHUNK  # int64, as it may exceed 2^31
    scale = 1.0
    if norm is not None:
        scale = max_norm / (tl.load(norm) + 1e-6)
        scale = tl.where(scale > 1, 1.0, scale)  # stays NaN if the norm is NaN
    # in float64, because float32 loses digits of 1 - 0.999
    share = 1 - tl.exp2((steps * log_beta).to(tl.float64))
    share_square = 1 - tl.exp2((steps * log_beta_square).to(tl.float64))
    rate = lr / share.to(tl.float32)
    growth = 1.0 / tl.sqrt(share_square.to(tl.float32))
    aligned = (weight | grad | mean | square) % 16 == 0
    weight = weight.to(tl.pointer_type(tl.float32)) + begin
    grad = grad.to(tl.pointer_type(tl.float32)) + begin
    mean = mean.to(tl.pointer_type(tl.float32)) + begin
    square = square.to(tl.pointer_type(tl.float32)) + begin
    rest = tl.minimum(length - begin, CHUNK).to(tl.int32)
    whole = tl.where(aligned, rest // BLOCK * BLOCK, 0)
    for i in range(0, whole, BLOCK):
        w, g, m, v = weight + i, grad + i, mean + i, square + i
        w, g = tl.multiple_of(w, 16), tl.multiple_of(g, 16)
        m, v = tl.multiple_of(m, 16), tl.multiple_of(v, 16)
        adamw_block(w, g, m, v, rest - i, scale, rate, decay, fresh, fresh_square, growth, eps,
                    True, BLOCK)  # fmt: skip
    for i in range(whole, rest, BLOCK):
        w, g, m, v = weight + i, grad + i, mean + i, square + i
        adamw_block(w, g, m, v, rest - i, scale, rate, decay, fresh, fresh_square, growth, eps,
                    False, BLOCK)  # fmt: skip


class Table(NamedTuple):
    """The tensors that a launch updates, as arguments of adamw_chunk."""

    rows: list[tuple[int, ...]]  # the same rows as in `tensors`, on the host
    tensors: torch.Tensor  # (tensors, COLUMNS)
    owners: torch.Tensor  # (programs,)


def tabulate(members: list[tuple[torch.Tensor, ...]], before: Table | None = None) -> Table:
    """The table of weights, gradients, running means, mean squares and counts of steps.

    members: all contiguous, in float32, on one device. before: the table of the last step. In each
    step gradients are new tensors, but mostly at the same addresses; then `before` is used again.
    Nothing waits for the device.
    """
    rows, first = [], 0
    for tensors in members:
        length = tensors[0].numel()
        rows.append((*[t.data_ptr() for t in tensors], length, first))
        first += -(-length // CHUNK)
    if before and rows == before.rows:
        return before
    device = members[0][0].device
    if before and [row[-2:] for row in rows] == [row[-2:] for row in before.rows]:
        owners = before.owners
    else:
        programs = torch.tensor([-(-length // CHUNK) for *_, length, _ in rows])
        owners = torch.arange(len(rows), dtype=torch.int32).repeat_interleave(programs)
        owners = without_waiting(owners, device)
    return Table(rows, without_waiting(torch.tensor(rows), device), owners)


def without_waiting(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """x on the device. torch reuses its pinned memory only after the copy."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


def launch(
    table: Table,
    group: dict,
    found_inf: torch.Tensor,
    clip: tuple[torch.Tensor, float] | None = None,
) -> None:
    """A step of AdamW for the tensors in a table; their counts of steps are raised already.

    group: the optimizer's group, for its rates. found_inf: a tensor; nothing changes if it is not
    0. clip: the norm of the gradients, a tensor, and its maximum.
    """
    norm, max_norm = clip or (None, 0.0)
    lr, (beta, beta_square) = group["lr"], group["betas"]
    logs = [math.log2(b) if b else -math.inf for b in (beta, beta_square)]
    rates = (lr, lr * group["weight_decay"], 1 - beta, 1 - beta_square, *logs, group["eps"])
    if not len(table.owners):
        return
    with torch.cuda.device_of(found_inf):  # Triton launches on the thread's current device
        adamw_chunk[(len(table.owners),)](
            table.tensors,
            table.owners,
            found_inf,
            norm,
            float(max_norm),
            *map(float, rates),
            CHUNK=CHUNK,
            BLOCK=BLOCK,
            num_warps=WARPS,
            **FUSED,
        )
