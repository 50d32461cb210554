"""Kills at random moments, many of them: what they leave is counted and must never be a loss.

python -m pytest tests/runs/test_kills.py --slow -s        # KILLS=300 for another number
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.programs import ROOT, TINY, environment, load

from bonsai.runs.metrics import read_metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="signals of POSIX"),
]
KILLS = int(os.environ.get("KILLS", 30))
# A run that saves at every step, several files each time, so that kills fall into saves.
OPTIONS = [*TINY, "--dataset=meta", "--max_iters=100000", "--eval_interval=5", "--eval_iters=1"]
OPTIONS += ["--save_interval=1", "--keep_last=3", "--keep_best=True", "--init_from=auto"]
# Starts its programs within a process that has the libraries already: a start takes no seconds.
NURSERY = """
import os, sys
sys.path.insert(0, {root!r})
import train, matplotlib.figure
from bonsai.training import saving
saving.BACKGROUND = {background}
for line in sys.stdin:
    if line == "wait\\n":  # until then the number of the process is given to no other
        print(os.waitpid(child, 0)[1], flush=True)
        continue
    arguments = line.split()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.dup2(os.open(arguments[0], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        sys.argv = ["train.py", *arguments[1:]]
        from bonsai.system import errors
        errors.PROGRAM = os.getpid()
        errors.run(train.main)
    print(child, flush=True)
"""


class Nursery:
    """Runs of train.py, one after the other, each in a process of its own."""

    def __init__(self, cwd: Path, background: tuple[str, ...] = ()):
        """background: devices that train while a thread writes a checkpoint."""
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY.format(root=str(ROOT), background=background)],
            cwd=cwd,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, log: Path, *options: str) -> int:
        return self.ask(" ".join([str(log), *OPTIONS, *options]))

    def wait(self) -> int:
        return self.ask("wait")

    def ask(self, line: str) -> int:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def saved_steps(out: Path) -> dict[str, int]:
    """iter_num of each checkpoint; every one must be whole."""
    steps = {}
    for path in out.glob("*.pt"):
        with contextlib.suppress(FileNotFoundError):  # by keep_last of one that goes on
            steps[path.name] = load(path)["iter_num"]
    return steps


def wait_for(log: Path, *texts: str) -> None:
    """Until the run has said one of these; it may also have ended."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        said = log.read_text(encoding="utf-8") if log.exists() else ""
        if any(text in said for text in texts):
            return
        time.sleep(0.005)


def tell(title: str, counts: Counter) -> None:
    print(f"\n{title}: {json.dumps(dict(sorted(counts.items())))}")


@pytest.mark.parametrize("background", [(), ("cpu",)], ids=["in between", "meanwhile"])
def test_random_kills_of_one_process(workplace, tmp_path, background):
    """SIGKILL, SIGTERM, SIGINT or SIGHUP; then the same command again, some of the times anew."""
    rng, counts, out = np.random.default_rng(0), Counter(), tmp_path / "run"
    nursery, before, total = Nursery(workplace, background), 0, 0
    for kill in range(KILLS):
        anew = rng.random() < 0.1
        log = tmp_path / f"log{kill}"
        kept = len(list(out.rglob("*.pt")))
        child = nursery.start(log, f"--out_dir={out}", *(["--init_from=scratch"] if anew else []))
        if rng.random() < 0.7:
            wait_for(log, "iter ")
        time.sleep(rng.uniform(0, 0.4))
        name = rng.choice(["SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"])
        os.kill(child, getattr(signal, name))
        status = nursery.wait()
        said = log.read_text(encoding="utf-8") if log.exists() else ""
        assert "Traceback" not in said and "refused" not in said, said
        counts[f"{name}, {'ended by it' if os.WIFSIGNALED(status) else 'saved or said so'}"] += 1
        steps = saved_steps(out) if out.exists() else {}
        # what a run had is there still, or under earlier/, or replaced by a later one of its own
        assert len(list(out.rglob("*.pt"))) >= (kept if anew else min(kept, 1))
        moved = "is now in" in said
        now = max((n for p, n in steps.items() if not p.startswith("step")), default=0)
        if not anew and not moved:
            assert now >= before, (before, steps, said)
        if now:
            logged = [r["iter"] + 1 for r in read_metrics(out) if "loss" in r]
            # a step is logged, then saved; a thread that saves may be one step behind that
            assert now >= max(logged, default=0) - 1 - len(background)
        counts["unfinished files left"] += len(list(out.glob("*.tmp"))) if out.exists() else 0
        total += max(0, now - (0 if moved else before))
        before = now
    # the last one runs to its end and tidies up
    nursery.start(tmp_path / "last", f"--out_dir={out}", f"--max_iters={before + 3}")
    assert nursery.wait() == 0
    nursery.close()
    assert saved_steps(out)["last.pt"] == before + 3 and not list(out.rglob("*.tmp"))
    counts["folders under earlier/"] = len(list((out / "earlier").glob("*")))
    counts["steps made"] = total
    tell(f"one process, {KILLS} kills", counts)


def test_random_kills_of_two_processes_in_one_folder(workplace, tmp_path):
    """Two that take turns: at no time do both write, and none is kept out by a dead one."""
    rng, counts, out = np.random.default_rng(1), Counter(), tmp_path / "run"
    pair, running, steps = [Nursery(workplace), Nursery(workplace)], [0, 0], 2
    pair[0].start(tmp_path / "first", f"--out_dir={out}", "--max_iters=2")
    assert pair[0].wait() == 0
    for kill in range(KILLS):
        logs = []
        for i, nursery in enumerate(pair):
            if not running[i]:
                logs.append(tmp_path / f"log{kill}.{i}")
                running[i] = nursery.start(logs[-1], f"--out_dir={out}", "--init_from=resume")
        if rng.random() < 0.7:
            for log in logs:
                wait_for(log, "iter ", "error: ")
        time.sleep(rng.uniform(0, 0.4))
        victim = int(rng.integers(2))
        name = str(rng.choice(["SIGKILL", "SIGTERM"]))
        os.kill(running[victim], getattr(signal, name))  # nothing to one that was kept out
        status, running[victim] = pair[victim].wait(), 0
        counts["killed" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"] += 1
        for log in logs:
            said = log.read_text(encoding="utf-8") if log.exists() else ""
            assert "Traceback" not in said, said
            counts["kept out by the other"] += "is the folder of a run that goes on" in said
        saved = saved_steps(out)
        assert max(saved.values()) >= steps, (steps, saved)
        steps = max(saved.values())
    for child in filter(None, running):
        os.kill(child, signal.SIGKILL)
    for nursery in pair:
        nursery.close()
    counts["steps made"] = steps
    tell(f"two processes, {KILLS} kills", counts)
