"""bonsai/training/saving.py: which checkpoints are due, under which names, and who writes them."""

import math
import threading
from types import SimpleNamespace

import pytest
import torch

from bonsai.system.errors import UserError
from bonsai.training import saving
from bonsai.training.progress import Progress
from bonsai.training.saving import Saving


@pytest.fixture
def make(monkeypatch, tmp_path):
    """make(step, settings...): a Saving at a step, with the list of names that it has saved."""

    def build(step: int, loss: float = 1.0, **changes):
        defaults = {"save_interval": 0, "always_save_checkpoint": True, "keep_best": False}
        c = SimpleNamespace(**{**defaults, "keep_last": 0, **changes})
        saved, said = [], []
        monkeypatch.setattr(
            saving, "save_checkpoint", lambda folder, state, names, keep_last: saved.append(names)
        )
        monkeypatch.setattr(Saving, "state", lambda self, optimizer_state: {})
        lock = SimpleNamespace(check=lambda: False)
        report = SimpleNamespace(say=said.append, said=said, reopen=lambda: None)
        optimizer = SimpleNamespace(state_dict=dict)
        training = SimpleNamespace(
            is_finite=lambda: math.isfinite(loss),
            optimizer=optimizer,
            optimizer_is_sharded=False,
            updating=False,
        )
        device = torch.device("cpu")
        runtime = SimpleNamespace(
            master=True, world_size=1, device=device, synchronize=lambda: None
        )
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


# ---- who writes them ----


@pytest.fixture
def wrote(monkeypatch):
    """Which thread has written each checkpoint, where one trains on `saving.BACKGROUND`."""
    monkeypatch.setattr(saving, "BACKGROUND", ("cpu",))
    return []


def noting(wrote: list[str], error: Exception | None = None):
    def save(folder, state, names, keep_last):
        wrote.append(threading.current_thread().name)
        if error is not None:
            raise error

    return save


def test_on_a_cpu_training_waits_and_nothing_is_copied(make, monkeypatch):
    made, _ = make(5)
    wrote, states, state = [], [], {"w": torch.ones(1)}
    monkeypatch.setattr(Saving, "state", lambda self, optimizer_state: state)
    monkeypatch.setattr(
        saving,
        "save_checkpoint",
        lambda folder, given, **rest: states.append(given) or noting(wrote)(folder, given, **rest),
    )
    made.save("last.pt")
    assert wrote == [threading.current_thread().name] and states[0] is state


@pytest.mark.parametrize(
    ("save", "thread"),
    [
        (lambda made: made.save("last.pt"), "saving"),
        (lambda made: made.after_evaluation(FINITE, True, False), "saving"),
        # after these nothing is trained that would have to wait
        (lambda made: made.after_evaluation(FINITE, True, True), "MainThread"),
        (lambda made: made.save("last.pt", at_once=True), "MainThread"),
        (lambda made: made.finish(), "MainThread"),
        (lambda made: made.rescue(RuntimeError, RuntimeError(), None), "MainThread"),
    ],
)
def test_a_thread_writes_what_training_would_wait_for(make, wrote, monkeypatch, save, thread):
    made, _ = make(5)
    monkeypatch.setattr(saving, "save_checkpoint", noting(wrote))
    save(made)
    made.finish()
    assert wrote == [thread] and made.saved == 5


def test_only_the_first_process_copies_and_writes(make, wrote, monkeypatch):
    """The others take part in gathering the optimizer's state."""
    made, _ = make(5)
    gathered, made.runtime.master = [], False
    made.training.optimizer.state_dict = lambda: gathered.append(1)
    monkeypatch.setattr(saving, "save_checkpoint", noting(wrote))
    made.save("last.pt")
    assert gathered == [1] and made.saved == 5 and made.writer.thread is None
    made.finish()
    assert wrote == []


@pytest.mark.parametrize("error", [UserError("the disk is full"), OSError("something")])
@pytest.mark.parametrize(
    "meet",
    [
        lambda made: made.check(),
        lambda made: made.save("last.pt"),
        lambda made: made.finish(),
        lambda made: made.rescue(None, None, None),
    ],
)
def test_what_the_thread_could_not_write_ends_the_run(make, wrote, monkeypatch, error, meet):
    made, _ = make(5)
    monkeypatch.setattr(saving, "save_checkpoint", noting(wrote, error))
    made.save("last.pt")
    made.writer.thread.join()
    with pytest.raises(type(error)) as e:
        meet(made)
    assert e.value is error and made.report.said == []
    made.check()  # once


def test_an_error_that_ends_the_run_hides_none_of_the_thread(make, wrote, monkeypatch):
    made, _ = make(5)
    monkeypatch.setattr(saving, "save_checkpoint", noting(wrote, UserError("the disk is full")))
    made.save("last.pt")
    made.start.progress.step = 7
    made.rescue(RuntimeError, RuntimeError(), None)
    assert made.report.said == [f"not saved at step {n}: the disk is full" for n in (5, 7)]
