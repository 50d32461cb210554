"""report.py: a run's files, also after a kill and a resume; nothing from other ranks."""

import json
import time
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
from helpers.programs import metrics

from bonsai.system.errors import UserError
from bonsai.system.runtime import setup
from bonsai.training.progress import Meter, Progress
from bonsai.training.report import Report, plot_loss

STEP = {"loss": 2.0, "lr": 1e-3, "grad_norm": 1.0, "ms": 3.0, "tokens_per_s": 100.0}
EVAL = {"train_loss": 2.0, "val_loss": 2.1, "val_bpb": 3.0, "lr": 1e-3, "mfu": None}
SETTINGS = {"max_iters": 10, "wandb_log": False, "tracker": "", "eval_only": False}


@pytest.fixture
def runtime():
    return setup("cpu", "float32", False)


def test_the_lines_and_the_files(tmp_path, capsys, runtime):
    report = Report(tmp_path, SETTINGS, runtime, 0, -1)
    report.evaluation({"iter": 0, **EVAL})
    report.step({"iter": 0, **STEP}, None)
    report.step({"iter": 1, **STEP}, 0.123)
    report.plot()
    report.close()
    assert capsys.readouterr().out.splitlines() == [
        "step 0: train loss 2.0000, val loss 2.1000, 3.0000 bits per byte",
        "iter 0: loss 2.0000, time 3.00ms, mfu n/a",
        "iter 1: loss 2.0000, time 3.00ms, mfu 12.30%",
    ]
    assert [r["iter"] for r in metrics(tmp_path)] == [0, 0, 1]
    assert json.loads((tmp_path / "config.json").read_text()) == SETTINGS
    assert (tmp_path / "loss.png").stat().st_size > 5000
    assert "iter 1: loss" in (tmp_path / "log.txt").read_text()


def test_a_metric_of_ones_own_is_shown_and_tracked(tmp_path, capsys, runtime):
    """Whatever else train.py's `evaluate` returns, such as an accuracy."""
    logged = []
    report = Report(tmp_path, SETTINGS, runtime, 0, -1)
    report.tracker = SimpleNamespace(log=lambda values, step: logged.append(values))
    # all that a row of ours has
    meter = SimpleNamespace(progress=Progress(step=5, tokens=10), mfu=None)
    losses = {"train_loss": 2.0, "val_loss": 2.1, "val_bpb": None}
    report.evaluation(Meter.evaluation_row(meter, 1e-3, losses))
    more = {**losses, "accuracy": 0.25, "never": None}
    report.evaluation(Meter.evaluation_row(meter, 1e-3, more))
    report.tracker = None
    report.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 5: train loss 2.0000, val loss 2.1000"
    assert lines[1] == f"{lines[0]}, accuracy 0.2500"
    assert "accuracy" in metrics(tmp_path)[1] and logged[1] == logged[0] | {"val/accuracy": 0.25}


def test_names_that_are_not_utf8(tmp_path, runtime, monkeypatch):
    """A file system takes any bytes, and so does a run whose command has them."""
    monkeypatch.setattr("sys.argv", ["train.py", "--out_dir=caf\udce9"])
    settings = {**SETTINGS, "out_dir": "caf\udce9"}
    report = Report(tmp_path, settings, runtime, 0, -1)
    report.say("saving to caf\udce9")
    report.close()
    assert json.loads((tmp_path / "config.json").read_text()) == settings
    assert r"saving to caf\udce9" in (tmp_path / "log.txt").read_text()


def test_a_step_that_was_skipped_is_said(tmp_path, capsys, runtime):
    report = Report(tmp_path, SETTINGS, runtime, 0, -1)
    report.step({"iter": 4, **STEP, "skipped": 2}, None)
    report.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "iter 4 skipped: gradient not finite (2 in a row)"
    assert lines[1].startswith("iter 4: loss") and metrics(tmp_path)[0]["skipped"] == 2


def test_other_ranks_are_silent(tmp_path, capsys, runtime):
    report = Report(tmp_path / "out", SETTINGS, replace(runtime, rank=1), 0, -1)
    report.say("hello")
    report.step({"iter": 0, **STEP}, None)
    report.evaluation({"iter": 0, **EVAL})
    report.plot()
    report.close()
    assert capsys.readouterr().out == "" and not (tmp_path / "out").exists()


def test_a_picture_that_fails_costs_no_run(tmp_path, capsys, runtime, monkeypatch):
    report = Report(tmp_path, SETTINGS, runtime, 0, -1)

    def fail(folder):
        raise OSError("no fonts")

    monkeypatch.setattr("bonsai.training.report.plot_loss", fail)
    report.plot()
    report.close()
    assert "could not draw" in capsys.readouterr().out


@pytest.mark.parametrize("takes, pause", [(0.2, 60), (12, 1200)])
def test_drawing_takes_little_of_the_time(tmp_path, runtime, monkeypatch, takes, pause):
    """In a run of a million rows a picture takes twelve seconds. Evaluated every second."""
    now, drawn = [0.0], []

    def draw(folder):
        drawn.append(now[0])
        now[0] += takes

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr("bonsai.training.report.plot_loss", draw)
    report = Report(tmp_path, SETTINGS, runtime, 0, -1)
    while len(drawn) < 3:
        now[0] += 1
        report.evaluation({"iter": 0, **EVAL})
    report.close()
    assert drawn[0] == 61
    assert all(pause < b - a - takes <= pause + 1 for a, b in pairwise(drawn))


def test_pictures_of_little(tmp_path):
    """Nothing yet, one evaluation, a loss that is not finite."""
    for rows in ([], [{"iter": 0, **EVAL}], [{"iter": i, **STEP, "loss": 1.0} for i in range(2)]):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        assert plot_loss(tmp_path).stat().st_size > 1000
    (tmp_path / "metrics.jsonl").write_text('{"iter": 0, "loss": NaN}\n{"iter": 1, "loss": 2}\n')
    plot_loss(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path, runtime):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="out_dir"):
        Report(tmp_path / "file", SETTINGS, runtime, 0, -1)
