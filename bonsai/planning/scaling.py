"""Scaling laws: how the loss falls with parameters and tokens, and what to spend compute on.

Chinchilla's form (Hoffmann et al. 2022, eq. 2): L(N, D) = E + A / N^alpha + B / D^beta, in nats per
token, with N parameters and D tokens, and C = 6 N D training FLOPs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class ScalingLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, N: float, D: float) -> float:
        """The loss of a model of N parameters after D tokens, in nats per token."""
        return self.E + self.A / N**self.alpha + self.B / D**self.beta

    @property
    def exponent(self) -> float:
        """a in N_opt ~ C^a; tokens grow with C^(1 - a)."""
        return self.beta / (self.alpha + self.beta)

    def optimal(self, C: float) -> tuple[float, float]:
        """Parameters N and tokens D with the lowest loss for C = 6 N D FLOPs (eq. 4)."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        N = ratio ** (1 / (self.alpha + self.beta)) * (C / 6) ** self.exponent
        return N, C / 6 / N

    def optimal_tokens(self, N: float) -> float:
        """Tokens D for which N parameters are the optimum."""
        ratio = self.beta * self.B / (self.alpha * self.A)
        return (ratio * N**self.alpha) ** (1 / self.beta)


CHINCHILLA = ScalingLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)  # eq. 10

# Tables 3 and A3 of the paper: parameters, FLOPs and tokens at the optimum, as estimated from
APPROACH_1 = (  # the minimum over training curves
    (400e6, 1.92e19, 8.0e9),
    (1e9, 1.21e20, 20.2e9),
    (10e9, 1.23e22, 205.1e9),
    (67e9, 5.76e23, 1.5e12),
    (175e9, 3.85e24, 3.7e12),
    (280e9, 9.90e24, 5.9e12),
    (520e9, 3.43e25, 11.0e12),
    (1e12, 1.27e26, 21.2e12),
    (10e12, 1.30e28, 216.2e12),
)
APPROACH_2 = (  # iso-FLOP profiles
    (400e6, 1.84e19, 7.7e9),
    (1e9, 1.20e20, 20.0e9),
    (10e9, 1.32e22, 219.5e9),
    (67e9, 6.88e23, 1.7e12),
    (175e9, 4.54e24, 4.3e12),
    (280e9, 1.18e25, 7.1e12),
    (520e9, 4.19e25, 13.4e12),
    (1e12, 1.59e26, 26.5e12),
    (10e12, 1.75e28, 292.0e12),
)


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """k and p of y = k x^p, by least squares on the logarithms.

    >>> k, p = fit_power_law([1, 10, 100], [2, 20, 200])
    >>> round(k, 6), round(p, 6)
    (2.0, 1.0)
    """
    u, v = torch.tensor(x).double().log(), torch.tensor(y).double().log()
    p = ((u - u.mean()) * (v - v.mean())).sum() / (u - u.mean()).square().sum()
    return math.exp(v.mean() - p * u.mean()), p.item()


def fit_scaling_law(
    N: Sequence[float], D: Sequence[float], losses: Sequence[float], delta: float = 1e-3
) -> ScalingLaw:
    """Fit E, A, B, alpha, beta to runs of N parameters, D tokens and their final losses.

    As in the paper (section 3.3, appendix D.3): L-BFGS over (log E, log A, log B, alpha, beta)
    minimises the Huber loss of the differences of logarithms from a grid of initial values; the
    best result is taken. Needs at least 5 runs, of several sizes and lengths (else ValueError).
    """
    if len(losses) < 5:
        raise ValueError(f"{len(losses)} runs cannot determine five constants: give at least 5")
    n, d, target = (torch.tensor(x).double().log() for x in (N, D, losses))
    best, best_error = None, math.inf
    low = target.min().item()
    for e in (low - 1, low - 0.1):
        for alpha in (0.2, 0.4, 0.8):
            for beta in (0.2, 0.4, 0.8):
                # so that each term contributes to the loss of the mean run
                a, b = low - 1 + alpha * n.mean().item(), low - 1 + beta * d.mean().item()
                theta = torch.tensor([e, a, b, alpha, beta], dtype=torch.float64)
                theta.requires_grad_(True)
                error = minimise(theta, n, d, target, delta)
                if error < best_error:
                    best, best_error = theta.detach(), error
    e, a, b, alpha, beta = best.tolist()
    return ScalingLaw(math.exp(e), math.exp(a), math.exp(b), alpha, beta)


def minimise(theta, n, d, target, delta: float) -> float:
    """L-BFGS on theta in place; returns the error reached, inf where it diverged."""
    optimizer = torch.optim.LBFGS([theta], max_iter=150, line_search_fn="strong_wolfe")

    def error():
        optimizer.zero_grad()
        e, a, b, alpha, beta = theta
        terms = torch.stack((a - alpha * n, b - beta * d, e.expand_as(n)))
        loss = F.huber_loss(torch.logsumexp(terms, dim=0), target, delta=delta) / delta**2
        loss.backward()
        return loss

    optimizer.step(error)
    value = error().item()
    return value if math.isfinite(value) else math.inf
