"""projects/adder: the rows, their masks, a small run that learns, and the mistakes."""

import sys

import numpy as np
import pytest
import torch
from helpers.programs import ROOT, assert_one_line_error, run_command
from helpers.settings import settings

from bonsai.data.dataset import open_dataset
from bonsai.engine import SamplingParams, generate
from bonsai.models.loading import load_model
from projects.adder import adder

SCRIPT = str(ROOT / "projects" / "adder" / "adder.py")


def script(cwd, *options):
    return run_command([sys.executable, SCRIPT, *options], cwd, timeout=600)


def test_a_row_is_a_sum_with_its_answer_backwards():
    rows = adder.sums(2)
    assert rows.shape == (10_000, 7)
    assert rows[8550].tolist() == [8, 5, 5, 0, 5, 3, 1]  # 85 + 50 = 135
    assert rows[5545].tolist() == [5, 5, 4, 5, 0, 0, 1]
    for n in (1, 2, 3):
        rows = adder.sums(n)
        powers = 10 ** np.arange(n)
        a, b = rows[:, :n] @ powers[::-1], rows[:, n : 2 * n] @ powers[::-1]
        assert (rows[:, 2 * n :] @ 10 ** np.arange(n + 1) == a + b).all()
        assert len(set(map(tuple, rows[:, : 2 * n]))) == 100**n


def test_a_row_to_sort():
    rows = adder.sortings(6, 3)
    assert rows.shape == (729, 12) and rows[-3].tolist() == [2, 2, 2, 2, 2, 0, 0, 2, 2, 2, 2, 2]


def test_the_loss_counts_the_answer_only(tmp_path):
    rows = adder.sums(2)[:100]
    held = np.arange(100) % 5 == 0
    adder.prepare(tmp_path / "data", rows, 4, held)
    data = open_dataset(str(tmp_path / "data"))
    assert (data.vocab_size, data.meta["row_length"]) == (10, 7)
    val = data.split("val")
    x, y = val.windows(val.eval_starts(6), 6)
    assert (x == rows[held][:, :-1]).all()  # windows start at row borders
    assert (y[:, :3] == -1).all() and (y[:, 3:] == rows[held][:, 4:]).all()


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """One digit: 100 sums, 160 steps, a few seconds."""
    folder = tmp_path_factory.mktemp("adder")
    options = ["--digits=1", "--held_out=10", "--steps=160", "--batch_size=90"]
    return folder, script(folder, *options)


def test_one_digit_is_learnt(learnt):
    """The golden number of the small version; two digits are the default run of the script."""
    folder, done = learnt
    assert done.rc == 0, done
    assert "trained on: 90 of 90 right (100.00%)" in done.stdout
    assert "of 10 right" in done.stdout
    assert (folder / "out-adder-add1" / "add1.png").stat().st_size > 5000
    again = script(folder, "--digits=1", "--held_out=10", "--steps=160", "--batch_size=90")
    assert again.rc == 0 and "not trained again" in again.stdout, again


def test_it_answers(learnt):
    done = script(learnt[0], "--digits=1", "--ask=4+7")
    assert done.rc == 0 and "4+7 = 11" in done.stdout, done


def test_right_is_what_greedy_sampling_says(learnt):
    """One pass over whole rows judges as token by token does, right and wrong answers alike."""
    paths = sorted((learnt[0] / "out-adder-add1" / "run").glob("step_*.pt"))
    assert len(paths) == 10
    rows = adder.sums(1)
    models = (load_model(str(path), learnt[0]).model for path in paths)  # the less learnt first
    model = next(m for m in models if 0 < adder.right(m, rows, 2).sum() < 100)
    said = []
    for row in rows:
        params = SamplingParams(max_new_tokens=2, temperature=0)
        ids = [t[0] for t in generate(model, row[:2].tolist(), params)]
        said.append(ids == row[2:].tolist())
    right = adder.right(model, rows, 2)
    assert right.tolist() == said


@pytest.mark.slow
def test_two_digits_to_the_last_sum(tmp_path):
    done = script(tmp_path)
    assert "trained on: 9,500 of 9,500 right" in done.stdout, done
    assert "held out: 500 of 500 right" in done.stdout and "55+45 = 100" in done.stdout


@pytest.mark.parametrize(
    "options, hint",
    [
        (["--task=multiply"], "add, sort"),
        (["--digits=4"], "from 1 to 3"),
        (["--task=sort", "--length=30"], "million cases"),
        (["--digits=1", "--held_out=100"], "some must be held out"),
        (["--ask=55+45"], "no checkpoint"),
    ],
)
def test_mistakes_are_one_line(tmp_path, options, hint):
    assert_one_line_error(script(tmp_path, *options), hint)


@pytest.mark.parametrize("task, text", [("add", "5+x"), ("add", "555+1"), ("sort", "219210")])
def test_a_question_outside_the_task(task, text):
    c = settings("projects/adder/adder.py", [f"--task={task}"])
    with pytest.raises(adder.UserError, match=r"ask="):
        adder.answer(c, torch.nn.Linear(1, 1), text)
