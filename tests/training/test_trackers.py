"""Trackers: each is told the same of a run, goes on with its own after a resume, and ends none."""

import importlib.util
import sys
from pathlib import Path

import pytest

from bonsai.system.errors import UserError
from bonsai.system.runtime import setup
from bonsai.training.report import Report
from bonsai.training.trackers import TRACKERS, TensorBoard, Tracker, Trackio, start_tracker
from configurator import configure

STEP = {"iter": 0, "loss": 2.0, "lr": 1e-3, "grad_norm": 1.0, "ms": 3.0, "tokens_per_s": 100.0}
EVAL = {"iter": 0, "train_loss": 2.0, "val_loss": 2.1, "val_bpb": 3.0, "lr": 1e-3, "mfu": None}
SETTINGS = {"max_iters": 10, "eval_only": False, "wandb_log": False, "tracker": ""}
SETTINGS |= {"wandb_project": "tests", "wandb_run_name": "one"}


def installed(name: str):
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed")


class Told(Tracker):
    """Keeps what it is told; fails at what it is told to."""

    def __init__(self, settings, folder, start, id):
        self.given, self.told, self.id = (start, id), [], id or "new"
        self.fails = settings.get("fails")

    def tell(self, kind, *what):
        if kind == self.fails:
            raise OSError("the cloud is\ngone")
        self.told.append((kind, *what))

    def log(self, values, step):
        self.tell("log", values, step)

    def text(self, name, text, step):
        self.tell("text", name, text, step)

    def picture(self, name, path):
        self.tell("picture", name, path)

    def close(self):
        self.tell("close")


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setitem(TRACKERS, "wandb", Told)


def run_with(settings: dict, folder: Path, start: int = 0, id: str | None = None) -> Told | None:
    """A report's whole life; the tracker."""
    report = Report(folder, SETTINGS | settings, setup("cpu", "float32", False), start, -1)
    report.start_tracker(start, id)
    tracker = report.tracker
    report.evaluation(EVAL)
    report.step(STEP, 0.5)
    report.sample("once <b>upon", 1)
    report.summary(1, 10, 1.0)
    report.close()
    return tracker


@pytest.mark.parametrize("asked", [{"tracker": "wandb"}, {"wandb_log": True}])
def test_what_a_tracker_is_told(told, tmp_path, asked):
    """Steps and evaluations, the latter by nanoGPT's names; samples; the picture at the end."""
    tracker = run_with(asked, tmp_path, 5, "its id")
    assert tracker.given == (5, "its id")
    (_, evaluation, at), (_, step, _), sample, picture, close = tracker.told
    assert at == 0 and close == ("close",)
    assert evaluation == {
        "train/loss": 2.0,
        "val/loss": 2.1,
        "val/bits_per_byte": 3.0,
        "lr": 1e-3,
        "mfu": -1.0,
    }
    assert step == {
        "step/loss": 2.0,
        "step/grad_norm": 1.0,
        "step/ms": 3.0,
        "step/tokens_per_s": 100.0,
        "step/mfu": 50.0,
        "lr": 1e-3,
    }
    assert sample == ("text", "sample", "once <b>upon", 1)
    assert picture == ("picture", "loss curve", tmp_path / "loss.png")


def test_without_one_nothing_is_imported(tmp_path, monkeypatch):
    for name in TRACKERS:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    assert run_with({}, tmp_path) is None


def test_a_tracker_goes_before_wandb_log(told, monkeypatch, tmp_path):
    """config/train_gpt2.py has wandb_log=True, as in nanoGPT."""
    chosen = {"tracker": "trackio", "wandb_log": True}
    monkeypatch.setitem(TRACKERS, "trackio", lambda *_: "trackio's")
    assert start_tracker(SETTINGS | chosen, tmp_path, 0, None) == "trackio's"


@pytest.mark.parametrize("fails", ["log", "text", "picture", "close"])
def test_one_that_fails_ends_no_run(told, tmp_path, capsys, fails):
    run_with({"tracker": "wandb", "fails": fails}, tmp_path)
    said = (tmp_path / "log.txt").read_text()
    assert said.count("the tracker failed (the cloud is gone): going on without") == 1
    assert "1 steps, 10 tokens" in said


@pytest.mark.parametrize("name", TRACKERS)
def test_one_that_is_not_there_is_one_line(tmp_path, monkeypatch, name):
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"^tracker={name} needs {name}: pip install {name}$"):
        start_tracker(SETTINGS | {"tracker": name}, tmp_path, 0, None)


@pytest.mark.parametrize("name", TRACKERS)
def test_one_that_does_not_start_is_one_line(tmp_path, monkeypatch, name):
    def broken(*_):
        raise RuntimeError("api key not configured\nfor many lines")

    monkeypatch.setitem(TRACKERS, name, broken)
    with pytest.raises(UserError) as e:
        start_tracker(SETTINGS | {"tracker": name}, tmp_path, 0, None)
    said = str(e.value)
    assert said.startswith(f"{name} could not start (api key not configured): ")
    assert (
        "--tracker=''" in said and "\n" not in said and ("wandb login" in said) == (name == "wandb")
    )


def test_the_setting_knows_the_trackers():
    known = configure(vars(importlib.import_module("train")), settings={"tracker": "trackio"})
    assert known.tracker == "trackio"
    with pytest.raises(UserError, match="tracker=mlflow is not one of"):
        configure(vars(importlib.import_module("train")), settings={"tracker": "mlflow"})


# ---- the real ones ----


def test_a_look_at_a_run_leaves_its_folder_alone(tmp_path):
    settings = SETTINGS | {"tracker": "tensorboard", "eval_only": True}
    assert start_tracker(settings, tmp_path, 0, "tensorboard") is None
    assert not list(tmp_path.iterdir())


@installed("tensorboard")
def test_tensorboard_goes_on_where_the_checkpoint_was(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_with({"tracker": "tensorboard"}, tmp_path)
    first = TensorBoard(SETTINGS, tmp_path, 0, None)
    for step in range(1, 6):
        first.log({"step/loss": 10.0 - step}, step)
    first.close()
    again = TensorBoard(SETTINGS, tmp_path, 3, "tensorboard")  # steps 3 to 5 were lost
    again.log({"step/loss": 1.0}, 3)
    again.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("step/loss")] == [
        *((0, 2.0), (1, 9.0), (2, 8.0), (3, 1.0))
    ]
    assert events.Images("loss curve") and events.Tags()["tensors"]
    assert "val/loss" in events.Tags()["scalars"]


@installed("trackio")
def test_trackio_finds_its_run_again_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    first = Trackio(SETTINGS, tmp_path, 0, None)
    first.log({"step/loss": 2.0}, 0)
    first.text("sample", "once", 0)
    first.close()
    assert first.id == "one"
    again = Trackio(SETTINGS | {"wandb_run_name": "other"}, tmp_path, 1, first.id)
    again.log({"step/loss": 1.0}, 1)
    again.close()
    assert again.id == "one"
