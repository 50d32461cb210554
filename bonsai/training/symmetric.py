"""Products that equal their own transpose, with half the work: a Triton kernel for CUDA.

X X^T of a stack of matrices, and A A of a symmetric A, are most of what Muon computes. The kernel
computes only the tiles on and above the diagonal, and writes each a second time, mirrored.
Importing this file needs triton, which comes with torch for CUDA; Muon imports it only there.
"""

import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from bonsai.system.compiler import FUSED
from bonsai.system.errors import one_line
from bonsai.training.orthogonal import plain_product


class Tile(NamedTuple):
    """What one program computes, and how."""

    rows: int
    columns: int  # a multiple of rows
    depth: int  # columns of x that it multiplies at a time
    warps: int
    stages: int  # loads that are under way at once
    blocks: bool = False  # loads whole blocks, by the hardware that Hopper has for that


HOPPER = (  # on an H200 the first was fastest, except for one shape of four, where the last was
    Tile(128, 128, 64, 8, 3, True), Tile(128, 256, 64, 8, 3, True), Tile(128, 128, 64, 4, 3, True),
    Tile(128, 128, 64, 8, 4),
)  # fmt: skip
OLDER = (Tile(128, 128, 64, 8, 3), Tile(128, 128, 32, 4, 4))
SMALLEST = 512  # rows of a matrix from which on most tiles have a mirror image
CLEARLY = 0.95  # of torch's time: only a clear gain counts, so that every run chooses the same

chosen: dict[tuple, Tile | None] = {}  # by shape and kind; None: torch's product
refused: dict[tuple, str] = {}  # (tile, device) -> why it cannot be run, or that it was wrong


