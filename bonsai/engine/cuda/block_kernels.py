"""Triton kernels for a one-token step of a few rows through a block.

For up to ALONE rows there are five:

    qkv = product(x, norm, c_attn); y = attend_step(qkv, cache); x = product(y, c_proj) + x
    h = activation(product(x, norm, c_fc));                      x = product(h, c_proj) + x

For more rows there are seven, because each norm is then computed once, in a kernel of its own
(add_and_norm is two kernels):

    qkv = product(n, c_attn); y = attend_step(qkv, cache); x, n = add_and_norm(y, c_proj, x)
    h = activation(product(n, c_fc));                      x, n = add_and_norm(h, c_proj, x)

The time of such a step is that of reading the weights and of starting the kernels, some
microseconds each. So norms, activations, the sum with the stream, RoPE and writing to the cache
are parts of other kernels. Numbers are rounded where plain torch rounds them, see layers.py.

With `overlap` a kernel begins while the one before it still runs (CUDA's programmatic dependent
launch, compute capability 9.0). It first reads weights, which no kernel of a step writes, and then
waits, see `turn`. On an H200 twelve blocks of GPT-2 (124M) take 189 us instead of 246, and with 64
rows 466 us instead of 528.

This module needs the package triton, which is part of torch's CUDA builds. kernels.py imports it,
and uses plain torch if it is missing.
"""

import torch
import triton
import triton.language as tl

from bonsai.engine.cuda.layers import FOLLOWS, Heads, NormLayer, Product
from bonsai.system.compiler import FUSED

# The most rows for which each row has its own programs: the second reads the weights from the cache
ALONE = 2
SIZES = (ALONE, 16, 64)  # the most rows for each shape of kernel; for more rows there are none

# The shapes of launches that were fastest on an H200 for GPT-2 (124M). They are few, because each
# is compiled
ROW = (4, 32)  # row_kernel: outputs of a program, half as many for long rows; weights per thread
# rows_kernel, by the rows of a program: outputs, inputs at a time, warps, stages
ROWS = {16: (32, 128, 4, 4), 64: (16, 128, 4, 4)}
# parts_kernel, like ROWS
PARTS = {16: (16, 128, 2, 4), 64: (16, 128, 4, 3)}
PROGRAMS = 216  # the most programs of parts_kernel: an H100 has 132 multiprocessors
ADD = 8  # add_and_norm_kernel: numbers per thread
# attend_step_kernel, with few programs or many: numbers of keys at a time, warps, stages
STEP = {"few": (2**15, 16, 1), "many": (2**10, 1, 3)}

# ---- kernels that overlap ----


@triton.jit
def turn(OVERLAP: tl.constexpr):
    """Wait until the previous kernel has ended and its results are in memory.

    The rules that make this correct: every program of an overlapping kernel calls this once. Before
    the call it reads only weights, which never change between steps, and writes nothing: neither to
    the cache nor to memory that earlier kernels have used. Only after its own wait does a kernel
    let the next one begin. So when that one begins, all kernels before this one have ended, and
    when that one has waited, this one has ended, too: all earlier results are there, no matter how
    many launches ago they were written. Launches of other kinds (torch's kernels, copies, whole
    graphs) wait for everything before them.
    """
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def prefetch(weight, n, first, K: tl.constexpr, SIZE: tl.constexpr):
    """Start loading the weights of SIZE inputs into the L2 cache, without waiting for them. n:
    valid outputs. One instruction loads 64 weights: a line of the cache, for weights of 16 bits."""
    LINES: tl.constexpr = triton.next_power_of_2((SIZE + 63) // 64)
    k = tl.minimum(first + tl.arange(0, LINES) * 64, K - 1)
    at = weight + n[:, None].to(tl.int64) * K + k[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; // $0", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1
    )


def launch_options(overlap: bool) -> dict:
    """A kernel's options: whether it is launched to overlap with the previous one, and compiled to
    wait for it."""
    return FUSED | ({"OVERLAP": True, "launch_pdl": True} if overlap else {"OVERLAP": False})


# ---- y = f(norm(x) W^T + b) + residual ----


@triton.jit
def activated(z, gate, ACT: tl.constexpr):
    """The activation of z, in float32, by its index in FOLLOWS; for swiglu silu(z) gate."""
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
    BN: tl.constexpr, KP: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """BN outputs of one row. KP: K rounded up to a power of two.

    Everything is loaded before anything is computed: a load after a sum over warps would begin only
    after that sum, and the memory's latency would be paid twice. The compiler keeps this order if
    there is a `turn`; without one, it loads half of the weights after the sums of the norm.
    """
    m = tl.program_id(1)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, KP)
    there = (n[:, None] < N) & (k[None, :] < K)
    at = n[:, None].to(tl.int64) * K + k[None, :]
    w = tl.load(weight + at, mask=there, other=0.0)
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
    if ACT == 5 and SCALE:
        gate_scales = tl.load(scale + N + n, mask=n < N, other=0.0)
    if ACT == 5 and BIAS:
        gate_biases = tl.load(bias + N + n, mask=n < N, other=0.0).to(tl.float32)
    turn(OVERLAP)
    half = tl.load(x + m * K + k, mask=k < K, other=0.0)
    if RESIDUAL:
        before = tl.load(residual + m * N + n, mask=n < N, other=0.0).to(tl.float32)

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


