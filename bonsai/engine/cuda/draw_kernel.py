"""Draws the next tokens with up to three Triton kernels; plain torch needs many small ones.

`keep_kernel` reads a row's logits and finds the k-th largest; each program of `draw_kernel` draws
among a part of the tokens; `best_kernel` takes the best of the parts.
"""

import torch
import triton
import triton.language as tl

from bonsai.system.compiler import FUSED
from bonsai.system.hashing import GAMMA

LANES, WARPS = 4096, 32  # the most of keep_kernel
SIZES = (256, 1024)  # tokens among which a program draws; only two sizes, as each is compiled


# ---- which tokens a row keeps ----


@triton.jit
def ordered(x):
    """float32 as int32 in the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def at_least(logits, m, bound, LANES: tl.constexpr):
    """How many of m logits are at least `bound`, as integers of `ordered`."""
    lane = tl.arange(0, LANES)
    count = tl.zeros((LANES,), dtype=tl.int32)
    for begin in range(0, m, LANES):
        there = begin + lane < m
        x = tl.load(logits + begin + lane, mask=there, other=0.0)
        count += (there & (ordered(x) >= bound)).to(tl.int32)
    return tl.sum(count, axis=0)


@triton.jit
def at_least_of_four(a, b, c, d, bound):
    """For each lane, how many of its four numbers are at least `bound`."""
    count = (a >= bound).to(tl.int32) + (b >= bound).to(tl.int32)
    return count + (c >= bound).to(tl.int32) + (d >= bound).to(tl.int32)


@triton.jit
def between(x, begin, end, otherwise):
    return tl.where((x >= begin) & (x <= end), x, otherwise)


@triton.jit
def kth_of_four(a, b, c, d, k, low, high):
    """A bound that exactly k of the numbers reach; more than k only if some are equal. low: a bound
    that k or more reach. high: the largest number.

    By bisection, first of the upper 16 bits. Logits that were computed in 16 bits differ in these
    only, so all numbers with the upper bits found are probably equal.
    """
    low, high = low >> 16, high >> 16
    while low < high:
        mid = (low + high + 1) >> 1
        if tl.sum(at_least_of_four(a, b, c, d, mid << 16), axis=0) >= k:
            low = mid
        else:
            high = mid - 1
    begin, end = low << 16, (low << 16) | 0xFFFF
    most, least = 0x7FFFFFFF, -0x80000000
    smaller = tl.minimum(between(a, begin, end, most), between(b, begin, end, most))
    smaller = tl.minimum(smaller, between(c, begin, end, most))
    larger = tl.maximum(between(a, begin, end, least), between(b, begin, end, least))
    larger = tl.maximum(larger, between(c, begin, end, least))
    low = tl.min(tl.minimum(smaller, between(d, begin, end, most)), axis=0)
    high = tl.max(tl.maximum(larger, between(d, begin, end, least)), axis=0)
    while low < high:
        mid = low + ((high - low + 1) >> 1)
        count = tl.sum(at_least_of_four(a, b, c, d, mid), axis=0)
        if count >= k:
            low = mid
        if count < k:
            high = mid - 1
        if count == k:
            high = mid
    return low


@triton.jit
def halfway(low, high):
    """A number above low and at most high, for low < high; int64 as the difference may overflow."""
    return (low + (high.to(tl.int64) - low + 1) // 2).to(tl.int32)


@triton.jit
def place_of(logits, m, value, number, LANES: tl.constexpr):
    """The id of the number-th logit (from 1) that equals `value`."""
    lane = tl.arange(0, LANES)
    first, nth = m, number
    for begin in range(0, m, 4 * LANES):
        equal = tl.zeros((LANES,), dtype=tl.int64)  # counts of four steps, 16 bits each, in one sum
        for part in tl.static_range(4):
            at = begin + part * LANES + lane
            x = tl.load(logits + at, mask=at < m, other=float("-inf"))
            equal += ((ordered(x) == value) & (at < m)).to(tl.int64) << (16 * part)
        counts = tl.sum(equal, axis=0)
        for part in tl.static_range(4):
            count = ((counts >> (16 * part)) & 0xFFFF).to(tl.int32)
            if (number > 0) & (count >= number):
                first, nth = begin + part * LANES, number
            number -= count
    at = first + lane
    x = tl.load(logits + at, mask=at < m, other=float("-inf"))
    equal = ((ordered(x) == value) & (at < m)).to(tl.int32)
    return tl.sum(tl.where((equal > 0) & (tl.cumsum(equal, axis=0) == nth), at, 0), axis=0)


@triton.jit(do_not_specialize=["m"])
def keep_kernel(
    logits, temperature, top_k, log_min_p, least, until, m, stride, float_stride, int_stride,
    LANES: tl.constexpr,
):  # fmt: skip
    """A row's filters as two numbers. The row keeps tokens whose `ordered` logits are above
    `least`; of those equal to it, only ids up to `until`: the first ones, like torch.topk on CUDA.

    The k-th logit is searched among the four largest of each lane. These include the k largest of
    all probably, but not certainly: with k = 200 and 4,096 lanes, one row in a thousand is an
    exception. For such a row the bisection counts all logits in every step.
    """
    row, lane = tl.program_id(0), tl.arange(0, LANES)
    logits += row.to(tl.int64) * stride
    k = tl.load(top_k + row * int_stride).to(tl.int32)
    first = tl.full((LANES,), float("-inf"), dtype=tl.float32)
    second, third, fourth = first, first, first
    for begin in tl.range(0, m, LANES, loop_unroll_factor=4):
        x = tl.load(logits + begin + lane, mask=begin + lane < m, other=float("-inf"))
        after_first = tl.minimum(first, x)
        first = tl.maximum(first, x)
        after_second = tl.minimum(second, after_first)
        second = tl.maximum(second, after_first)
        fourth = tl.maximum(fourth, tl.minimum(third, after_second))
        third = tl.maximum(third, after_second)
    largest = tl.max(first, axis=0)
    low, last = tl.full((), -(2**31), dtype=tl.int32), m

    if k > 0:
        a, b, c, d = ordered(first), ordered(second), ordered(third), ordered(fourth)
        low = tl.min(d, axis=0)
        if k <= LANES:
            low = tl.min(a, axis=0)
        low = kth_of_four(a, b, c, d, k, low, ordered(largest))
        count = tl.sum(at_least_of_four(a, b, c, d, low), axis=0)
        above = tl.sum(at_least_of_four(a, b, c, d, low + 1), axis=0)
        if (m > 4 * LANES) & (tl.max(d, axis=0) >= low):  # a lane may have more than four of them
            high = ordered(largest)
            if k > 4 * LANES:
                low = tl.full((), -(2**31), dtype=tl.int32)
            while low < high:
                mid = halfway(low, high)
                if at_least(logits, m, mid, LANES) >= k:
                    low = mid
                else:
                    high = mid - 1
            count = at_least(logits, m, low, LANES)
            above = at_least(logits, m, low + 1, LANES)
        if count > k:
            last = place_of(logits, m, low, k - above, LANES)
    share = tl.load(temperature + row * float_stride) * tl.load(log_min_p + row * float_stride)
    floor = ordered(largest + share)
    if floor > low:
        low, last = floor, m
    tl.store(least + row, low)
    tl.store(until + row, last)


# ---- the draw ----


@triton.jit
def mixed(z):
    """splitmix without its last step, as in bonsai/system/hashing.py."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    return (z ^ (z >> 27)) * 0x94D049BB133111EB


