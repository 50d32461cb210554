"""bonsai/training/progress.py: how far a run is, in memory and in its checkpoints."""

import math

import torch

from bonsai.training.progress import Progress


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