@triton.jit
def inputs(x, m, k, M, K: tl.constexpr):
    there = (m[:, None] < M) & (k[None, :] < K)
    return tl.load(x + m[:, None] * K + k[None, :], mask=there, other=0.0)


@triton.jit
def weights(weight, n, k, N, K: tl.constexpr):
    there = (n[:, None] < N) & (k[None, :] < K)
    return tl.load(weight + n[:, None].to(tl.int64) * K + k[None, :], mask=there, other=0.0)


@triton.jit(do_not_specialize=["M"])
def rows_kernel(
    x, weight, scale, bias, y, M, N, K: tl.constexpr,
    SCALE: tl.constexpr, BIAS: tl.constexpr, ACT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """BN outputs of up to BM rows."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    if SCALE:
        scales = tl.load(scale + n, mask=n < N, other=0.0)
    if BIAS:
        biases = tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    if ACT == 5 and SCALE:
        gate_scales = tl.load(scale + N + n, mask=n < N, other=0.0)
    if ACT == 5 and BIAS:
        gate_biases = tl.load(bias + N + n, mask=n < N, other=0.0).to(tl.float32)
    if OVERLAP:
        there = tl.minimum(n, N - 1)
        prefetch(weight, there, 0, K, K)
        if ACT == 5:
            prefetch(weight + N.to(tl.int64) * K, there, 0, K, K)
    turn(OVERLAP)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    if ACT == 5:
        gates = tl.zeros((BM, BN), dtype=tl.float32)
    for begin in range(0, K, BK):
        k = begin + tl.arange(0, BK)
        a = inputs(x, m, k, M, K)
        w = weights(weight, n, k, N, K)
        total += tl.dot(a, tl.trans(w.to(a.dtype)))
        if ACT == 5:
            v = weights(weight + N.to(tl.int64) * K, n, k, N, K)
            gates += tl.dot(a, tl.trans(v.to(a.dtype)))
    half = y.dtype.element_ty
    if SCALE:
        total *= scales[None, :]
    if BIAS:
        total += biases[None, :]
    z = total.to(half)
    gate = z
    if ACT == 5:
        if SCALE:
            gates *= gate_scales[None, :]
        if BIAS:
            gates += gate_biases[None, :]
        gate = gates.to(half)
    z = activated(z.to(tl.float32), gate, ACT)
    there = (m[:, None] < M) & (n[None, :] < N)
    tl.store(y + m[:, None] * N + n[None, :], z.to(half), mask=there)


def shape_of_row(K: int) -> dict:
    """The shape of row_kernel's launch: few threads share a sum."""
    (outputs, per_thread), inputs = ROW, triton.next_power_of_2(K)
    outputs = max(1, outputs if inputs <= 1024 else outputs // 2)
    warps = min(16, max(1, outputs * inputs // (32 * per_thread)))
    return {"BN": outputs, "KP": inputs, "num_warps": warps}


def shape_of_rows(M: int, N: int, gated: bool = False) -> dict:
    """The shape of rows_kernel's launch. gated: each output has two weights. With twice as many
    outputs their stages would not fit into the 99 KiB of shared memory of a consumer GPU."""
    rows = 16 if M <= 16 else 64
    outputs, inputs, warps, stages = ROWS[rows]
    outputs = outputs if N <= 4096 or gated else 2 * outputs
    return {"BM": rows, "BN": outputs, "BK": inputs, "num_warps": warps, "num_stages": stages}


def product(
    x: torch.Tensor, layer: Product, residual: torch.Tensor | None = None, overlap: bool = False
) -> torch.Tensor:
    """layers.product for x (..., K) in half precision, with up to SIZES[-1] rows, or up to ALONE if
    there is a norm or a residual."""
    N, K = layer.weight.shape
    N = N // 2 if layer.activation == "swiglu" else N
    x = x.contiguous()
    M = x.numel() // K
    y = torch.empty((*x.shape[:-1], N), dtype=x.dtype, device=x.device)
    tensors = [y if t is None else t for t in (layer.weight, layer.scale, layer.bias)]
    options = launch_options(overlap)
    flags = dict(
        SCALE=layer.scale is not None,
        BIAS=layer.bias is not None,
        ACT=FOLLOWS.index(layer.activation),
    )
    with torch.cuda.device_of(x):  # Triton launches on the thread's current device, not on x's
        if M <= ALONE:
            others = [y if t is None else t for t in (layer.gain, layer.shift, residual)]
            flags |= dict(
                NORM=layer.norm, GAIN=layer.gain is not None, SHIFT=layer.shift is not None,
                RESIDUAL=residual is not None,
            )  # fmt: skip
            shape = shape_of_row(K)
            grid = (triton.cdiv(N, shape["BN"]), M)
            row_kernel[grid](x, *tensors, *others, y, N, layer.eps, K, **flags, **shape, **options)
        else:
            assert not layer.norm and residual is None
            shape = shape_of_rows(M, N, layer.activation == "swiglu")
            grid = (triton.cdiv(N, shape["BN"]),)
            rows_kernel[grid](x, *tensors, y, M, N, K, **flags, **shape, **options)
    return y


# ---- x + y W^T + b, and its norm ----


@triton.jit(do_not_specialize=["M"])
def parts_kernel(
    x, weight, parts, M, N, K: tl.constexpr,
    SIZE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """The sums over SIZE of the inputs, for BN outputs of up to BM rows -> parts (K / SIZE, M, N),
    float32.

    A product with long sums and few outputs would otherwise have too few programs to read its
    weights at the memory's speed.
    """
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    first = tl.program_id(1) * SIZE
    if OVERLAP:
        prefetch(weight, tl.minimum(n, N - 1), first, K, SIZE)
    turn(OVERLAP)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for begin in range(0, SIZE, BK):
        k = first + begin + tl.arange(0, BK)
        a = inputs(x, m, k, M, K)
        w = weights(weight, n, k, N, K)
        total += tl.dot(a, tl.trans(w.to(a.dtype)))
    row = tl.program_id(1) * M + m
    there = (m[:, None] < M) & (n[None, :] < N)
    tl.store(parts + row[:, None] * N + n[None, :], total, mask=there)


@triton.jit(do_not_specialize=["M"])
def add_and_norm_kernel(
    parts, scale, bias, residual, gain, shift, stream, y, M, N, eps,
    PARTS: tl.constexpr, SCALE: tl.constexpr, BIAS: tl.constexpr, NORM: tl.constexpr,
    GAIN: tl.constexpr, SHIFT: tl.constexpr, NP: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """For one row: add the sum of a product's parts to the stream, and compute the stream's norm.
    NP: N rounded up to a power of two. Without parts the stream is the residual. Parts are summed
    in a fixed order, so results are reproducible."""
    m = tl.program_id(0)
    n = tl.arange(0, NP)
    there = n < N
    half = y.dtype.element_ty
    if NORM and GAIN:
        gains = tl.load(gain + n, mask=there, other=0.0).to(tl.float32)
    if NORM and SHIFT:
        shifts = tl.load(shift + n, mask=there, other=0.0).to(tl.float32)
    if PARTS and SCALE:
        scales = tl.load(scale + n, mask=there, other=0.0)
    if PARTS and BIAS:
        biases = tl.load(bias + n, mask=there, other=0.0).to(tl.float32)
    turn(OVERLAP)
    x = tl.load(residual + m * N + n, mask=there, other=0.0)
    if PARTS:
        z = tl.zeros((NP,), dtype=tl.float32)
        for part in tl.static_range(PARTS):
            z += tl.load(parts + (part * M + m) * N + n, mask=there, other=0.0)
        if SCALE:
            z *= scales
        if BIAS:
            z += biases
        x = (x.to(tl.float32) + z.to(half).to(tl.float32)).to(half)
        tl.store(stream + m * N + n, x, mask=there)
    if NORM:
        a = x.to(tl.float32)
        if NORM == 1:
            a = tl.where(there, a - tl.sum(a, axis=0) / N, 0.0)
        a *= tl.rsqrt(tl.sum(a * a, axis=0) / N + eps)
        if GAIN:
            a *= gains
        if SHIFT:
            a += shifts
        tl.store(y + m * N + n, a.to(half), mask=there)


def shape_of_parts(M: int, N: int, K: int) -> dict:
    """The shape of parts_kernel's launch: as many parts as PROGRAMS allows."""
    rows = 16 if M <= 16 else 64
    outputs, inputs, warps, stages = PARTS[rows]
    blocks = triton.cdiv(K, inputs)
    parts = max(1, min(blocks, PROGRAMS // triton.cdiv(N, outputs)))
    size = triton.cdiv(blocks, parts) * inputs
    tile = {"SIZE": size, "BM": rows, "BN": outputs, "BK": inputs}
    return {**tile, "num_warps": warps, "num_stages": stages}


def add_and_norm(
    x: torch.Tensor,
    layer: Product,
    residual: torch.Tensor,
    norm: NormLayer | None = None,
    overlap: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """layers.add_and_norm for x (..., K) in half precision, up to SIZES[-1] rows."""
    N, K = layer.weight.shape
    x = x.contiguous()
    M = x.numel() // K
    shape = shape_of_parts(M, N, K)
    count = triton.cdiv(K, shape["SIZE"])
    parts = torch.empty((count, M, N), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        grid = (triton.cdiv(N, shape["BN"]), count)
        parts_kernel[grid](x, layer.weight, parts, M, N, K, **shape, **launch_options(overlap))
    return summed(parts, layer, residual, norm, overlap)


def normed(x, kind: int, gain=None, shift=None, eps=1e-5, overlap: bool = False) -> torch.Tensor:
    """layers.normed for x (..., N) in half precision."""
    return summed(None, None, x, NormLayer(kind, gain, shift, eps), overlap)[1]


def summed(parts, layer: Product | None, residual, norm: NormLayer | None, overlap: bool):
    """The stream and its norm, or None without a norm, by add_and_norm_kernel."""
    residual = residual.contiguous()
    N, kind = residual.size(-1), norm.kind if norm else 0
    stream = residual if parts is None else torch.empty_like(residual)
    y = torch.empty_like(residual) if norm else stream
    scale, bias = (layer.scale, layer.bias) if layer else (None, None)
    gain, shift = (norm.gain, norm.shift) if norm else (None, None)
    given = [y if t is None else t for t in (parts, scale, bias, residual, gain, shift, stream)]
    with torch.cuda.device_of(residual):
        NP = triton.next_power_of_2(N)
        add_and_norm_kernel[(residual.numel() // N,)](
            *given, y, residual.numel() // N, N, norm.eps if norm else 0.0,
            PARTS=0 if parts is None else len(parts),
            SCALE=scale is not None, BIAS=bias is not None, NORM=kind,
            GAIN=gain is not None, SHIFT=shift is not None,
            NP=NP, num_warps=min(16, max(1, NP // (32 * ADD))), **launch_options(overlap),
        )  # fmt: skip
    return stream, y if norm else None


# ---- attention of a step, with its cache ----


@triton.jit
def normed_head(x, c, eps, HS: tl.constexpr, NORM: tl.constexpr):
    """A head's channels, normalised without gain."""
    if NORM == 1:
        x = tl.where(c < HS, x - tl.sum(x, axis=0) / HS, 0.0)
    if NORM:
        x = x * tl.rsqrt(tl.sum(x * x, axis=0) / HS + eps)
    return x


@triton.jit
def prepared(
    head, cos, sin, c, eps,
    HS: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """A query or key, normalised and rotated; rounded after each step, as in torch."""
    half = head.dtype.element_ty
    x = tl.load(head + c, mask=c < HS, other=0.0).to(tl.float32)
    if ROPE:
        other = (c + HS // 2) % HS
        far = tl.load(head + other, mask=c < HS, other=0.0).to(tl.float32)
        if NORM:
            far = normed_head(far, c, eps, HS, NORM).to(half).to(tl.float32)
    if NORM:
        x = normed_head(x, c, eps, HS, NORM).to(half).to(tl.float32)
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
    ROPE: tl.constexpr, EXTRA: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """For one head of one row: write its key and value to the cache, and attend to the earlier
    ones, in blocks of BLOCK keys with a running maximum (Milakov & Gimelshein 2018)."""
    turn(OVERLAP)  # first: it reads no weights, and all else may still change
    b, h = tl.program_id(0) // nh, tl.program_id(0) % nh
    group = nh // nkv
    of = h // group
    c = tl.arange(0, CHANNELS)  # HS rounded up to a power of two
    at = tl.load(pos + b)
    new = qkv + b * (nh + 2 * nkv) * HS
    cos += b * cos_row
    sin += b * cos_row
    query = prepared(new + h * HS, cos, sin, c, eps, HS, NORM, ROPE) * scale
    key = prepared(new + (nh + of) * HS, cos, sin, c, eps, HS, NORM, ROPE)
    value = tl.load(new + (nh + nkv + of) * HS + c, mask=c < HS, other=0.0).to(tl.float32)
    if EXTRA:
        value += tl.load(extra + (b * nkv + of) * HS + c, mask=c < HS, other=0.0).to(tl.float32)
        value = value.to(y.dtype.element_ty).to(tl.float32)
    keys = b.to(tl.int64) * row + of * head
    if h % group == 0:
        tl.store(k + keys + at * place + c, key.to(k.dtype.element_ty), mask=c < HS)
        tl.store(v + keys + at * place + c, value.to(v.dtype.element_ty), mask=c < HS)
    # The row's own key comes last: other keys would be read only after its sum over warps
    best, total = -1e30, 0.0
    out = tl.zeros((CHANNELS,), dtype=tl.float32)
    first = tl.maximum(at - window + 1, 0)
    for begin in tl.range(first // BLOCK * BLOCK, at, BLOCK, num_stages=STAGES):
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
    """The shape of attend_step_kernel's launch. Few programs read many keys at once. Many programs
    read a few keys each, with one warp, so that none waits for another, and in several stages: the
    next keys and values are read during the computation. With one stage values are read only after
    the sums over the keys, so the memory's latency is paid twice."""
    numbers, warps, stages = STEP["few" if programs <= 256 else "many"]
    return {"BLOCK": max(16, numbers // channels), "STAGES": stages, "num_warps": warps}


def attend_step(
    qkv, k, v, pos, heads: Heads, rotation=None, extra=None, overlap: bool = False
) -> torch.Tensor:
    """layers.attend_step for keys and values in half precision."""
    B, (nh, nkv, hs, scale, window, norm, eps) = qkv.size(0), heads
    y = torch.empty((B, 1, nh * hs), dtype=qkv.dtype, device=qkv.device)
    channels = triton.next_power_of_2(hs)
    cos, sin = (r.contiguous() for r in rotation) if rotation is not None else (pos, pos)
    turns = cos.stride(0) if rotation is not None and cos.size(0) > 1 else 0
    with torch.cuda.device_of(qkv):
        attend_step_kernel[(B * nh,)](
            qkv.contiguous(), y if extra is None else extra.contiguous(), k, v, pos, cos, sin, y,
            nh, nkv, scale, eps, window or 2**30, *k.stride()[:3], turns,
            HS=hs, CHANNELS=channels, NORM=norm, ROPE=rotation is not None,
            EXTRA=extra is not None, **shape_of_step(B * nh, channels), **launch_options(overlap),
        )  # fmt: skip
    return y
