"""Loads the kernels of a one-token step, and compares their results with those of plain torch."""

import ctypes
import functools
import sys
from collections.abc import Callable, Sequence
from math import inf
from typing import NamedTuple

import torch

from bonsai.engine.cuda import layers
from bonsai.engine.cuda.graphs import CapturedGraph, Uncaptured, on_stream
from bonsai.engine.cuda.layers import Heads, NormLayer, Product
from bonsai.engine.sampling import noise
from bonsai.system.hashing import splitmix_tensor


class Kernels(NamedTuple):
    """Functions of block_kernels.py and draw_kernel.py, or others that compute the same."""

    product: Callable  # layers.product; with a norm or a residual for up to sizes[0] rows only
    add_and_norm: Callable  # layers.add_and_norm
    normed: Callable  # layers.normed
    attend_step: Callable  # layers.attend_step
    draw: Callable  # draw_kernel.draw
    sizes: tuple[int, ...]  # the most rows of each shape of kernel, ascending; none takes more
    # None, or, if each of these kernels may begin before the previous one has ended: the same
    # kernels, run one after another
    in_order: "Kernels | None" = None


REPLAYS = 3  # how often a graph of overlapping kernels is replayed to check its numbers


@functools.cache
def load_kernels(device: torch.device) -> Kernels | None:
    """The kernels for this GPU, which overlap if it supports that; block.py's `join` checks their
    numbers. None, after one line that says why, if there is no Triton or no compiler for it, or if
    a draw is wrong. device: with its index."""
    try:
        from bonsai.engine.cuda import block_kernels
        from bonsai.engine.cuda.draw_kernel import draw

        check_draw(draw, device)
        of_block = (
            block_kernels.product,
            block_kernels.add_and_norm,
            block_kernels.normed,
            block_kernels.attend_step,
        )
        in_order = Kernels(*of_block, draw, block_kernels.SIZES)
    except Exception as e:  # Triton has many ways to fail, and plain torch computes the same
        refuse(e)
        return None
    overlapping = [functools.partial(function, overlap=True) for function in of_block]
    overlap = Kernels(*overlapping, draw, block_kernels.SIZES, in_order)
    try:
        if can_overlap(device):
            return overlap
    except Exception as e:
        refuse_overlap(e)
    return in_order


def can_overlap(device: torch.device) -> bool:
    """Whether a kernel may begin before the previous one has ended, also in captured graphs: this
    needs compute capability 9.0 and a driver for CUDA 12.3."""
    if torch.version.hip or torch.cuda.get_device_capability(device) < (9, 0):
        return False
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value >= 12030


def refuse(e: Exception, instead: str = "no Triton kernels, torch computes instead") -> None:
    """Print one line that says what is done instead, and why."""
    reason = next(iter(str(e).strip().splitlines()), type(e).__name__)
    print(f"{instead}, slower: {reason}", file=sys.stderr)


def refuse_overlap(e: Exception) -> None:
    refuse(e, "kernels of a step run one after another")


def plain_draw(logits, ids, keys, steps, temperature, top_k, log_min_p):
    """draw_kernel.draw in plain torch, with all arguments given."""
    kept = logits / temperature[:, None]
    likeliest = kept.amax(1, keepdim=True)
    rank = logits.argsort(dim=1, descending=True, stable=True).argsort(1)
    out = (rank >= top_k[:, None]) & (top_k[:, None] > 0)
    out |= kept < likeliest + log_min_p[:, None]
    best = kept.masked_fill(out, -inf) + noise(splitmix_tensor(keys, steps)[:, None], ids)
    return ids.gather(1, best.argmax(1, keepdim=True))[:, 0]


def check_draw(draw: Callable, device: torch.device) -> None:
    """Raise RuntimeError if the kernels draw other tokens than sampling.py."""
    generator = torch.Generator().manual_seed(0)  # leaves the global generator's state as it is
    logits = torch.randn(16, 200, generator=generator).to(device)
    ids = torch.randint(50304, logits.shape, generator=generator).to(device)
    ints = torch.randint(-(2**62), 2**62, (16, 3), generator=generator).to(device)
    keys, steps, top_k = ints.T  # strided columns of a table, as in rows.py
    floats = torch.tensor([[1.0, -inf]], device=device).repeat(16, 1)
    top_k.zero_()
    same(draw(logits, ids, keys, steps), plain_draw(logits, ids, *columns(ints, floats)))

    # A whole vocabulary with equal logits. keep_kernel first looks at the four largest logits of
    # each lane: here two rows have their k largest in one lane, and one row keeps more tokens than
    # four in each lane
    logits = torch.randn(7, 50000, generator=generator).bfloat16().float().to(device)
    logits[:2, ::4096] = 20
    ids = torch.arange(50000, device=device).expand(7, -1)
    ints, floats = ints[:7], floats[:7]
    ints[:, 2] = torch.tensor([3, 7, 200, 20000, 0, 0, 0])
    floats[:, 0] = torch.linspace(0.7, 1.3, 7)
    floats[3:, 1] = torch.tensor([-4.0, -1.0, -2.0, -3.0])
    of_rows = columns(ints, floats)
    same(draw(logits, None, *of_rows), plain_draw(logits, ids, *of_rows))


