"""Several processes (gloo, on the CPU) against one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.programs import (
    ROOT,
    TINY,
    environment,
    load,
    losses,
    metrics,
    run_as_several,
    run_command,
    snapshot,
    torchrun,
    train,
)

# what one process and two must have the same, for their losses to be compared
SHARED = ["--dropout=0.0", "--gradient_accumulation_steps=4", "--eval_iters=3"]


def words(out: Path, *options: str) -> list[str]:
    """Of a tiny run."""
    return [*TINY, *SHARED, "--dataset=meta", f"--out_dir={out}", *options]


def two_processes(out: Path, *options: str, program: str | Path = "train.py") -> list[str]:
    """The command of a tiny run, by torchrun."""
    return torchrun(program, *words(out, *options))


@pytest.fixture(scope="module")
def one(workplace, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    result = train(workplace, out, *SHARED)
    assert result.rc == 0, result
    return out


def assert_close(a: Path, b: Path) -> None:
    assert [i for i, _ in losses(a)] == [i for i, _ in losses(b)]
    for (i, x), (_, y) in zip(losses(a), losses(b)):
        assert x == pytest.approx(y, abs=1e-5), f"step {i}"
    for x, y in zip(metrics(a), metrics(b)):
        if "val_loss" in x:
            assert x["iter"] == y["iter"]
            assert x["train_loss"] == pytest.approx(y["train_loss"], abs=1e-5)
            assert x["val_loss"] == pytest.approx(y["val_loss"], abs=1e-5)
        else:
            assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-3)
    one, two = load(a / "last.pt"), load(b / "last.pt")
    for name, w in one["model"].items():
        torch.testing.assert_close(two["model"][name], w, atol=1e-4, rtol=0)
    assert list(one["model"]) == list(two["model"])  # no prefix of DDP's


def test_two_processes_equal_one_also_when_one_goes_on(one, workplace, tmp_path):
    """Ten steps with two processes, then ten with one: all 20 equal those of one process.

    So the two compute the same gradients and evaluations, and the data order does not depend on
    how many share it.
    """
    out = tmp_path / "run"
    result = run_as_several(words(out, "--max_iters=10"), workplace)
    assert result.rc == 0, result
    assert "2 processes (gloo)" in result.stdout
    assert result.stdout.count("iter 3: loss") == 1  # one process speaks
    assert load(out / "last.pt")["iter_num"] == 10
    result = train(workplace, out, *SHARED, "--init_from=resume")
    assert result.rc == 0, result
    assert_close(one, out)


def test_a_run_of_one_goes_on_with_two(one, workplace, tmp_path):
    """And nanoGPT's settings for GPUs, backend=nccl in a config file, do no harm on a CPU."""
    out = tmp_path / "run"
    assert train(workplace, out, *SHARED, "--max_iters=10").rc == 0
    result = run_as_several(words(out, "--init_from=resume", "--backend=nccl"), workplace)
    assert result.rc == 0, result
    assert_close(one, out)


# train.py, and then the threads that are left of what the processes spoke through
LEFT = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import train
train.main()
names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
left = [name for name in names if "gloo" in name]
os.write(1, f"left: {{left}}\\n".encode())  # at once: the other process writes there, too
"""


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_leaves_no_thread_that_could_abort_it_and_warns_of_nothing(
    optimizer, workplace, tmp_path
):
    """A thread of gloo that frees a tensor while Python ends aborts the process, now and then on a
    busy machine: torchrun then says that a run has failed which is whole."""
    program = tmp_path / "program.py"
    program.write_text(LEFT.format(root=str(ROOT)))
    options = (f"--optimizer={optimizer}", "--max_iters=2", "--eval_interval=2")
    result = run_command(two_processes(tmp_path / "run", *options, program=program), workplace)
    assert result.rc == 0, result
    assert result.stdout.count("left: []") == 2, result
    assert "Warning" not in result.stderr, result


# train.py, whose checkpoints a thread writes, as on a GPU; `waits` gets what was to be written at
# that moment, and the disk is full for a checkpoint of step `full`
MEANWHILE = """
import sys, threading
sys.path.insert(0, {root!r})
import train
from bonsai.system import errors
from bonsai.training import background, saving
saving.BACKGROUND = ("cpu",)
save, write = saving.save_checkpoint, background.BackgroundWriter.write
def full(folder, state, names, keep_last):
    if state["iter_num"] == {full}:
        raise errors.UserError("could not write: the disk is full")
    print("written in", threading.current_thread().name, flush=True)
    save(folder, state, names, keep_last)