@triton.jit
def exponential(u):
    """-log(1 - u) in float32, for u in (0, 1], precise for small u too, where 1 - u is rounded:
    -log(1 - u) = 2 atanh(u / (2 - u)). Without float64, which is slow on consumer GPUs."""
    s = u / (2.0 - u)
    t = s * s
    series = 1 / 9 + t * (1 / 11 + t * (1 / 13 + t * (1 / 15)))
    series = 1.0 + t * (1 / 3 + t * (1 / 5 + t * (1 / 7 + t * series)))
    return tl.where(u <= 0.5, 2.0 * s * series, -tl.log(1.0 - u))


@triton.jit(do_not_specialize=["m"])
def draw_kernel(
    logits, ids, keys, steps, temperature, least, until, drawn, values,
    m, stride, float_stride, int_stride,
    IDS: tl.constexpr, SCALED: tl.constexpr, FILTERED: tl.constexpr, BLOCK: tl.constexpr,
    GAMMA: tl.constexpr,
):  # fmt: skip
    """Of BLOCK tokens of a row the one with the largest logit + noise, the first of equal ones, and
    that sum."""
    row, place = tl.program_id(0), tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    key = tl.load(keys + row * int_stride).to(tl.uint64)
    z = mixed(key + (tl.load(steps + row * int_stride).to(tl.uint64) + 1) * GAMMA)
    key = z ^ (z >> 31)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row.to(tl.int64) * stride + at, mask=at < m, other=float("-inf"))
    token = at.to(tl.int64)
    if IDS:
        token = tl.load(ids + row * m + at, mask=at < m, other=0)
    if FILTERED:
        rank, end = ordered(x), tl.load(least + row)
        kept = (rank > end) | ((rank == end) & (at <= tl.load(until + row)))
        x = tl.where(kept, x, float("-inf"))
    if SCALED:
        x = tl.div_rn(x, tl.load(temperature + row * float_stride))
    bits = mixed(key + token.to(tl.uint64) * GAMMA) >> 40
    u = bits.to(tl.int32).to(tl.float32) * (1 / 2**24) + (1 / 2**25)
    x -= tl.log(exponential(u))
    best = tl.program_id(1) * BLOCK + tl.argmax(x, axis=0)
    tl.store(drawn + place, tl.sum(tl.where(at == best, token, 0), axis=0))
    tl.store(values + place, tl.max(x, axis=0))


