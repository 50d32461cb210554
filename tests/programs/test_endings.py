"""However a run ends, it saves or says so; and train.main leaves its process as it was.

Most runs here are calls of train.main in this process, to which something happens at a step.
"""

import importlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from helpers.programs import (
    ROOT,
    TINY,
    differences,
    environment,
    load,
    losses,
    metrics,
    snapshot,
)

from bonsai.engine import text
from bonsai.evaluation import loss as evals
from bonsai.system import errors
from bonsai.system.errors import UserError
from bonsai.training import background, interrupts, saving
from bonsai.training.background import BackgroundWriter
from bonsai.training.report import Report
from bonsai.training.step import TrainingStep

train = importlib.import_module("train")
needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
SMALL = {"n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": 16, "dropout": 0.0}
SMALL |= {"batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 1e-3}
SMALL |= {"warmup_iters": 0, "eval_iters": 1, "eval_interval": 1000, "max_iters": 8}
SMALL |= {"device": "cpu", "dtype": "float32", "compile": False, "dataset": "meta"}


@pytest.fixture(autouse=True)
def here(workplace, monkeypatch):
    monkeypatch.chdir(workplace)


def run(out: Path, **changes) -> int:
    return train.main(**{**SMALL, "out_dir": str(out), **changes})


@pytest.fixture
def at_step(monkeypatch):
    """at_step(n, event): call it when step n has been logged."""

    def install(n: int, event) -> None:
        step = Report.step

        def logged(self, row, mfu):
            step(self, row, mfu)
            if row["iter"] == n:
                event()

        monkeypatch.setattr(Report, "step", logged)

    return install


def send(name: str):
    return lambda: os.kill(os.getpid(), getattr(signal, name))


@pytest.fixture
def meanwhile(monkeypatch):
    """meanwhile(): from here on a thread writes checkpoints, as on a GPU, each as late as can be:
    when the next one, or the end, waits for it. Returns a list of (step of the checkpoint, steps
    that were logged when it was written), which grows."""

    def switch() -> list[tuple[int, int]]:
        write, wait, written = saving.save_checkpoint, BackgroundWriter.wait, []
        begin = defaultdict(threading.Event)  # by thread

        def save(folder, state, names, keep_last):
            thread = threading.current_thread()
            assert thread.name != "saving" or begin[thread].wait(60)
            logged = len(losses(folder)) if (folder / "metrics.jsonl").exists() else -1
            written.append((state["iter_num"], logged))
            write(folder, state, names, keep_last)

        def waiting(self):
            begin[self.thread].set()
            wait(self)

        monkeypatch.setattr(saving, "BACKGROUND", ("cpu",))
        monkeypatch.setattr(saving, "save_checkpoint", save)
        monkeypatch.setattr(BackgroundWriter, "wait", waiting)
        return written

    return switch


@pytest.fixture(params=["in between", "meanwhile"])
def written(request, meanwhile) -> str:
    """How checkpoints are written, so that a test is made of both."""
    if request.param == "meanwhile":
        meanwhile()
    return request.param


# ---- signals ----


@needs_posix
def test_before_the_first_step_there_is_nothing_to_go_on_from(out, capfd, monkeypatch):
    """As in the first evaluation, for which a GPU's model is compiled."""
    evaluate = train.evaluate

    def told_to_stop(*given):
        signal.raise_signal(signal.SIGINT)
        return evaluate(*given)

    monkeypatch.setattr(train, "evaluate", told_to_stop)
    assert run(out) == 130 and not (out / "last.pt").exists()
    said = capfd.readouterr().out
    assert "stopped at step 0" in said and "--init_from=resume" not in said


@needs_posix
@pytest.mark.parametrize("name, status", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_saves_and_is_given_back(out, capfd, at_step, name, status, written):
    """And what is printed counts the steps that were made."""
    before = [signal.getsignal(getattr(signal, n)) for n in ("SIGINT", "SIGTERM", "SIGHUP")]
    at_step(4, send(name))
    assert run(out, max_iters=1000) == status
    assert load(out / "last.pt")["iter_num"] == 5 and len(losses(out)) == 5
    said = capfd.readouterr()
    assert f"{name}: finishing this step, then saving" in said.err
    assert "\n5 steps, 160 tokens, " in said.out and "at step 0;" in said.out
    assert "stopped at step 5" in said.out and "--init_from=resume" in said.out
    assert [signal.getsignal(getattr(signal, n)) for n in ("SIGINT", "SIGTERM", "SIGHUP")] == before
    assert run(out, init_from="auto") == 0 and load(out / "last.pt")["iter_num"] == 8


@needs_posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_the_same_signal_from_two_senders_is_one(out, at_step, name):
    """Of a terminal and its shell, of a cluster and torchrun: the second one ends nothing."""

    def twice():
        send(name)()
        send(name)()

    at_step(2, twice)
    assert run(out) > 128 and load(out / "last.pt")["iter_num"] == 3


@needs_posix
def test_nohup_goes_on(out, at_step):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(2, send("SIGHUP"))
        assert run(out) == 0 and load(out / "last.pt")["iter_num"] == 8
    finally:
        signal.signal(signal.SIGHUP, before)


@needs_posix
@pytest.mark.parametrize("patience, done", [(-1.0, 3), (60.0, 4)])
def test_a_step_that_takes_long_is_made_anew(out, monkeypatch, patience, done):
    """Of a large model on a CPU it takes minutes; the run that goes on has lost nothing."""
    cut, calls, backward = {"gradient_accumulation_steps": 4}, [], TrainingStep.backward

    def counted(self, *batch, **how):
        backward(self, *batch, **how)
        calls.append(self)
        if len(calls) == 4 * 3 + 2:  # the second micro-batch of the fourth step
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainingStep, "backward", counted)
    monkeypatch.setattr(interrupts, "PATIENCE", patience)
    assert run(out / "parts", **cut) == 143
    assert len(calls) == (14 if patience < 0 else 16)
    assert load(out / "parts" / "last.pt")["iter_num"] == done == len(losses(out / "parts"))
    assert run(out / "parts", init_from="resume", **cut) == 0 == run(out / "whole", **cut)
    assert losses(out / "parts") == losses(out / "whole")


@needs_posix
@pytest.mark.parametrize("eval_only", [False, True])
def test_a_long_evaluation_stops_between_batches(out, monkeypatch, capfd, eval_only):
    """It is not reported as one, and the run that goes on makes it anew."""
    calls, windows = [], evals.Split.windows

    def counted(self, *args):
        if sys._getframe(1).f_code.co_name == "split_loss":
            calls.append(self)
            if len(calls) == 9:
                os.kill(os.getpid(), signal.SIGTERM)
        return windows(self, *args)

    if eval_only:
        assert run(out) == 0
    monkeypatch.setattr(evals.Split, "windows", counted)
    source = {"eval_only": True, "init_from": "resume"} if eval_only else {"eval_interval": 3}
    status = run(out, eval_iters=3 if not eval_only else 200, **source)
    assert status == 143 and len(calls) == 9
    monkeypatch.undo()
    if not eval_only:  # 6 batches at step 0; the signal came in the middle of those at step 3
        state = load(out / "last.pt")
        assert state["iter_num"] == 3 and state["progress"]["evaluated"] == 0
        assert [r["iter"] for r in metrics(out) if "val_loss" in r] == [0]
    assert "stopped at step" in capfd.readouterr().out


@needs_posix
def test_a_long_sample_stops_between_tokens(out, monkeypatch):
    tokens, made = [], text.generate

    def counted(*args):
        for token in made(*args):
            tokens.append(token)
            if len(tokens) == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield token

    monkeypatch.setattr(text, "generate", counted)
    assert run(out, sample_interval=3) == 143
    assert len(tokens) <= 6 and load(out / "last.pt")["iter_num"] == 4


def test_in_a_thread(out):
    """Where Python lets nobody take a signal, as in some notebooks and servers."""
    status = []
    thread = threading.Thread(target=lambda: status.append(run(out, max_iters=3)))
    thread.start()
    thread.join()
    assert status == [0] and load(out / "last.pt")["iter_num"] == 3


def test_without_files_behind_the_console(out, monkeypatch):
    """sys.stdout and sys.stderr of a notebook have no number."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert run(out, max_iters=3) == 0


# ---- the console ----


class Broken(io.TextIOBase):
    """A console to which nothing can be written after a while."""

    def __init__(self, lines: int, error: Exception):
        self.lines, self.error, self.text = lines, error, ""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        if self.text.count("\n") >= self.lines:
            raise self.error
        self.text += text
        return len(text)


@pytest.mark.parametrize("error", [BrokenPipeError(32, "pipe"), OSError(5, "input/output")])
def test_a_console_that_has_gone_stops_the_run_with_a_save(out, capfd, monkeypatch, error):
    monkeypatch.setattr(sys, "stdout", Broken(12, error))
    assert run(out, max_iters=1000) == 141
    step = load(out / "last.pt")["iter_num"]
    assert 0 < step < 20
    err = capfd.readouterr().err
    assert "stdout is closed: finishing this step, then saving" in err
    assert f"stopped at step {step}" in err and f"stopped at step {step}" in (
        out / "log.txt"
    ).read_text(encoding="utf-8")


@needs_posix
def test_head_takes_the_lines_that_it_wants(workplace, out):
    settings = " ".join([*TINY, "--dataset=meta", f"--out_dir={out}", "--max_iters=100000"])
    command = f"{sys.executable} {ROOT / 'train.py'} {settings} | head -15; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=workplace, env=environment(), capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "141", done
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr
    assert f"stopped at step {load(out / 'last.pt')['iter_num']}" in done.stderr


def test_a_sample_that_the_console_cannot_print(out, monkeypatch):
    """Escapes in ASCII; the log has the characters."""
    monkeypatch.setattr(train, "sample_text", lambda *args, **options: "漢字 λ 😀")
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    assert run(out, sample_interval=2) == 0
    console.flush()
    assert b"\\u6f22\\u5b57 \\u03bb \\U0001f600" in console.buffer.getvalue()
    assert "漢字 λ 😀" in (out / "log.txt").read_text(encoding="utf-8")


# ---- errors in the middle ----


@pytest.mark.parametrize("kind", [UserError, RuntimeError, OSError, KeyboardInterrupt])
def test_an_error_in_the_loop_saves_first(out, capfd, at_step, kind, written):
    def fail():
        raise kind("something")

    at_step(4, fail)
    with pytest.raises(kind):
        run(out)
    assert load(out / "last.pt")["iter_num"] == 5
    assert "saved at step 5" in capfd.readouterr().out
    assert not (out / "run.lock").exists()


def test_an_error_in_the_middle_of_an_update_saves_nothing(out, monkeypatch):
    """Half of the weights would be of the step before."""

    def fail(self, *args):
        raise RuntimeError("in the optimizer")

    monkeypatch.setattr(torch.amp.GradScaler, "step", fail)
    with pytest.raises(RuntimeError):
        run(out)
    assert not list(out.glob("*.pt"))


def test_a_full_disk_that_has_room_again(out, capfd, monkeypatch):
    """What could not be logged ends no run, and comes later."""

    class Full:
        def __init__(self, file):
            self.file, self.name, self.kept, self.full = file, file.name, "", True

        def write(self, text):
            self.kept += text

        def flush(self):
            if self.full:
                raise OSError(28, "No space left on device")
            self.file.write(self.kept)
            self.kept = ""
            self.file.flush()

        def __getattr__(self, name):
            return getattr(self.file, name)

    opened, files = Report._open, []

    def full(self):
        opened(self)
        self.metrics = Full(self.metrics)
        files.append(self.metrics)

    step = Report.step

    def logged(self, row, mfu):
        files[0].full = row["iter"] < 5
        step(self, row, mfu)

    monkeypatch.setattr(Report, "_open", full)
    monkeypatch.setattr(Report, "step", logged)
    assert run(out) == 0
    assert [i for i, _ in losses(out)] == list(range(8))
    said = capfd.readouterr().out
    assert said.count("cannot write") == 1 and "No space left" in said


# ---- the folder ----


def test_a_folder_that_was_removed_is_made_anew(out, capfd, at_step):
    at_step(4, lambda: shutil.rmtree(out))
    assert run(out, save_interval=2) == 0
    assert f"{out} was removed" in capfd.readouterr().out
    assert load(out / "last.pt")["iter_num"] == 8
    assert [i for i, _ in losses(out)][-2:] == [6, 7]
    assert json.loads((out / "config.json").read_text())["n_embd"] == 16


def test_a_folder_that_cannot_be_made_anew(out, at_step, written):
    """The message says what is true: nothing is left there."""

    def replace():
        shutil.rmtree(out)
        out.write_text("a file")

    at_step(4, replace)
    with pytest.raises(UserError) as e:
        run(out, save_interval=5)
    assert "intact" not in str(e.value) and str(out) in str(e.value)


def test_a_full_disk_names_what_is_intact(out, at_step, monkeypatch):
    def full():
        def save(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", save)

    at_step(5, full)
    with pytest.raises(UserError, match=r"No space left on device.*intact there: last\.pt"):
        run(out, save_interval=4)
    assert load(out / "last.pt")["iter_num"] == 4


def test_two_runs_in_one_folder(out, at_step):
    """The second one is told so and changes nothing; an evaluation may look."""
    seen = []

    def second():
        before = snapshot(out)
        for init_from in ("scratch", "resume"):
            with pytest.raises(UserError, match=f"process {os.getpid()} on"):
                run(out, init_from=init_from)
        assert snapshot(out) == before
        seen.append(run(out, init_from="resume", eval_only=True))

    at_step(4, second)
    assert run(out, save_interval=2) == 0 and seen == [0]
    assert load(out / "last.pt")["iter_num"] == 8


def test_a_run_that_was_replaced_stops_and_overwrites_nothing(out, at_step, written):
    def replaced():
        (out / "run.lock").write_text('{"pid": 1, "host": "h", "since": "s", "token": "other"}')

    at_step(4, replaced)
    with pytest.raises(UserError, match="taken over by another run"):
        run(out, save_interval=2)
    assert load(out / "last.pt")["iter_num"] == 4
    assert (out / "run.lock").exists()


@needs_posix
@pytest.mark.parametrize("init_from", ["scratch", "resume", "auto"])
@pytest.mark.parametrize(
    "name", ["run.lock", "log.txt", "config.json", "metrics.jsonl", "loss.png"]
)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(out, name, init_from):
    """To open one waits until somebody reads it, for ever."""
    if init_from != "scratch":
        assert run(out, max_iters=1) == 0
    out.mkdir(exist_ok=True)
    (out / name).unlink(missing_ok=True)
    os.mkfifo(out / name)
    said = []

    def tried():
        try:
            run(out, init_from=init_from)
        except UserError as e:
            said.append(str(e))

    thread = threading.Thread(target=tried, daemon=True)
    thread.start()
    thread.join(60)
    assert said and str(out / name) in said[0] and "\n" not in said[0]


# ---- which checkpoint ----


def test_a_diverged_model_replaces_none(out, capfd, monkeypatch, written):
    """The evaluations after step 4 are not finite; those of the checkpoints before stay."""
    loss = train.mixture_loss

    def diverging(model, data, name, *args):
        value = loss(model, data, name, *args)
        return math.nan if len(losses(out)) > 4 else value

    assert run(out, max_iters=4, eval_interval=2, keep_best=True) == 0
    kept = {p.name: p.read_bytes() for p in out.glob("*.pt")}
    assert set(kept) == {"ckpt.pt", "ckpt.prev.pt", "best.pt", "best.prev.pt", "last.pt"}
    monkeypatch.setattr(train, "mixture_loss", diverging)
    options = {"eval_interval": 2, "save_interval": 3, "keep_best": True, "keep_last": 2}
    assert run(out, init_from="resume", max_iters=12, **options) == 0
    assert load(out / "diverged.pt")["iter_num"] == 12
    for name, content in kept.items():
        assert (out / name).read_bytes() == content, f"{name} was replaced"
    assert "not finite" in capfd.readouterr().out
    for line in (out / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize("ends", ["at its end", "by a save", "by a signal"])
def test_weights_that_the_last_step_has_spoilt_replace_none(out, monkeypatch, ends, written):
    """No loss of theirs is known when they are saved: that of the step is of those before it."""
    update, begun = TrainingStep.update, []

    def spoiling(self):
        update(self)
        begun.append(self)
        if len(begun) == 5:
            with torch.no_grad():
                next(self.model.parameters()).fill_(math.nan)
            if ends == "by a signal":
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainingStep, "update", spoiling)
    options = {"save_interval": 1} if ends == "by a save" else {"save_interval": 4}
    options |= {"max_iters": 5} if ends == "at its end" else {"max_iters": 7}
    assert run(out, keep_last=1, **options) == (143 if ends == "by a signal" else 0)
    assert load(out / "last.pt")["iter_num"] == 4 and (out / "step_0000004.pt").exists()
    assert load(out / "diverged.pt")["iter_num"] == (7 if ends == "by a save" else 5)


@pytest.mark.parametrize("left", ["ckpt.prev.pt", "last.prev.pt", "step_0000004.pt", "best.pt"])
def test_auto_starts_from_whatever_there_is(out, capfd, left):
    options = {"eval_interval": 2, "save_interval": 2, "keep_last": 2, "keep_best": True}
    assert run(out, max_iters=6, **options) == 0
    step = load(out / left)["iter_num"]
    for path in out.glob("*.pt"):
        if path.name != left:
            path.unlink()
    assert run(out, init_from="auto", **options) == 0
    assert f"{left}, step {step}" in capfd.readouterr().out
    assert load(out / "last.pt")["iter_num"] == 8
    assert not (out / "earlier").exists()


def test_going_back_keeps_what_was_abandoned(out):
    options = {"save_interval": 2, "keep_last": 2}
    assert run(out, max_iters=8, **options) == 0
    abandoned = (out / "step_0000008.pt").read_bytes()
    shutil.copyfile(out / "step_0000006.pt", out / "last.pt")
    for path in out.glob("ckpt*.pt"):
        path.unlink()
    assert run(out, init_from="resume", max_iters=12, seed=5, **options) == 0
    steps = sorted(p.name for p in out.glob("step_*"))
    assert steps == ["step_0000010.pt", "step_0000012.pt"]
    assert (out / "earlier" / "1" / "step_0000008.pt").read_bytes() == abandoned
    assert [i for i, _ in losses(out / "earlier" / "1")] == list(range(8))
    assert [i for i, _ in losses(out)] == list(range(12))


# ---- checkpoints that a thread writes ----

SAVES = {"eval_interval": 3, "save_interval": 2, "keep_last": 9, "keep_best": True}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "muon", "neuron_beta": 0.9},
        {"batch_order": "epoch", "dropout": 0.1, "tie_head": True},
        {"always_save_checkpoint": False, "keep_last": 2},
    ],
    ids=str,
)
def test_it_writes_what_was_there_at_its_step(out, meanwhile, settings):
    """The files are those of a run that waits, to the last bit; the steps after one do not change
    it, and the run that goes on from it ends as the one that was not interrupted."""
    settings = {**SAVES, **settings}
    assert run(out / "waits", **settings) == 0
    written = meanwhile()
    assert run(out / "goes on", **settings) == 0
    assert all(logged > step for step, logged in written[:-1]), "steps were to go on meanwhile"
    assert written[-1] == (8, 8) and losses(out / "waits") == losses(out / "goes on")
    files = {p.name for p in (out / "waits").glob("*.pt")}
    assert files == {p.name for p in (out / "goes on").glob("*.pt")}
    for name in files:
        pair = [load(out / folder / name) for folder in ("waits", "goes on")]
        for state in pair:
            del state["config"]["out_dir"], state["progress"]["seconds"]
        assert not differences(*pair), name
    (out / "again").mkdir()
    shutil.copyfile(out / "goes on" / "step_0000006.pt", out / "again" / "last.pt")
    assert run(out / "again", init_from="resume", **settings) == 0
    ends = [load(out / folder / "last.pt") for folder in ("waits", "again")]
    for part in ("model", "optimizer", "best_val_loss"):
        assert not differences(*(state[part] for state in ends))


def test_without_memory_for_a_copy_it_is_written_as_on_a_cpu(out, meanwhile, monkeypatch):
    """The log says so, once."""
    written = meanwhile()
    monkeypatch.setattr(background, "free_host_bytes", lambda: 1000)
    assert run(out, **SAVES) == 0
    assert written[:-1] == [(step, step) for step in (2, 3, 4, 6)]
    log = (out / "log.txt").read_text(encoding="utf-8").splitlines()
    assert len([line for line in log if line.startswith("training waits while a checkp")]) == 1


def full_disk(monkeypatch, times: int) -> None:
    """When a checkpoint of step 4 or later is written, so many times."""
    save, left = torch.save, [times]

    def full(state, f):
        if state["iter_num"] >= 4 and left[0]:
            left[0] -= 1
            raise OSError(28, "No space left on device")
        save(state, f)

    monkeypatch.setattr(torch, "save", full)


@pytest.mark.parametrize("times", [1, 99])
@pytest.mark.parametrize("meets", ["a save", "a step"])
def test_what_it_could_not_write_ends_the_run(out, capfd, at_step, monkeypatch, meets, times):
    """In one line, at the next save or step; what was trained since is saved where that can be."""
    write, begin = saving.save_checkpoint, threading.Event()

    def late(*args, **options):
        assert args[1]["iter_num"] != 4 or begin.wait(60)
        write(*args, **options)

    def fails():
        begin.set()
        for thread in threading.enumerate():
            if thread.name == "saving":
                thread.join()

    monkeypatch.setattr(saving, "BACKGROUND", ("cpu",))
    monkeypatch.setattr(saving, "save_checkpoint", late)
    full_disk(monkeypatch, times)
    at_step(5, fails)
    with pytest.raises(SystemExit) as e:
        errors.run(lambda: run(out, save_interval=2 if meets == "a save" else 0, eval_interval=4))
    said = capfd.readouterr()
    assert e.value.code == 1 and len(losses(out)) == 6
    assert re.fullmatch(r"error: could not write .*ckpt\.pt \(.*No space left.*\n", said.err)
    assert ("saved at step 6, then ended" if times == 1 else "not saved at step 6") in said.out
    saved = {p.name: load(p)["iter_num"] for p in out.glob("l*.pt")}
    before = {"last.pt": 2} if meets == "a save" else {}
    again = {"last.pt": 6} | ({"last.prev.pt": 2} if before else {})
    assert saved == (again if times == 1 else before)
    assert not list(out.glob("*.tmp")) and not (out / "run.lock").exists()


@needs_posix
@pytest.mark.parametrize("event", ["a signal", "the end"])
def test_the_end_waits_for_it(out, capfd, at_step, meanwhile, event):
    written, steps = meanwhile(), 1000 if event == "a signal" else 6
    if event == "a signal":
        at_step(5, send("SIGTERM"))
    status = run(out, save_interval=5, max_iters=steps)
    assert status == (143 if event == "a signal" else 0)
    assert written == [(5, 6), (6, 6)]  # the one after the other, the last one before the end
    assert [load(out / f"last{part}.pt")["iter_num"] for part in (".prev", "")] == [5, 6]
    assert not any(thread.name == "saving" for thread in threading.enumerate())


def test_an_error_in_the_loop_waits_for_it(out, capfd, at_step, meanwhile, monkeypatch):
    """The folder is given back when it is written; and an error of its own is not lost."""
    meanwhile()
    full_disk(monkeypatch, 1)

    def fail():
        raise RuntimeError("something")

    at_step(4, fail)
    with pytest.raises(RuntimeError, match="something"):
        run(out, save_interval=4)
    said = capfd.readouterr().out
    assert "not saved at step 4: could not write" in said and "saved at step 5, then" in said
    assert load(out / "last.pt")["iter_num"] == 5


@needs_posix
def test_a_second_ctrl_c_ends_at_once_while_it_is_waited_for(workplace, out):
    """And leaves the checkpoint before it; the next start removes what was half written."""
    code = f"""
import os, sys, threading
sys.path.insert(0, {str(ROOT)!r})
import train
from bonsai.system import errors
from bonsai.training import background, interrupts, saving
write = saving.save_checkpoint
def say(what):  # a line of its own, whatever the other thread is printing
    os.write(1, f"\\n{{what}}\\n".encode())
def save(folder, state, names, keep_last):
    if state["iter_num"] > 3:
        (folder / "last.pt.01234567.tmp").write_bytes(b"half of it")
        say("half written")
        threading.Event().wait()
    write(folder, state, names, keep_last)
def waiting(self):
    if self.thread is not None and self.thread.is_alive():
        say("waiting")
        self.thread.join()
interrupts.REPEATED, saving.BACKGROUND, saving.save_checkpoint = 0.0, ("cpu",), save
background.BackgroundWriter.wait = waiting
errors.run(train.main)
"""
    settings = {**SMALL, "out_dir": out, "save_interval": 3, "max_iters": 1000}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *(f"--{k}={v}" for k, v in settings.items())],
        cwd=workplace,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ends = threading.Timer(120, process.kill)
    ends.start()
    said, noted = (iter(stream.readline, "") for stream in (process.stdout, process.stderr))
    assert "half written\n" in said, process.stderr.read()
    process.send_signal(signal.SIGINT)
    # the second one only then: two that come before a handler is called are one
    assert any("SIGINT: finishing this step, then saving" in line for line in noted)
    assert "waiting\n" in said
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    ends.cancel()
    assert process.returncode == -signal.SIGINT and err == ""
    assert load(out / "last.pt")["iter_num"] == 3
    assert run(out, init_from="auto", max_iters=3) == 0
    assert not list(out.glob("*.tmp"))