def columns(ints: torch.Tensor, floats: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The columns keys, steps, temperature, top_k, log_min_p of ints (n, 3) and floats (n, 2)."""
    return *ints[:, :2].T, floats[:, 0], ints[:, 2], floats[:, 1]


def same(got: torch.Tensor, want: torch.Tensor) -> None:
    """Raise RuntimeError if two draws differ."""
    if got.tolist() != want.tolist():
        raise RuntimeError("a draw differs from that of plain torch")


def check_product(kernels: Kernels, layer: Product, dtype: torch.dtype, batch: int) -> None:
    """Raise RuntimeError if one of a layer's kernels gives other numbers than plain torch. It also
    compiles them, so that no request has to wait for that later."""
    for rows in rows_of(kernels.sizes, batch):
        part = layer if rows <= kernels.sizes[0] else layer._replace(norm=0)
        x = random((rows, 1, layer.weight.size(1)), layer.weight, dtype)
        compare(f"a product of {rows} rows", kernels.product(x, part), layers.product(x, part))


def check_sum(
    kernels: Kernels, layer: Product, norm: NormLayer | None, dtype: torch.dtype, batch: int
) -> None:
    """Like check_product, for a layer that adds to the stream, and the norm after it."""
    for rows in rows_of(kernels.sizes, batch):
        x, stream = (
            random((rows, 1, n), layer.weight, dtype) for n in reversed(layer.weight.shape)
        )
        if rows <= kernels.sizes[0]:
            got, want = kernels.product(x, layer, stream), layers.product(x, layer, stream)
            compare(f"a sum of {rows} rows", got, want)
            continue
        got = kernels.add_and_norm(x, layer, stream, norm)
        for y, want in zip(got, layers.add_and_norm(x, layer, stream, norm)):
            if want is not None:
                compare(f"a sum of {rows} rows or its norm", y, want)


def check_norm(
    kernels: Kernels, norm: NormLayer, width: int, like: torch.Tensor, batch: int
) -> None:
    """Like check_product, for a norm alone. like: a tensor of its device and dtype."""
    for rows in rows_of(kernels.sizes, batch):
        x = random((rows, 1, width), like, like.dtype)
        compare(f"a norm of {rows} rows", kernels.normed(x, *norm), layers.normed(x, *norm))


def rows_of(sizes: tuple[int, ...], batch: int) -> list[int]:
    """The numbers of rows to check: one, and the most rows of a batch for each shape of kernel."""
    return sorted({1, *(min(size, batch) for size in sizes)})


def check_attend_step(
    kernels: Kernels,
    heads: Heads,
    like: torch.Tensor,
    rope: bool,
    rows: int = 2,
    values: bool = False,
) -> None:
    """Raise RuntimeError if a step of attention differs from plain torch, in its result or in the
    cache. like: a tensor of its device and dtype. rows: 2 or more. values: whether something is
    added to the values."""
    nh, nkv, hs, *_ = heads
    places, ends = 304, (7, 280)
    qkv = random((rows, 1, (nh + 2 * nkv) * hs), like, like.dtype)
    extra = random((rows, 1, nkv * hs), like, like.dtype) if values else None
    cache = random((2, rows, nkv, places, hs), like, like.dtype)
    pos = torch.tensor(ends, device=like.device).repeat(rows)[:rows]
    turns = random((2, rows, 1, 1, hs), like, torch.float32) if rope else None
    outcomes = []
    for attend in (kernels.attend_step, layers.attend_step):
        k, v = cache.clone()
        outcomes.append((attend(qkv, k, v, pos, heads, turns, extra), k, v))
    for name, got, want in zip(("attention", "a key in the cache", "a value"), *outcomes):
        compare(name, got, want)


def check_overlap(compute: Callable[[], Sequence[torch.Tensor]], device: torch.device) -> None:
    """Raise RuntimeError if overlapping kernels give other numbers in replays of a captured graph
    than launched one by one; they are compared to the last bit. Launched one by one, each kernel
    ends before Python launches the next. compute: must first set the tensors that it changes."""
    got: list[torch.Tensor] = []

    def computed() -> None:
        got[:] = compute()

    if device.type == "cuda":
        stream = torch.cuda.Stream(device)
        with on_stream(stream):  # initialises libraries, which they cannot do during a capture
            computed()
        want = [x.clone() for x in got]
        graph = CapturedGraph(computed, stream, torch.cuda.graph_pool_handle())
    else:
        computed()
        want = [x.clone() for x in got]
        graph = Uncaptured(computed)
    for _ in range(REPLAYS):
        graph.replay()
        # as integers, because NaN equals itself only so
        if not all(torch.equal(bits(x), bits(y)) for x, y in zip(got, want, strict=True)):
            raise RuntimeError("overlapping kernels give other numbers")


def bits(x: torch.Tensor) -> torch.Tensor:
    """The bits of floating-point numbers of two or four bytes, as integers."""
    return x.view({2: torch.int16, 4: torch.int32}[x.element_size()])


def check_products_overlap(kernels: Kernels, device: torch.device) -> None:
    """Like check_overlap, for models without blocks: products in a row, with one row of inputs."""
    weight = random((256, 256), torch.empty(0, device=device), torch.bfloat16) / 16
    layer, x = Product(weight, None, None), random((1, 1, 256), weight, torch.bfloat16)

    def compute() -> list[torch.Tensor]:
        y = x.clone()
        for _ in range(8):
            y = kernels.product(y, layer)
        return [y]

    check_overlap(compute, device)


def random(shape: tuple, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Noise, the same in each call; the global generator's state stays as it is."""
    generator = torch.Generator(like.device).manual_seed(len(shape))
    return torch.randn(shape, generator=generator, device=like.device).to(dtype)


def compare(name: str, got: torch.Tensor, want: torch.Tensor) -> None:
    """Raise RuntimeError if a number is off by more than 2% of the largest expected number."""
    error = (got.float() - want.float()).abs().max()
    if got.shape != want.shape or not error <= 2e-2 * want.float().abs().max():
        raise RuntimeError(f"{name} is off by {error:.1e}")