@triton.jit
def best_kernel(drawn, values, token, parts, PARTS: tl.constexpr):
    """The token of a row's best part, the first of equal ones."""
    row, part = tl.program_id(0), tl.arange(0, PARTS)
    x = tl.load(values + row * parts + part, mask=part < parts, other=float("-inf"))
    tl.store(token + row, tl.load(drawn + row * parts + tl.argmax(x, axis=0)))


def draw(logits, ids, keys, steps, temperature=None, top_k=None, log_min_p=None):
    """Draw tokens (n,) like sampling.py: the argmax of logits / temperature + noise(step_key(key,
    step), id).

    logits (n, m); ids (n, m), None: 0 ... m - 1; all others (n,). temperature may be left out, and
    so may top_k (0: all) together with log_min_p (-inf: all). keys, steps and top_k must be columns
    of one table, temperature and log_min_p columns of another.
    """
    (n, m), device = logits.shape, logits.device
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    size = SIZES[0] if m <= SIZES[0] else SIZES[1]
    drawn = torch.empty((n, triton.cdiv(m, size)), dtype=torch.int64, device=device)
    values = torch.empty_like(drawn, dtype=torch.float32)
    scaled, filtered = temperature is not None, top_k is not None
    temperature = temperature if scaled else values
    strides = logits.stride(0), temperature.stride(0), keys.stride(0)
    kept = least, until = torch.empty((2, n), dtype=torch.int32, device=device)
    with torch.cuda.device_of(logits):
        if filtered:
            lanes = min(LANES, triton.next_power_of_2(m))
            keep_kernel[(n,)](
                logits, temperature, top_k, log_min_p, least, until, m, *strides,
                LANES=lanes, num_warps=max(1, lanes * WARPS // LANES), **FUSED,
            )  # fmt: skip
        draw_kernel[drawn.shape](
            logits, drawn if ids is None else ids, keys, steps, temperature, *kept,
            drawn, values, m, *strides,
            IDS=ids is not None, SCALED=scaled, FILTERED=filtered, BLOCK=size, GAMMA=GAMMA,
            **FUSED,
        )  # fmt: skip
        if drawn.size(1) == 1:
            return drawn[:, 0]
        token, parts = torch.empty_like(drawn[:, 0]), drawn.size(1)
        room = triton.next_power_of_2(parts)
        best_kernel[(n,)](drawn, values, token, parts, PARTS=room, **FUSED)
    return token
