"""Products that equal their own transpose, by half the work: a Triton kernel for CUDA.

X X^T of a stack of matrices, and A A of a symmetric A, are most of what Muon computes. The kernel
computes the blocks on and above the diagonal and writes each a second time, mirrored. Importing
this file needs triton, which comes with torch for CUDA; Muon asks for it there alone.
"""

import math
import sys

import torch
import triton
import triton.language as tl

from bonsai.system.errors import one_line
from bonsai.training.muon import plain_product

BLOCK = 128  # rows and columns of the product that one program computes
DEPTH = 64  # columns of x that it multiplies at a time
SMALLEST = 4 * BLOCK  # rows from which on most blocks have a mirror image

checked: set[tuple] = set()  # what the kernel has been compiled for and compared with torch's
refused: set[torch.device] = set()  # where it cannot be run, or was wrong


@triton.jit
def product_block(
    x,
    out,
    alpha,
    beta,
    m: tl.constexpr,
    n: tl.constexpr,
    PLUS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Block (i, j), i <= j, of out = alpha x x^T (+ beta x if PLUS), and its mirror image (j, i).

    x (K, m, n) and out (K, m, m), contiguous; with PLUS n = m and x is symmetric.
    """
    i, j, k = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if i > j:
        return
    x += k.to(tl.int64) * m * n  # of a large model the stack has more than 2^31 elements
    out += k.to(tl.int64) * m * m
    rows = i * BLOCK + tl.arange(0, BLOCK)
    columns = j * BLOCK + tl.arange(0, BLOCK)
    total = tl.full((BLOCK, BLOCK), 0.0, dtype=tl.float32)
    for first in range(0, n, DEPTH):
        depth = first + tl.arange(0, DEPTH)
        within = depth[None, :] < n
        left = rows[:, None] * n + depth[None, :]
        right = columns[:, None] * n + depth[None, :]
        a = tl.load(x + left, mask=(rows[:, None] < m) & within, other=0.0)
        b = tl.load(x + right, mask=(columns[:, None] < m) & within, other=0.0)
        total = tl.dot(a, tl.trans(b), total)
    total = alpha * total
    inside = (rows[:, None] < m) & (columns[None, :] < m)
    if PLUS:
        here = tl.load(x + rows[:, None] * m + columns[None, :], mask=inside, other=0.0)
        total += beta * here.to(tl.float32)
    block = total.to(out.dtype.element_ty)
    tl.store(out + rows[:, None] * m + columns[None, :], block, mask=inside)
    if i < j:
        mirrored = (columns[:, None] < m) & (rows[None, :] < m)
        tl.store(out + columns[:, None] * m + rows[None, :], tl.trans(block), mask=mirrored)


def launch(x: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """The kernel's product for a contiguous x (K, m, n)."""
    K, m, n = x.shape
    out = x.new_empty(K, m, m)
    blocks = triton.cdiv(m, BLOCK)
    product_block[(blocks, blocks, K)](
        x, out, alpha, beta, m, n, beta != 0, BLOCK, DEPTH, num_warps=8, num_stages=3
    )
    return out


@torch.library.custom_op("bonsai::symmetric_product", mutates_args=())
def symmetric_product(x: torch.Tensor, alpha: float = 1.0, beta: float = 0.0) -> torch.Tensor:
    """As plain_product: x x^T of each matrix in x (K, m, n); with beta, for symmetric ones,
    alpha x x + beta x. To torch.compile it is one call.

    The first product of a shape is compared with torch's: where the kernel is wrong or cannot be
    run, one line says so and torch's are taken from then on. Small and uneven shapes are torch's.
    """
    if x.size(1) < SMALLEST or x.size(1) % 8 or x.size(2) % 8:
        return plain_product(x, alpha, beta)
    key = (x.shape[1:], x.dtype, x.device, beta != 0)
    if key not in checked and x.device not in refused:
        checked.add(key)
        if why := refusal(x, beta != 0):
            refused.add(x.device)
            why = f"no symmetric products on {x.device}, torch's own are taken: {why}"
            print(one_line(why), file=sys.stderr, flush=True)
    if x.device in refused:
        return plain_product(x, alpha, beta)
    return launch(x.contiguous(), alpha, beta)


@symmetric_product.register_fake
def _(x, alpha=1.0, beta=0.0):
    return x.new_empty(x.size(0), x.size(1), x.size(1))


def refusal(like: torch.Tensor, plus: bool) -> str:
    """Why the kernel is not to be used for matrices like those in `like`; '': it may be.

    Two matrices of noise are multiplied both ways, from a generator of their own, so that the
    run's noise stays as it is.
    """
    (_, m, n), device = like.shape, like.device
    try:
        noise = torch.Generator(device).manual_seed(0)
        x = torch.randn(2, m, n, generator=noise, device=device).to(like.dtype)
        x, beta = (x + x.mT, math.sqrt(m)) if plus else (x, 0.0)
        ours, right = launch(x, 1.0, beta).float(), plain_product(x.float(), 1.0, beta)
        # an entry is a sum of n products of noise: sqrt(n) off the diagonal, n on it
        same = torch.allclose(ours, right, rtol=0.02, atol=0.02 * math.sqrt(n))
    except Exception as e:  # of triton, of the driver, of the device's limits
        return f"{type(e).__name__} {e}"
    return "" if same else "a product was not what torch computes"
