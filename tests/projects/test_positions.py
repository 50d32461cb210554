"""projects/positions: longer contexts of the same model, the formula, a small sweep."""

import json
import math
import sys

import pytest
import torch
from helpers.programs import ROOT, assert_one_line_error, run_command

from bonsai.data.dataset import open_dataset
from bonsai.evaluation.loss import split_loss
from bonsai.system.runtime import setup
from model import GPT, GPTConfig, sinusoids
from projects.common import loss_by_position
from projects.positions import positions

SCRIPT = str(ROOT / "projects" / "positions" / "positions.py")
SMALL = dict(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=30)


def test_the_formula_of_2017():
    """Channel 2i is sin(p / 10000^(2i/d)), 2i + 1 its cosine."""
    vectors = sinusoids(torch.arange(50), 32)
    for p, channel in ((0, 0), (0, 1), (7, 4), (49, 31), (23, 30)):
        angle = p / 10000 ** (2 * (channel // 2) / 32)
        number = math.cos(angle) if channel % 2 else math.sin(angle)
        assert vectors[p, channel].item() == pytest.approx(number, abs=1e-5)
    i = torch.arange(0, 32, 2)
    turn = 3 / 10000 ** (i / 32)  # position p + 3 is position p turned by a fixed angle
    a, b = vectors[20, 0::2], vectors[20, 1::2]
    assert torch.allclose(vectors[23, 0::2], a * turn.cos() + b * turn.sin(), atol=1e-5)
    assert math.isclose(vectors[9].norm().item(), math.sqrt(16), rel_tol=1e-5)


@pytest.mark.parametrize("kind", ["learned", "sinusoidal", "rope", "none"])
def test_a_lengthened_model_is_the_same_model(kind):
    model = GPT(GPTConfig(**SMALL, position=kind)).eval()
    longer = positions.lengthened(model, 48).eval()
    idx = torch.randint(30, (2, 48))
    assert torch.allclose(
        model(idx[:, :16], idx[:, :16])[0], longer(idx, idx)[0][:, :16], atol=1e-5
    )
    assert longer.config.block_size == 48 and model.config.block_size == 16


def test_loss_by_position_has_the_mean_of_the_evaluation(workplace):
    model = GPT(GPTConfig(**SMALL))
    split = open_dataset(str(workplace / "data" / "meta")).split("val")
    losses = loss_by_position(model, split, 16, 10**6)
    whole, _ = split_loss(model, split, setup("cpu", "float32", False), 16, 8)
    assert losses.shape == (16,)
    assert losses.mean().item() == pytest.approx(whole, abs=2e-3)  # less its last, short window


def test_the_script(workplace, tmp_path):
    """Golden, at toy size: learned positions fail beyond the trained length, none do not."""
    more = "--n_layer=1 --n_head=2 --n_embd=32 --batch_size=8 --device=cpu --dtype=float32"
    options = ["--dataset=meta", "--kinds=learned,none", "--steps=150", "--block_size=16"]
    options += ["--windows=64", f"--options={more}", f"--out_dir={tmp_path}"]
    done = run_command([sys.executable, SCRIPT, *options], workplace, timeout=600)
    assert done.rc == 0, done
    losses = json.loads((tmp_path / "positions.json").read_text())["losses"]
    assert set(losses) == {"learned", "none"} and len(losses["none"]) == 64

    def rise(kind):
        inside, beyond = losses[kind][4:16], losses[kind][16:]
        return sum(beyond) / len(beyond) - sum(inside) / len(inside)

    assert rise("learned") > 0.1 > rise("none")
    assert (tmp_path / "positions.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "options, hint",
    [
        (["--kinds=learned,guessed"], "sinusoidal"),
        (["--times=0"], "at least 1"),
        (["--dataset=meta", "--times=9999"], "too few for a window"),
    ],
)
def test_mistakes_are_one_line(workplace, options, hint):
    assert_one_line_error(run_command([sys.executable, SCRIPT, *options], workplace), hint)
