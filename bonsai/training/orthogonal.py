"""Muon's step for matrices, as pure functions (Jordan et al. 2024).

It replaces the momentum of a weight matrix by the nearest orthogonal matrix, so that a step moves
all directions equally. muon.py has the optimizer that calls this.
"""

import itertools
import math
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch

# Coefficients (a, b, c) of X <- a X + (b A + c A^2) X, A = X X^T: for each iteration a row with the
# best polynomial (Amsel et al. 2025). They bring singular values nearer to 1 than those of Jordan
# et al., which are the same in every iteration.
POLAR_EXPRESS = (
    (8.075796559309367, -21.822062606537262, 15.108104735722222),  # for singular values below 1.01
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169301777),
)


def plain_product(x: torch.Tensor, alpha: float = 1.0, beta: float = 0.0) -> torch.Tensor:
    """x x^T of each matrix in x (K, m, n); with beta, for symmetric ones, alpha x x + beta x."""
    return torch.baddbmm(x, x, x, beta=beta, alpha=alpha) if beta else torch.bmm(x, x.mT)


def fastest_product(device: torch.device, dtype: torch.dtype) -> Callable:
    """symmetric_product, which does half the work, if the device has it; else plain_product."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        if torch.cuda.get_device_capability(device) < (8, 0):  # bfloat16 in name only
            return plain_product
        with suppress(ImportError):  # torch for Windows comes without triton
            from bonsai.training.symmetric import symmetric_product

            return symmetric_product
    return plain_product


def orthogonalize(
    stacks: list[torch.Tensor], coefficients, dtype: torch.dtype, product: Callable = plain_product
) -> list[torch.Tensor]:
    """The (semi-)orthogonal matrix nearest to each matrix in stacks, approximately, by products in
    `dtype`.

    stacks: each (K, m, n) or (K, n, m), with a K of its own. Tall matrices are transposed, so that
    all stacks can be joined into one. For g = U S V^T the result is U V^T, but no decomposition is
    needed: an iteration of matrix products brings every singular value near 1. product: like
    plain_product.
    """
    tall = [g.size(-2) > g.size(-1) for g in stacks]
    wide = [(g.mT if is_tall else g).to(dtype) for g, is_tall in zip(stacks, tall)]
    x = torch.cat(wide) if len(wide) > 1 else wide[0]  # (K, m, n), m <= n
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # singular values at most 1
    for a, b, c in coefficients:
        gram = product(x)
        gram = product(gram, c, b)
        x = torch.baddbmm(x, gram, x, beta=a)
    parts = x.split([len(g) for g in stacks])
    return [(u.mT if is_tall else u).type_as(g) for u, g, is_tall in zip(parts, stacks, tall)]


class Rates(NamedTuple):
    """What changes from step to step. These are tensors without dimensions, because an update that
    reads Python numbers would be compiled anew for each new number."""

    lr: torch.Tensor
    decay: torch.Tensor  # weight decay: a step shrinks weights by lr times this
    momentum: torch.Tensor
    fresh: torch.Tensor  # 1 - momentum: the share of the gradient in the new momentum
    on: torch.Tensor  # 1, or 0 if the gradient is not finite and nothing may change


class Fixed(NamedTuple):
    """What stays the same in all steps: an update is compiled for these values."""

    coefficients: tuple
    dtype: torch.dtype  # of the products
    decays: bool
    cautious: bool  # decay a weight only where its update, too, moves it towards 0
    neuron_beta: float = 0.0  # see even_out; 0: off
    product: Callable = plain_product


def even_out(u: torch.Tensor, square: torch.Tensor, fresh) -> tuple[torch.Tensor, torch.Tensor]:
    """NorMuon (Li et al. 2025): divide each row of an update, which is one neuron's, by the root of
    its running mean square.

    An orthogonal update moves all directions equally, but not all rows. u (K, m, n): the updates,
    whose norms stay as they are; square (K, m, 1): the running mean squares, in which this step
    counts with weight `fresh`. Returns both after the step.
    """
    square = square.lerp(u.square().mean(-1, keepdim=True), fresh)
    even = u * (square + 1e-10).rsqrt()
    norm, now = (x.norm(dim=(-2, -1), keepdim=True) for x in (u, even))
    return even * (norm / (now + 1e-7)), square


def muon_update(
    weights: list[torch.Tensor],
    grads: list[torch.Tensor],
    momenta: list[torch.Tensor],
    squares: list[torch.Tensor],
    rates: Rates,
    fixed: Fixed,
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Muon's step as a pure function: returns the weights, momenta and squares after the step.

    weights, grads, momenta: stacks of matrices as orthogonalize takes them, of a whole model or of
    one process's share, as no matrix depends on another. squares: even_out's; [] without it.
    """
    # with rates.on = 0 all of this is multiplied by 0, and nan and inf must not get through
    finite = [g.nan_to_num(0.0, 0.0, 0.0) * rates.on for g in grads]
    momenta = [old.lerp(g, rates.fresh * rates.on) for old, g in zip(momenta, finite)]
    ahead = [g.lerp(new, rates.momentum) for g, new in zip(finite, momenta)]  # Nesterov's
    updates = orthogonalize(ahead, fixed.coefficients, fixed.dtype, fixed.product)
    if fixed.neuron_beta:
        fresh = (1 - fixed.neuron_beta) * rates.on
        pairs = [even_out(u, square, fresh) for u, square in zip(updates, squares)]
        updates, squares = map(list, zip(*pairs))
    rate, moved = rates.lr * rates.on, []
    for w, u in zip(weights, updates):
        # longer steps for tall matrices, so that outputs change alike, in RMS (Jordan et al. 2024)
        longer = math.sqrt(max(1.0, w.size(1) / w.size(2)))
        if fixed.decays:  # cautious: times 1 or 0; on CPUs this takes half the time of a comparison
            shrinks = w * (u * w).sign().clamp(min=0.0) if fixed.cautious else w
            w = w - shrinks * (rate * rates.decay)
        moved.append(w - u * (rate * longer))
    return moved, momenta, squares


def update_in_place(families: list[tuple], rates: Rates, fixed: Fixed) -> None:
    """muon_update of every (weights, grads, momenta, squares), in place; compiled, one graph."""
    for weights, grads, momenta, squares in families:
        after = muon_update(weights, grads, momenta, squares, rates, fixed)
        for old, new in zip([*weights, *momenta, *squares], itertools.chain(*after)):
            old.copy_(new)
