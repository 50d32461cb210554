"""bonsai/training/schedule.py: the rates against closed forms, and windows that grow."""

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from helpers.settings import SETTINGS

from bonsai.training.schedule import (
    evaluation_due,
    learning_rate_at,
    set_further,
    set_windows,
)
from model import GPT, GPTConfig


def rate(step: int, **changes) -> float:
    return learning_rate_at(step, replace(SETTINGS, **changes))


def test_cosine_is_nanogpts():
    assert rate(0) == pytest.approx(6e-4 / 101)  # never 0
    assert rate(99) == pytest.approx(6e-4 * 100 / 101)
    assert rate(100) == pytest.approx(6e-4)
    assert rate(550) == pytest.approx((6e-4 + 6e-5) / 2)
    assert rate(325) == pytest.approx(6e-5 + 0.5 * (1 + math.cos(math.pi / 4)) * 5.4e-4)
    assert rate(1000) == pytest.approx(6e-5)
    assert rate(1001) == rate(10**9) == 6e-5
    rates = [rate(s) for s in range(1100)]
    assert all(a < b for a, b in pairwise(rates[:101]))
    assert all(a >= b for a, b in pairwise(rates[100:]))


def test_evaluations_are_due_at_the_interval_and_at_the_end():
    c = SimpleNamespace(eval_interval=4, max_iters=10)
    assert [step for step in range(12) if evaluation_due(step, c)] == [0, 4, 8, 10, 11]


def test_constant_without_decay():
    assert {rate(s, decay_lr=False) for s in (0, 50, 100, 5000)} == {6e-4}


def test_trapezoid():
    def at(step):
        return rate(step, lr_schedule="trapezoid")

    assert at(0) == pytest.approx(6e-4 / 101)
    assert at(100) == at(350) == at(600) == pytest.approx(6e-4)
    assert at(601) < 6e-4
    assert at(800) == pytest.approx((6e-4 + 6e-5) / 2)  # linear: half way
    assert at(1000) == pytest.approx(6e-5) and at(1001) == 6e-5


@pytest.mark.parametrize("schedule", ["cosine", "trapezoid"])
def test_odd_lengths_divide_by_nothing(schedule):
    for warmup, length in ((0, 0), (10, 10), (10, 5), (0, 1)):
        for step in range(12):
            value = rate(
                step, lr_schedule=schedule, warmup_iters=warmup, lr_decay_iters=length, cooldown=0.0
            )
            assert 0 < value <= 6e-4 + 1e-12


@pytest.mark.parametrize("step, part", [(0, 4), (4, 4), (5, 2), (8, 2), (9, 1), (100, 1)])
def test_windows_grow_over_the_ramp(step, part):
    """A local layer sees its last 8 positions at the end, a dense one all 16; until then of both a
    part, as if their windows were smaller. Evaluations see all at every step."""
    shape = dict(block_size=16, vocab_size=11, n_layer=2, n_head=2, n_embd=16, position="rope")
    torch.manual_seed(0)
    grown = GPT(GPTConfig(**shape, attention_window=8, window_pattern="LD"))
    narrow = GPT(GPTConfig(**shape))
    narrow.load_state_dict(grown.state_dict())
    for block, window in zip(narrow.transformer.h, (8, 16)):
        block.attn.window = window // part
    idx = torch.randint(11, (2, 16))
    set_windows(grown, step, SimpleNamespace(window_ramp=9))
    torch.testing.assert_close(grown(idx, idx)[0], narrow(idx, idx)[0])
    fixed = GPT(GPTConfig(**shape, attention_window=8, window_pattern="LD"))
    fixed.load_state_dict(grown.state_dict())
    assert torch.equal(grown.eval()(idx, idx)[0], fixed.eval()(idx, idx)[0])


def test_windows_without_a_ramp_are_whole():
    model = GPT(GPTConfig(block_size=16, vocab_size=11, n_layer=1, n_head=2, n_embd=16))
    before = model(torch.arange(11)[None])[0]
    set_windows(model, 0, SimpleNamespace(window_ramp=0))
    assert torch.equal(model(torch.arange(11)[None])[0], before)


def test_the_second_loss_falls_to_nothing():
    model = GPT(GPTConfig(block_size=16, vocab_size=11, n_layer=1, n_head=2, n_embd=16))
    set_further(model, 0, SimpleNamespace(further_weight=0.0))
    assert model.further is None
    c, weights = SimpleNamespace(further_weight=0.6, lr_decay_iters=12), []
    for step in range(12):
        set_further(model, step, c)
        weights.append(model.further.item())
    assert weights[:3] == pytest.approx([0.6, 0.525, 0.45])
    assert weights[7] > 0 and weights[8:] == [0.0] * 4
    assert "further" not in model.state_dict()
