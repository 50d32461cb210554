"""bonsai/training/progress.py: how far a run is, in memory and in its checkpoints; its speed."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_model import tiny

from bonsai.system import stopwatch
from bonsai.system.runtime import setup
from bonsai.system.stopwatch import Stopwatch
from bonsai.training import progress as module
from bonsai.training.progress import Meter, Progress


def test_what_is_saved_comes_back():
    progress = Progress(7, 700, 1.5, 2.25, 5, 1)
    state = {"iter_num": 7, "best_val_loss": torch.tensor(2.0), "progress": progress.to_dict()}
    assert Progress.of(state) == progress  # best_val_loss in double precision
    keys = {"tokens", "seconds", "best_val_loss", "evaluated", "bad_evals"}
    assert state["progress"].keys() == keys


def test_of_nanogpts_checkpoint_and_of_an_older_one():
    theirs = {"iter_num": 7, "best_val_loss": torch.tensor(2.0)}
    assert Progress.of(theirs) == Progress(step=7, best_val_loss=2.0)
    older = {**theirs, "progress": {"evaluated": 5, "bad_evals": 1, "seconds": 1.5}}
    assert Progress.of(older) == Progress(7, None, 1.5, 2.0, 5, 1)


def test_evaluations_without_improvement_are_counted():
    progress = Progress(step=3)
    assert progress.evaluate(2.0) and not progress.evaluate(2.0) and not progress.evaluate(math.nan)
    assert (progress.best_val_loss, progress.bad_evals, progress.evaluated) == (2.0, 2, 3)
    assert progress.evaluate(1.0) and progress.bad_evals == 0
    progress.forget_evaluations()
    assert progress == Progress(step=3)


class Seconds:
    """In place of the module time: a clock that goes when it is told to."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def seconds(monkeypatch):
    clock = Seconds()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(stopwatch, "time", clock)
    return clock


def a_step(**values) -> SimpleNamespace:
    """What a Meter reads of a TrainingStep whose step is done."""
    scaler = SimpleNamespace(is_enabled=lambda: False)
    measured = {"loss": torch.tensor(2.0), "norm": torch.tensor(0.5), "skipped": torch.tensor(0.0)}
    runtime, model = setup("cpu", "float32", False), tiny()
    parts = dict(scaler=scaler, model=model, runtime=runtime)
    return SimpleNamespace(**{**parts, **measured, **values})


def test_the_row_of_a_step_counts_from_the_one_logged_before(seconds):
    progress = Progress(step=5, tokens=500, seconds=7.0)
    meter = Meter(progress, a_step())
    progress.step, progress.tokens = 7, 700
    seconds.now += 1.0
    with meter.paused():
        seconds.now += 1000.0
    seconds.now += 1.0
    row = meter.step_row(0.1)
    assert list(row) == ["iter", "loss", "lr", "grad_norm", "ms", "tokens_per_s"]
    assert list(row.values()) == [6, 2.0, 0.1, 0.5, 1000.0, 100.0]
    assert progress.seconds == 9.0 and meter.mfu is None
    progress.step, progress.tokens = 8, 800
    seconds.now += 4.0
    assert meter.step_row(0.1)["ms"] == 4000.0 and progress.seconds == 13.0


def test_a_row_says_what_is_not_as_it_should_be():
    scaler = SimpleNamespace(is_enabled=lambda: True, get_scale=lambda: 512.0)
    progress = Progress(step=0, tokens=0)
    meter = Meter(progress, a_step(scaler=scaler, skipped=torch.tensor(3.0)))
    progress.step, progress.tokens = 1, 100
    row = meter.step_row(0.1)
    assert (row["loss_scale"], row["skipped"]) == (512.0, 3)


def test_the_share_of_a_known_peak(seconds):
    progress = Progress(step=0, tokens=0, evaluated=0)
    meter = Meter(progress, a_step())
    meter.peak = 10.0 * meter.flops_per_token
    progress.step, progress.tokens = 1, 20
    seconds.now += 4.0
    meter.step_row(0.1)
    assert meter.mfu == pytest.approx(0.5)
    row = meter.evaluation_row(0.2, {"train_loss": 1.0, "val_loss": 1.5, "val_bpb": None})
    losses = ["train_loss", "val_loss", "val_bpb"]
    assert list(row) == ["iter", *losses, "lr", "mfu", "tokens", "seconds"]
    assert list(row.values()) == [1, 1.0, 1.5, None, 0.2, meter.mfu, 20, 4.0]
    progress.forget_evaluations()
    assert meter.evaluation_row(0.2, {"val_loss": 1.5})["other_data"] == 1


def test_at_the_end_the_steps_that_were_not_logged_count(seconds):
    progress = Progress(step=0, tokens=0)
    meter = Meter(progress, a_step())
    seconds.now += 1.0
    meter.stop()
    assert progress.seconds == 0.0  # no step in it
    progress.step = 1
    meter.stop()
    assert progress.seconds == 1.0


@pytest.mark.parametrize("compile", [False, True])
def test_the_parts_before_the_first_step_are_said_once(seconds, compile):
    meter = Meter(Progress(step=0, tokens=0), a_step(), Stopwatch())
    meter.runtime = SimpleNamespace(compile=compile, synchronize=lambda: None)
    with meter.paused():
        seconds.now += 1.0
    seconds.now += 2.0
    more = "compile and " if compile else ""
    want = f"first step done after 3.0 s ({more}evaluation 1.0, {more}first step 2.0)"
    assert [meter.first_step(), meter.first_step()] == [want, ""]
    with meter.paused():
        pass  # a later evaluation