def both(self, into, state):
    save({waits!r}, state, into.keywords["names"], into.keywords["keep_last"])
    write(self, into, state)
saving.save_checkpoint, background.BackgroundWriter.write = full, both
errors.run(train.main)
"""


@pytest.mark.parametrize("full", [0, 4])
def test_a_thread_of_the_first_process_writes_while_all_go_on(workplace, tmp_path, full):
    """What was there at its step, a sharded optimizer's state too; where that fails, all end."""
    program, out, waits = (tmp_path / name for name in ("program.py", "run", "waits"))
    program.write_text(MEANWHILE.format(root=str(ROOT), waits=str(waits), full=full))
    options = ["--optimizer=muon", "--save_interval=2", "--keep_last=9", "--eval_interval=1000"]
    result = run_as_several(words(out, *options, "--max_iters=9"), workplace, program)
    steps = {path.name for path in waits.glob("step_*.pt")}
    if full:
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert result.rc != 0 and errors[0] == "error: could not write: the disk is full", result
        assert not (out / "run.lock").exists() and load(out / "last.pt")["iter_num"] == 2
        return
    assert result.rc == 0 and result.stdout.count("written in saving") == 4, result
    assert steps == {f"step_000000{n}.pt" for n in (2, 4, 6, 8)}
    for name in steps:
        assert (out / name).read_bytes() == (waits / name).read_bytes(), name


def test_accumulation_must_be_divisible(workplace, tmp_path):
    result = run_as_several(words(tmp_path / "run", "--gradient_accumulation_steps=3"), workplace)
    assert result.rc != 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert lines and "gradient_accumulation_steps=3 is not divisible by the 2" in lines[0], result
    assert not (tmp_path / "run").exists()


