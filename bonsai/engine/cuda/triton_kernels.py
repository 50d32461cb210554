"""Kernels in Triton, for what takes plain torch many small ones in a step of few rows.

This module needs the package triton, which torch's CUDA builds bring: kernels.py imports it, and
does without where it cannot be had.
"""

import torch
import triton
import triton.language as tl

from bonsai.system.hashing import GAMMA

# ---- y = x W^T + b ----

FEW = 64  # rows up to which the kernel may be the faster way


@triton.jit(do_not_specialize=["M"])  # else a row alone is compiled anew
def product_kernel(
    x, weight, scale, bias, y, M, N, K: tl.constexpr,
    SCALE: tl.constexpr, BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A block of BN outputs of BM rows."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for begin in range(0, K, BK):
        k = begin + tl.arange(0, BK)
        there = (m[:, None] < M) & (k[None, :] < K)
        a = tl.load(x + m[:, None] * K + k[None, :], mask=there, other=0.0)
        there = (n[:, None] < N) & (k[None, :] < K)
        b = tl.load(weight + n[:, None].to(tl.int64) * K + k[None, :], mask=there, other=0.0)
        total += tl.dot(a, tl.trans(b.to(a.dtype)))
    if SCALE:
        total *= tl.load(scale + n, mask=n < N, other=0.0)[None, :]
    if BIAS:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    there = (m[:, None] < M) & (n[None, :] < N)
    tl.store(y + m[:, None] * N + n[None, :], total.to(y.dtype.element_ty), mask=there)


def product(x, weight, scale, bias):
    """x (..., K) in half precision; weight (N, K), int8 with a scale (N) in fp32, or as x without
    one (None); bias (N) or None -> y (..., N) as x."""
    N, K = weight.shape
    x = x.contiguous()
    M = x.numel() // K
    y = torch.empty((*x.shape[:-1], N), dtype=x.dtype, device=x.device)
    # few shapes, as each is compiled; blocks that fit 48 KiB or so of shared memory, three times
    rows, outputs = 16 if M <= 16 else 64, 16 if N <= 4096 else 32
    inputs = 128 if M > 16 else 512 if K > 1024 and scale is not None else 256
    grid = (triton.cdiv(N, outputs), triton.cdiv(M, rows))
    with torch.cuda.device_of(x):  # Triton launches on the thread's device, whatever x's is
        product_kernel[grid](
            *(x, weight, y if scale is None else scale, y if bias is None else bias, y, M, N, K),
            *(scale is not None, bias is not None, rows, outputs, inputs),
        )  # fmt: skip
    return y


# ---- a draw ----

SIZES = (256, 1024)  # tokens among which one program draws: few sizes, as each is compiled


@triton.jit
def mixed(z):
    """splitmix but for its last step, as in bonsai/system/hashing.py."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    return (z ^ (z >> 27)) * 0x94D049BB133111EB


@triton.jit(do_not_specialize=["m"])
def draw_kernel(
    logits, ids, keys, steps, drawn, values, m, row_stride,
    IDS: tl.constexpr, BLOCK: tl.constexpr, GAMMA: tl.constexpr,
):  # fmt: skip
    """The best of BLOCK tokens of a row by logit + noise, the first of the best, and its value."""
    row, place = tl.program_id(0), tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    key = tl.load(keys + row * row_stride).to(tl.uint64)
    z = mixed(key + (tl.load(steps + row * row_stride).to(tl.uint64) + 1) * GAMMA)
    key = z ^ (z >> 31)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * m + at, mask=at < m, other=float("-inf"))
    token = at.to(tl.int64)
    if IDS:
        token = tl.load(ids + row * m + at, mask=at < m, other=0)
    bits = mixed(key + token.to(tl.uint64) * GAMMA) >> 40
    u = bits.to(tl.int32).to(tl.float32) * (1 / 2**24) + (1 / 2**25)
    # in fp64, as 1 - u loses most of a small u, and Triton's fp32 logarithm what is near log 1
    exponential = -tl.log(1.0 - u.to(tl.float64))
    x -= tl.log(exponential.to(tl.float32))
    best = tl.program_id(1) * BLOCK + tl.argmax(x, axis=0)
    tl.store(drawn + place, tl.sum(tl.where(at == best, token, 0), axis=0))
    tl.store(values + place, tl.max(x, axis=0))


def draw(logits, ids, keys, steps):
    """Logits (n, m) of tokens ids (n, m), None: 0 ... m - 1; keys and steps (n,) of the rows ->
    tokens (n,) drawn as by sampling.py: argmax of logits + noise(step_key(key, step), id)."""
    n, m = logits.shape
    logits, size = logits.contiguous(), SIZES[0] if m <= SIZES[0] else SIZES[1]
    drawn = torch.empty((n, triton.cdiv(m, size)), dtype=torch.int64, device=logits.device)
    values = torch.empty_like(drawn, dtype=torch.float32)
    with torch.cuda.device_of(logits):
        draw_kernel[drawn.shape](
            *(logits, drawn if ids is None else ids, keys, steps, drawn, values, m, keys.stride(0)),
            IDS=ids is not None, BLOCK=size, GAMMA=GAMMA,
        )  # fmt: skip
    if drawn.size(1) > 1:
        drawn = drawn.gather(1, values.argmax(1, keepdim=True))
    return drawn[:, 0]


# ---- attention of one query to a cache ----


@triton.jit
def attend_kernel(
    q, k, v, mask, y, S, scale, nh, group, q_row, q_head, row, head, place, mask_row,
    HS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head of one row, in blocks of BLOCK keys, with a running maximum (Milakov & Gimelshein
    2018). Blocks that the mask leaves out are not read."""
    b, h = tl.program_id(0) // nh, tl.program_id(0) % nh
    c = tl.arange(0, CHANNELS)  # HS rounded up to a power of two
    query = tl.load(q + b * q_row + h * q_head + c, mask=c < HS, other=0.0).to(tl.float32) * scale
    keys = b.to(tl.int64) * row + (h // group) * head + c[None, :]
    best, total = float("-inf"), 0.0
    out = tl.zeros((CHANNELS,), dtype=tl.float32)
    for begin in range(0, S, BLOCK):
        s = begin + tl.arange(0, BLOCK)
        seen = tl.load(mask + b * mask_row + s, mask=s < S, other=float("-inf")).to(tl.float32)
        if tl.max(seen, axis=0) > float("-inf"):
            there = (s[:, None] < S) & (c[None, :] < HS)
            x = tl.load(k + keys + s[:, None] * place, mask=there, other=0.0).to(tl.float32)
            values = tl.load(v + keys + s[:, None] * place, mask=there, other=0.0).to(tl.float32)
            scores = tl.sum(x * query[None, :], axis=1) + seen
            highest = tl.maximum(best, tl.max(scores, axis=0))
            p, shrink = tl.exp(scores - highest), tl.exp(best - highest)
            out = out * shrink + tl.sum(p[:, None] * values, axis=0)
            total = total * shrink + tl.sum(p, axis=0)
            best = highest
    tl.store(y + tl.program_id(0) * HS + c, (out / total).to(y.dtype.element_ty), mask=c < HS)


def attend(q, k, v, mask, scale: float):
    """q (B, nh, 1, hs); k, v (B, nkv, S, hs) of equal strides; mask (B or 1, 1, 1, S), added to the
    scores and somewhere finite -> like q."""
    (B, nh, _, hs), (nkv, S) = q.shape, k.shape[1:3]
    y = torch.empty((B, nh, 1, hs), dtype=q.dtype, device=q.device)
    channels = triton.next_power_of_2(hs)
    with torch.cuda.device_of(q):
        attend_kernel[(B * nh,)](
            *(q, k, v, mask, y, S, scale, nh, nh // nkv, q.stride(0), q.stride(1), *k.stride()[:3]),
            mask.stride(0) if mask.size(0) > 1 else 0,
            HS=hs, CHANNELS=channels, BLOCK=max(16, 8192 // channels),
        )  # fmt: skip
    return y
