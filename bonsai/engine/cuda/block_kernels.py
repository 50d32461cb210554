"""Kernels in Triton of which five make a one-token step of a few rows through a block.

    qkv = product(x, norm, c_attn); y = attend_step(qkv, cache); x = product(y, c_proj) + x
    h = activation(product(x, norm, c_fc));                      x = product(h, c_proj) + x

Such a step is bound by how soon its weights are read, and by the start of each kernel, some
microseconds; so a norm, an activation, the sum with the stream, RoPE and the cache are part of the
kernel beside them. Numbers are rounded where plain torch rounds them, see layers.py.

This module needs the package triton, which torch's CUDA builds bring: kernels.py imports it, and
does without where it cannot be had.
"""

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from bonsai.engine.cuda.layers import FOLLOWS, Heads, Product

ALONE = 4  # rows up to which each goes by itself: their weights come from the cache
NORMED = 16  # ... with a norm in the product, which every program computes anew
FEW = 64  # ... that these kernels take at all

# How they are launched: few shapes, as each is compiled; what was fastest on an H200.
ROW = (2, 64)  # row_kernel: outputs of a program, half as many of long rows; weights per thread
# rows_kernel, by the rows of a program: outputs, inputs at a time, warps, stages
ROWS = {16: (16, 256, 4, 5), 64: (16, 128, 4, 4)}
# attend_step_kernel, of few programs and of many: numbers of keys at a time, warps
STEP = {"few": (2**15, 16), "many": (2**11, 1)}

# ---- y = f(norm(x) W^T + b) + residual ----


@triton.jit
def activated(z, gate, ACT: tl.constexpr):
    """The activation of z, in fp32, by its place in FOLLOWS; of swiglu silu(z) gate."""
    if ACT == 1:
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACT == 2:
        inner = 0.7978845608028654 * (z + 0.044715 * z * z * z)
        z = z * (1.0 - 1.0 / (1.0 + tl.exp(2.0 * inner)))
    elif ACT == 3:
        z = tl.maximum(z, 0.0)
    elif ACT == 4:
        z = tl.maximum(z, 0.0)
        z = z * z
    elif ACT == 5:
        z = (z / (1.0 + tl.exp(-z))).to(gate.dtype).to(tl.float32) * gate.to(tl.float32)
    return z


@triton.jit
def row_kernel(
    x, weight, scale, bias, gain, shift, residual, y, N, eps, K: tl.constexpr,
    SCALE: tl.constexpr, BIAS: tl.constexpr, NORM: tl.constexpr, GAIN: tl.constexpr,
    SHIFT: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr,
    BN: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """BN outputs of one row; KP: K as a power of two.

    All that is needed is loaded before anything is computed: after a sum over warps a load would
    wait for it, and then as long as the memory takes once more.
    """
    m = tl.program_id(1)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, KP)
    there = (n[:, None] < N) & (k[None, :] < K)
    at = n[:, None].to(tl.int64) * K + k[None, :]
    w = tl.load(weight + at, mask=there, other=0.0)
    half = tl.load(x + m * K + k, mask=k < K, other=0.0)
    if ACT == 5:
        v = tl.load(weight + N.to(tl.int64) * K + at, mask=there, other=0.0)
    if NORM and GAIN:
        gains = tl.load(gain + k, mask=k < K, other=0.0).to(tl.float32)
    if NORM and SHIFT:
        shifts = tl.load(shift + k, mask=k < K, other=0.0).to(tl.float32)
    if SCALE:
        scales = tl.load(scale + n, mask=n < N, other=0.0)
    if BIAS:
        biases = tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    if RESIDUAL:
        before = tl.load(residual + m * N + n, mask=n < N, other=0.0).to(tl.float32)
    if ACT == 5 and SCALE:
        gate_scales = tl.load(scale + N + n, mask=n < N, other=0.0)
    if ACT == 5 and BIAS:
        gate_biases = tl.load(bias + N + n, mask=n < N, other=0.0).to(tl.float32)

    a = half.to(tl.float32)
    if NORM:
        if NORM == 1:
            a = tl.where(k < K, a - tl.sum(a, axis=0) / K, 0.0)
        a *= tl.rsqrt(tl.sum(a * a, axis=0) / K + eps)
        if GAIN:
            a *= gains
        if SHIFT:
            a += shifts
        a = a.to(half.dtype).to(tl.float32)
    z = tl.sum(w.to(tl.float32) * a[None, :], axis=1)
    if SCALE:
        z *= scales
    if BIAS:
        z += biases
    z = z.to(half.dtype)
    gate = z
    if ACT == 5:
        g = tl.sum(v.to(tl.float32) * a[None, :], axis=1)
        if SCALE:
            g *= gate_scales
        if BIAS:
            g += gate_biases
        gate = g.to(half.dtype)
    z = activated(z.to(tl.float32), gate, ACT).to(half.dtype).to(tl.float32)
    if RESIDUAL:
        z += before
    tl.store(y + m * N + n, z.to(half.dtype), mask=n < N)