@triton.jit
def product_tile(
    x,
    left,
    right,
    out,
    alpha,
    beta,
    m,
    n,
    PLUS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One tile of out = alpha x x^T (+ beta x if PLUS), and its mirror image.

    x (K, m, n) and out (K, m, m), contiguous; with PLUS n = m and x is symmetric. left, right:
    descriptors of x by which a tile's rows and columns are loaded, if BLOCKS. EVEN: m and n are
    whole tiles. The grid of programs is (tiles, K). Tiles are numbered column by column, in each
    from the top to the diagonal; column j has RATIO (j + 1) of them.
    """
    p, k = tl.program_id(0), tl.program_id(1)
    RATIO: tl.constexpr = COLUMNS // ROWS
    triangle = p // RATIO  # j (j + 1) / 2 ... (j + 1) (j + 2) / 2 - 1
    j = ((tl.sqrt(8.0 * triangle + 1.0) - 1.0) / 2).to(tl.int32)
    i = p - RATIO * (j * (j + 1) // 2)
    if i * ROWS >= m:
        return
    first_of_x = k.to(tl.int64) * m * n  # of a large model the stack has more than 2^31 elements
    rows = i * ROWS + tl.arange(0, ROWS)
    columns = j * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.full((ROWS, COLUMNS), 0.0, dtype=tl.float32)
    for first in range(0, n, DEPTH):
        if BLOCKS:  # zeros beyond the edges
            a = left.load([k, i * ROWS, first]).reshape(ROWS, DEPTH)
            b = right.load([k, j * COLUMNS, first]).reshape(COLUMNS, DEPTH)
        else:
            depth = first + tl.arange(0, DEPTH)
            at = x + first_of_x + rows[:, None] * n + depth[None, :]
            across = x + first_of_x + columns[:, None] * n + depth[None, :]
            if EVEN:
                a, b = tl.load(at), tl.load(across)
            else:
                within = depth[None, :] < n
                a = tl.load(at, mask=(rows[:, None] < m) & within, other=0.0)
                b = tl.load(across, mask=(columns[:, None] < m) & within, other=0.0)
        total = tl.dot(a, tl.trans(b), total)
    total = alpha * total
    inside = (rows[:, None] < m) & (columns[None, :] < m)
    if PLUS:
        here = x + first_of_x + rows[:, None] * m + columns[None, :]
        total += beta * tl.load(here, mask=inside, other=0.0).to(tl.float32)
    tile, out = total.to(out.dtype.element_ty), out + k.to(tl.int64) * m * m
    tl.store(out + rows[:, None] * m + columns[None, :], tile, mask=inside)
    if RATIO > 1 or i < j:
        mirrored = (columns[:, None] < m) & (rows[None, :] < m)
        tl.store(out + columns[:, None] * m + rows[None, :], tl.trans(tile), mask=mirrored)


def launch(x: torch.Tensor, alpha: float, beta: float, tile: Tile) -> torch.Tensor:
    """The kernel's product for a contiguous x (K, m, n)."""
    (K, m, n), out = x.shape, x.new_empty(len(x), x.size(1), x.size(1))
    across = triton.cdiv(m, tile.columns)
    even = m % tile.columns == 0 and n % tile.depth == 0
    left = right = None
    if tile.blocks:
        strides = (m * n, n, 1)
        left, right = (
            TensorDescriptor(x, [K, m, n], strides, [1, size, tile.depth])
            for size in (tile.rows, tile.columns)
        )
    product_tile[(tile.columns // tile.rows * (across * (across + 1) // 2), K)](
        x, left, right, out, alpha, beta, m, n, beta != 0, even, tile.blocks,
        tile.rows, tile.columns, tile.depth,
        num_warps=tile.warps, num_stages=tile.stages, **FUSED,
    )  # fmt: skip
    return out


@torch.library.custom_op("bonsai::symmetric_product", mutates_args=())
def symmetric_product(x: torch.Tensor, alpha: float = 1.0, beta: float = 0.0) -> torch.Tensor:
    """As plain_product: x x^T of each matrix in x (K, m, n); with beta, for symmetric ones,
    alpha x x + beta x. To torch.compile it is one call.

    For the first product of a shape `fastest` times both ways, as half the work is not always half
    the time. Small and uneven shapes are left to torch.
    """
    if x.size(1) < SMALLEST or x.size(1) % 8 or x.size(2) % 8:
        return plain_product(x, alpha, beta)
    x, key = x.contiguous(), (x.shape, x.dtype, x.device, beta != 0)
    with torch.cuda.device_of(x):  # Triton launches on the thread's device
        if key not in chosen and not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
            chosen[key] = fastest(x, beta != 0)
        tile = chosen.get(key)
        return launch(x, alpha, beta, tile) if tile else plain_product(x, alpha, beta)


@symmetric_product.register_fake
def _(x, alpha=1.0, beta=0.0):
    return x.new_empty(x.size(0), x.size(1), x.size(1))


def tiles_of(device: torch.device) -> tuple[Tile, ...]:
    """The tiles that may be fast on a device."""
    hopper = torch.cuda.get_device_capability(device)[0] in (9, 10)
    return HOPPER if hopper else OLDER


def fastest(x: torch.Tensor, plus: bool) -> Tile | None:
    """The tile with which the product of x (K, m, n) takes least time; None: torch's product.

    A tile that cannot be run, or gives wrong numbers, is never tried again; each new reason is
    printed in one line.
    """
    beta = 1.0 if plus else 0.0
    best, least = None, CLEARLY * seconds(lambda: plain_product(x, 1.0, beta))
    for tile in tiles_of(x.device):
        if (tile, x.device) in refused:
            continue
        if why := refusal(x, plus, tile):
            if why not in refused.values():
                said = one_line(f"no symmetric products by {tile}: {why}")
                print(said, file=sys.stderr, flush=True)
            refused[tile, x.device] = why
        elif (took := seconds(lambda tile=tile: launch(x, 1.0, beta, tile))) < least:
            best, least = tile, took
    return best


def seconds(product: Callable, repeats: int = 10) -> float:
    """The seconds that the device needs for one product."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for i in range(2 + repeats):
        if i == 2:  # warm
            begin.record()
        product()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def refusal(like: torch.Tensor, plus: bool, tile: Tile) -> str:
    """Why a tile is not to be used for matrices like those in `like`; '': it may be.

    Two random matrices are multiplied both ways. They come from a generator of their own, so that
    the run draws the same random numbers as without this check.
    """
    (_, m, n), device = like.shape, like.device
    try:
        noise = torch.Generator(device).manual_seed(0)
        x = torch.randn(2, m, n, generator=noise, device=device).to(like.dtype)
        x, beta = (x + x.mT, math.sqrt(m)) if plus else (x, 0.0)
        ours, right = launch(x, 1.0, beta, tile).float(), plain_product(x.float(), 1.0, beta)
        # an entry is a sum of n products of noise: sqrt(n) off the diagonal, n on it
        same = torch.allclose(ours, right, rtol=0.02, atol=0.02 * math.sqrt(n))
    except Exception as e:  # of triton, of the driver, of the device's limits
        return f"{type(e).__name__} {e}"
    return "" if same else "a product was not what torch computes"
