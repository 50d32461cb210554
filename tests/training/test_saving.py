"""bonsai/training/saving.py: which checkpoints are due, and under which names."""

import math
from types import SimpleNamespace

import pytest

from bonsai.training import saving
from bonsai.training.progress import Progress
from bonsai.training.saving import Saving


@pytest.fixture
def make(monkeypatch, tmp_path):
    """make(step, settings...): a Saving at a step, with the list of names that it has saved."""

    def build(step: int, loss: float = 1.0, **changes):
        defaults = {"save_interval": 0, "always_save_checkpoint": True, "keep_best": False}
        c = SimpleNamespace(**{**defaults, "keep_last": 0, **changes})
        saved, say = [], lambda line: None
        monkeypatch.setattr(
            saving, "save_checkpoint", lambda folder, state, names, keep: saved.append(names)
        )
        monkeypatch.setattr(Saving, "state", lambda self, optimizer_state: {})
        lock = SimpleNamespace(check=lambda: False)
        report = SimpleNamespace(say=say, reopen=lambda: None)
        optimizer = SimpleNamespace(state_dict=dict)
        training = SimpleNamespace(
            is_finite=lambda: math.isfinite(loss),
            optimizer=optimizer,
            optimizer_is_sharded=False,
            updating=False,
        )
        runtime = SimpleNamespace(master=True, world_size=1)
        start = SimpleNamespace(progress=Progress())
        made = Saving(tmp_path, c, runtime, lock, report, start, training)
        start.progress.step = step
        return made, saved

    return build


FINITE = {"train_loss": 1.0, "val_loss": 1.0}


@pytest.mark.parametrize(
    ("step", "settings", "improved", "stops", "names"),
    [
        (0, {}, True, False, []),
        (5, {}, False, False, [("ckpt.pt",)]),
        (5, {"always_save_checkpoint": False}, False, False, []),
        (5, {"always_save_checkpoint": False}, True, False, [("ckpt.pt",)]),
        (5, {"keep_best": True}, True, False, [("ckpt.pt", "best.pt")]),
        (5, {"keep_best": True}, False, True, [("ckpt.pt", "last.pt")]),
        (6, {"save_interval": 3, "keep_last": 2}, False, False, [
            ("ckpt.pt", "last.pt", "step_0000006.pt")
        ]),
        (7, {"save_interval": 3}, False, False, [("ckpt.pt",)]),
    ],
)  # fmt: skip
def test_what_is_saved_after_an_evaluation(make, step, settings, improved, stops, names):
    made, saved = make(step, **settings)
    made.after_evaluation(FINITE, improved, stops)
    assert saved == names and made.saved == (step if names else 0)


def test_what_is_not_finite_replaces_nothing(make):
    made, saved = make(5)
    made.after_evaluation({**FINITE, "val_loss": float("nan")}, False, True)
    made, more = make(5, loss=float("inf"))
    made.save("last.pt")
    assert saved == more == [("diverged.pt",)]


def test_an_error_rescues_what_was_trained_since(make):
    made, saved = make(5)
    made.rescue(None, None, None)
    assert saved == []
    made.training.updating = True  # half of the weights are of the step before
    made.rescue(RuntimeError, RuntimeError(), None)
    assert saved == []
    made.training.updating = False
    made.rescue(RuntimeError, RuntimeError(), None)
    made.rescue(RuntimeError, RuntimeError(), None)  # nothing new since
    assert saved == [("last.pt",)]
