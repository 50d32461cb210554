"""bonsai/planning/scaling.py: laws whose constants and optima are known, and published tables."""

import random

import pytest

from bonsai.planning.scaling import (
    APPROACH_1,
    APPROACH_2,
    CHINCHILLA,
    ScalingLaw,
    fit_power_law,
    fit_scaling_law,
)
from projects.scaling import scaling


def test_the_published_tables():
    """Golden: the paper's exponents, 0.50 and 0.49 (table 2), out of its tables 3 and A3."""
    for points, a in ((APPROACH_1, 0.50), (APPROACH_2, 0.49)):
        N, C, D = zip(*points)
        assert fit_power_law(C, N)[1] == pytest.approx(a, abs=0.005)
        assert fit_power_law(C, D)[1] == pytest.approx(1 - a, abs=0.005)
        for n, c, d in points:  # the tables are consistent with C = 6 N D
            assert c == pytest.approx(6 * n * d, rel=0.06)
    assert CHINCHILLA.exponent == pytest.approx(0.46, abs=0.01)
    rows = scaling.chinchilla_rows()
    assert rows[0]["per"] == pytest.approx(22.4, abs=0.1)


def test_the_optimum_is_the_minimum():
    for C in (1e18, 1e21, 1e24):
        N, D = CHINCHILLA.optimal(C)
        compute = 6 * N * D
        assert compute == pytest.approx(C)
        best = CHINCHILLA.loss(N, D)
        for factor in (0.8, 0.99, 1.01, 1.25):
            assert CHINCHILLA.loss(N * factor, D / factor) > best
        assert CHINCHILLA.optimal_tokens(N) == pytest.approx(D)


@pytest.mark.parametrize("law", [CHINCHILLA, ScalingLaw(0.8, 30, 90, 0.35, 0.4)])
def test_the_fit_finds_the_constants(law):
    if law is CHINCHILLA:
        fitted = scaling.chinchilla_fit()
    else:
        points = [(n, d) for n in (1e4, 3e4, 1e5, 1e6) for d in (1e5, 1e6, 1e7)]
        fitted = fit_scaling_law(*zip(*points), [law.loss(n, d) for n, d in points])
    for name, value in vars(law).items():
        assert getattr(fitted, name) == pytest.approx(value, rel=0.02), name


def test_one_bad_run_does_not_move_the_fit():
    """What the Huber loss is for."""
    law = ScalingLaw(0.8, 30, 90, 0.35, 0.4)
    points = [(n, d) for n in (1e4, 3e4, 1e5, 3e5, 1e6) for d in (1e5, 3e5, 1e6, 3e6)]
    draw = random.Random(0)
    losses = [law.loss(n, d) * (1 + draw.gauss(0, 1e-4)) for n, d in points]
    losses[7] *= 1.3
    fitted = fit_scaling_law(*zip(*points), losses)
    for C in (1e12, 1e14):
        assert fitted.optimal(C)[0] == pytest.approx(law.optimal(C)[0], rel=0.15)


def test_too_few_runs():
    with pytest.raises(ValueError, match="at least 5"):
        fit_scaling_law([1, 2], [1, 2], [3, 2])