def started(workplace, out: Path, said: str, *options: str) -> subprocess.Popen:
    """A run of two processes that has said so; they are a session of their own."""
    process = subprocess.Popen(
        two_processes(out, *options),
        cwd=workplace,
        env=environment(PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if said in line:
            break
    return process


def test_sigterm_stops_all_and_saves(workplace, tmp_path):
    """Sent to each process, as clusters do, and passed on by torchrun; they agree on the step."""
    out = tmp_path / "run"
    process = started(workplace, out, "iter 5:", "--max_iters=100000", "--eval_interval=100000")
    try:
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        rest = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    state = load(out / "last.pt")
    assert f"stopped at step {state['iter_num']}" in rest, rest
    assert len(losses(out)) == state["iter_num"]


@pytest.mark.skipif(sys.platform == "win32", reason="processes of POSIX")
def test_workers_whose_torchrun_was_killed_save_and_end(workplace, tmp_path):
    """They would go on for ever, and nobody could stop them; here within an evaluation."""
    out = tmp_path / "run"
    options = ["--max_iters=100000", "--eval_interval=6", "--eval_iters=100000", "--batch_size=1"]
    process = started(workplace, out, "iter 5:", *options)
    process.send_signal(signal.SIGKILL)
    rest = process.communicate(timeout=100)[0]  # once the workers, too, have closed their stdout
    state = load(out / "last.pt")
    assert "torchrun has ended" in rest and f"stopped at step {state['iter_num']}" in rest, rest
    assert not (out / "run.lock").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="processes of POSIX")
def test_workers_whose_torchrun_was_killed_while_they_start_end(workplace, tmp_path):
    """They would wait for one another where nobody tells them any more how to meet."""
    process = started(workplace, tmp_path / "run", "settings:", "--max_iters=100000")
    process.send_signal(signal.SIGKILL)
    rest = process.communicate(timeout=100)[0]
    assert "error: " in rest and "Traceback" not in rest, rest


# train.py, of which process 1 does something else
OTHER = """
import os, shutil, sys
sys.path.insert(0, {root!r})
import train
from bonsai.system import errors
if os.environ["RANK"] == "1":
    {change}
errors.run(train.main)
"""
DIFFERENT = [
    ("sys.argv.append('--seed=1')", "has other settings than process 0 (seed=1, not 1337)"),
    ("os.chdir('elsewhere')", "has another checkpoint than process 0 (step=0, not 4"),
    ("os.chdir('damaged')", "has other data than process 0 (meta/train="),
]


@pytest.mark.parametrize("change, said", DIFFERENT, ids=["settings", "out_dir", "data"])
def test_processes_that_are_not_about_to_do_the_same(change, said, one, workplace, tmp_path):
    """As on a node with its own disk, or with a copy of the data that is not whole: one line,
    where such runs would mix two models or wait for ever."""
    home, program = tmp_path / "home", tmp_path / "program.py"
    program.write_text(OTHER.format(root=str(ROOT), change=change))
    shutil.copytree(workplace / "data", home / "data")
    for other in ("elsewhere", "damaged"):
        shutil.copytree(workplace / "data", home / other / "data")
    train_bin = home / "damaged" / "data" / "meta" / "train.bin"
    train_bin.write_bytes(train_bin.read_bytes()[:-4000] + bytes(4000))
    (home / "run").mkdir()
    (home / "damaged" / "run").mkdir()
    state = {**load(one / "last.pt"), "iter_num": 4}
    for folder in (home / "run", home / "damaged" / "run"):
        torch.save(state, folder / "last.pt")
    before = snapshot(home / "run")
    result = run_as_several(words(Path("run"), "--init_from=auto"), home, program)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.rc != 0 and len(lines) == 1 and said in lines[0], result
    assert snapshot(home / "run") == before and "iter " not in result.stdout, result


# train.py, told to stop by a signal to each process, and slow to save
SLOW = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
import train
from bonsai.system import errors
from bonsai.training import interrupts, saving, step
begin, save = step.TrainingStep.begin, saving.save_checkpoint
def told(self, number, *more):
    if number == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    begin(self, number, *more)
def slowly(*what, **more):
    time.sleep(1)
    save(*what, **more)
step.TrainingStep.begin, saving.save_checkpoint, interrupts.REPEATED = told, slowly, 0.2
errors.run(train.main)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_no_process_ends_while_the_first_one_saves(workplace, tmp_path):
    """torchrun ends those that are left when one ends by a signal, and what was being saved would
    be lost."""
    out, program = tmp_path / "run", tmp_path / "program.py"
    program.write_text(SLOW.format(root=str(ROOT)))
    result = run_command(two_processes(out, program=program), workplace)
    assert result.rc != 0 and "stopped at step 4" in result.stdout, result
    assert load(out / "last.pt")["iter_num"] == 4


# train.py, in which a step of the first attempt fails
FAILS = """
import os, sys
sys.path.insert(0, {root!r})
import train
from bonsai.system import errors
from bonsai.training.step import TrainingStep
begin = TrainingStep.begin
def fail(self, number, *more):
    if number == 3 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        raise ValueError("once")
    begin(self, number, *more)
TrainingStep.begin = fail
errors.run(train.main)
"""


def test_after_a_restart_by_torchrun_a_run_goes_on(workplace, tmp_path):
    """--max-restarts and --init_from=auto: what was trained before the error is not lost."""
    out, program = tmp_path / "run", tmp_path / "program.py"
    program.write_text(FAILS.format(root=str(ROOT)))
    command = two_processes(out, "--init_from=auto", "--max_iters=6", program=program)
    command[3:3] = ["--max-restarts=1"]
    # or torch, now and then, takes the addresses of the processes that have ended
    result = run_command(command, workplace, {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
    assert result.rc == 0 and load(out / "last.pt")["iter_num"] == 6, result
    assert "last.pt, step 3" in result.stdout and not (out / "earlier").exists(), result


@pytest.mark.parametrize("init_from, says_so", [("scratch", True), ("resume", False)])
def test_a_restart_that_begins_anew_says_so(init_from, says_so, one, workplace, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(one, out)
    options, env = (
        (f"--init_from={init_from}", "--max_iters=1"),
        {"TORCHELASTIC_RESTART_COUNT": "2"},
    )
    result = train(workplace, out, *options, env=env)
    assert result.rc == 0 and ("restart 2 begins a new run" in result.stdout) == says_so, result