@triton.jit(do_not_specialize=["M"])
def rows_kernel(
    x, weight, scale, bias, gain, shift, residual, y, M, N, eps, K: tl.constexpr,
    SCALE: tl.constexpr, BIAS: tl.constexpr, NORM: tl.constexpr, GAIN: tl.constexpr,
    SHIFT: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """BN outputs of BM rows."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    if NORM:
        mean = tl.zeros((BM,), dtype=tl.float32)
        if NORM == 1:
            for begin in range(0, K, BK):
                k = begin + tl.arange(0, BK)
                there = (m[:, None] < M) & (k[None, :] < K)
                a = tl.load(x + m[:, None] * K + k[None, :], mask=there, other=0.0)
                mean += tl.sum(a.to(tl.float32), axis=1) / K
        power = tl.zeros((BM,), dtype=tl.float32)
        for begin in range(0, K, BK):
            k = begin + tl.arange(0, BK)
            there = (m[:, None] < M) & (k[None, :] < K)
            a = tl.load(x + m[:, None] * K + k[None, :], mask=there, other=0.0)
            apart = tl.where(there, a.to(tl.float32) - mean[:, None], 0.0)
            power += tl.sum(apart * apart, axis=1)
        over = tl.rsqrt(power / K + eps)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    if ACT == 5:
        gates = tl.zeros((BM, BN), dtype=tl.float32)
    for begin in range(0, K, BK):
        k = begin + tl.arange(0, BK)
        there = (m[:, None] < M) & (k[None, :] < K)
        a = tl.load(x + m[:, None] * K + k[None, :], mask=there, other=0.0)
        if NORM:
            exact = (a.to(tl.float32) - mean[:, None]) * over[:, None]
            if GAIN:
                exact *= tl.load(gain + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
            if SHIFT:
                exact += tl.load(shift + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
            a = exact.to(a.dtype)
        at = n[:, None].to(tl.int64) * K + k[None, :]
        there = (n[:, None] < N) & (k[None, :] < K)
        w = tl.load(weight + at, mask=there, other=0.0)
        total += tl.dot(a, tl.trans(w.to(a.dtype)))
        if ACT == 5:
            v = tl.load(weight + N.to(tl.int64) * K + at, mask=there, other=0.0)
            gates += tl.dot(a, tl.trans(v.to(a.dtype)))
    half = y.dtype.element_ty
    if SCALE:
        total *= tl.load(scale + n, mask=n < N, other=0.0)[None, :]
    if BIAS:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    z = total.to(half)
    gate = z
    if ACT == 5:
        if SCALE:
            gates *= tl.load(scale + N + n, mask=n < N, other=0.0)[None, :]
        if BIAS:
            gates += tl.load(bias + N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        gate = gates.to(half)
    z = activated(z.to(tl.float32), gate, ACT).to(half).to(tl.float32)
    there = (m[:, None] < M) & (n[None, :] < N)
    if RESIDUAL:
        z += tl.load(residual + m[:, None] * N + n[None, :], mask=there, other=0.0).to(tl.float32)
    tl.store(y + m[:, None] * N + n[None, :], z.to(half), mask=there)


def shape_of_row(K: int) -> dict:
    """How row_kernel is launched: with few threads to sum over."""
    (outputs, per_thread), inputs = ROW, triton.next_power_of_2(K)
    outputs = max(1, outputs if inputs <= 1024 else outputs // 2)
    warps = min(16, max(1, outputs * inputs // (32 * per_thread)))
    return {"BN": outputs, "KP": inputs, "num_warps": warps}


def shape_of_rows(M: int, N: int) -> dict:
    rows = 16 if M <= 16 else 64
    outputs, inputs, warps, stages = ROWS[rows]
    outputs = outputs if N <= 4096 else 2 * outputs
    return {"BM": rows, "BN": outputs, "BK": inputs, "num_warps": warps, "num_stages": stages}


def product(x: torch.Tensor, of: Product, residual: torch.Tensor | None = None) -> torch.Tensor:
    """layers.product of x (..., K) in half precision, up to FEW rows of it; with a norm up to
    NORMED."""
    N, K = of.weight.shape
    N = N // 2 if of.activation == "swiglu" else N
    x = x.contiguous()
    M = x.numel() // K
    if M > NORMED and K > 2 * N and of.scale is None and not of.activation:
        y = F.linear(x, of.weight, of.bias)  # few programs of long sums, which torch splits
        return y if residual is None else y + residual
    y = torch.empty((*x.shape[:-1], N), dtype=x.dtype, device=x.device)
    given = [of.weight, of.scale, of.bias, of.gain, of.shift, residual]
    given = [y if t is None else t for t in given]
    flags = dict(
        SCALE=of.scale is not None, BIAS=of.bias is not None, NORM=of.norm,
        GAIN=of.gain is not None, SHIFT=of.shift is not None, ACT=FOLLOWS.index(of.activation),
        RESIDUAL=residual is not None,
    )  # fmt: skip
    with torch.cuda.device_of(x):  # Triton launches on the thread's device, whatever x's is
        if M <= ALONE:
            shape = shape_of_row(K)
            grid = (triton.cdiv(N, shape["BN"]), M)
            row_kernel[grid](x, *given, y, N, of.eps, K, **flags, **shape)
        else:
            shape = shape_of_rows(M, N)
            grid = (triton.cdiv(N, shape["BN"]), triton.cdiv(M, shape["BM"]))
            rows_kernel[grid](x, *given, y, M, N, of.eps, K, **flags, **shape)
    return y


# ---- attention of a step, with its cache ----


@triton.jit
def normed(x, c, eps, HS: tl.constexpr, NORM: tl.constexpr):
    """A head's channels by their norm, without gain."""
    if NORM == 1:
        x = tl.where(c < HS, x - tl.sum(x, axis=0) / HS, 0.0)
    if NORM:
        x = x * tl.rsqrt(tl.sum(x * x, axis=0) / HS + eps)
    return x


@triton.jit
def prepared(
    head, cos, sin, c, eps,
    HS: tl.constexpr, CHANNELS: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """A query or key as it is compared: normed, then turned; rounded as torch's bfloat16 is."""
    half = head.dtype.element_ty
    x = tl.load(head + c, mask=c < HS, other=0.0).to(tl.float32)
    if ROPE:
        other = (c + HS // 2) % HS
        far = tl.load(head + other, mask=c < HS, other=0.0).to(tl.float32)
        if NORM:
            far = normed(far, c, eps, HS, NORM).to(half).to(tl.float32)
    if NORM:
        x = normed(x, c, eps, HS, NORM).to(half).to(tl.float32)
    if ROPE:
        turn = tl.load(cos + c, mask=c < HS, other=0.0).to(half).to(tl.float32)
        x = (x * turn).to(half).to(tl.float32)
        x += far * tl.load(sin + c, mask=c < HS, other=0.0).to(half).to(tl.float32)
        x = x.to(half).to(tl.float32)
    return x


@triton.jit
def attend_step_kernel(
    qkv, extra, k, v, pos, cos, sin, y, nh, nkv, scale, eps, window,
    row, head, place, cos_row,
    HS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr,
    ROPE: tl.constexpr, EXTRA: tl.constexpr,
):  # fmt: skip
    """One head of one row: its key and value go into the cache, and its query sees those before,
    in blocks of BLOCK keys with a running maximum (Milakov & Gimelshein 2018)."""
    b, h = tl.program_id(0) // nh, tl.program_id(0) % nh
    group = nh // nkv
    of = h // group
    c = tl.arange(0, CHANNELS)  # HS rounded up to a power of two
    at = tl.load(pos + b)
    new = qkv + b * (nh + 2 * nkv) * HS
    cos += b * cos_row
    sin += b * cos_row
    query = prepared(new + h * HS, cos, sin, c, eps, HS, CHANNELS, NORM, ROPE) * scale
    key = prepared(new + (nh + of) * HS, cos, sin, c, eps, HS, CHANNELS, NORM, ROPE)
    value = tl.load(new + (nh + nkv + of) * HS + c, mask=c < HS, other=0.0).to(tl.float32)
    if EXTRA:
        value += tl.load(extra + (b * nkv + of) * HS + c, mask=c < HS, other=0.0).to(tl.float32)
        value = value.to(y.dtype.element_ty).to(tl.float32)
    keys = b.to(tl.int64) * row + of * head
    if h % group == 0:
        tl.store(k + keys + at * place + c, key.to(k.dtype.element_ty), mask=c < HS)
        tl.store(v + keys + at * place + c, value.to(v.dtype.element_ty), mask=c < HS)
    # its own key comes last: a sum over warps now, and the others would be read after it
    best, total = -1e30, 0.0
    out = tl.zeros((CHANNELS,), dtype=tl.float32)
    first = tl.maximum(at - window + 1, 0)
    for begin in range(first // BLOCK * BLOCK, at, BLOCK):
        s = begin + tl.arange(0, BLOCK)
        seen = (s >= first) & (s < at)
        there = seen[:, None] & (c[None, :] < HS)
        spot = keys + s[:, None] * place + c[None, :]
        x = tl.load(k + spot, mask=there, other=0.0).to(tl.float32)
        values = tl.load(v + spot, mask=there, other=0.0).to(tl.float32)
        scores = tl.where(seen, tl.sum(x * query[None, :], axis=1), float("-inf"))
        highest = tl.maximum(best, tl.max(scores, axis=0))
        p, shrink = tl.exp(scores - highest), tl.exp(best - highest)
        out = out * shrink + tl.sum(p[:, None] * values, axis=0)
        total = total * shrink + tl.sum(p, axis=0)
        best = highest
    own = tl.sum(query * key, axis=0)
    highest = tl.maximum(best, own)
    p, shrink = tl.exp(own - highest), tl.exp(best - highest)
    out, total = out * shrink + p * value, total * shrink + p
    tl.store(y + tl.program_id(0) * HS + c, (out / total).to(y.dtype.element_ty), mask=c < HS)


def shape_of_step(programs: int, channels: int) -> dict:
    """How attend_step_kernel is launched: few programs read much at once, many a little each, with
    no warps to wait for."""
    numbers, warps = STEP["few" if programs <= 256 else "many"]
    return {"BLOCK": max(16, numbers // channels), "num_warps": warps}


def attend_step(qkv, k, v, pos, heads: Heads, rotation=None, extra=None) -> torch.Tensor:
    """layers.attend_step, of keys and values in half precision."""
    B, (nh, nkv, hs, scale, window, norm, eps) = qkv.size(0), heads
    y = torch.empty((B, 1, nh * hs), dtype=qkv.dtype, device=qkv.device)
    channels = triton.next_power_of_2(hs)
    cos, sin = (r.contiguous() for r in rotation) if rotation is not None else (pos, pos)
    turns = cos.stride(0) if rotation is not None and cos.size(0) > 1 else 0
    with torch.cuda.device_of(qkv):
        attend_step_kernel[(B * nh,)](
            *(qkv.contiguous(), y if extra is None else extra.contiguous(), k, v, pos, cos, sin, y),
            *(nh, nkv, scale, eps, window or 2**30, *k.stride()[:3], turns),
            HS=hs, CHANNELS=channels, NORM=norm, ROPE=rotation is not None,
            EXTRA=extra is not None, **shape_of_step(B * nh, channels),
        )  # fmt: skip
    return y
