"""benchmarks/checkouts.py: what the turns of two runs say, and that none of them stays stopped."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers.programs import ROOT, environment

from benchmarks import checkouts

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="signals of POSIX")

TINY = "--n_layer=1 --n_head=1 --n_embd=8 --block_size=8 --batch_size=2 --dtype=float32 "
TINY += "--gradient_accumulation_steps=1 --compile=off --device=cpu --dataset=shakespeare_char"


def start(folder, *words):
    command = [sys.executable, str(ROOT / "benchmarks" / "checkouts.py"), *words]
    env = environment() | {"OMP_NUM_THREADS": "1"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=folder, env=env, **pipes)


def test_a_turn_is_its_median_step_without_its_ends():
    steps = [9, 9, 1, 2, 3, 700, 900, 5, 6, 7, 8, 900, 1]  # the long ones were stopped
    assert checkouts.turns_of(steps, [0, 6, 12, 13]) == [2.5, 6.5]


def test_a_turn_is_compared_with_those_around_it():
    """A machine that becomes slower, by the same for both, changes nothing."""
    before = [10.0, 20.0, 40.0]
    now = [2 * 15.0, 2 * 30.0, 2 * 50.0]
    assert checkouts.ratios(now, before) == [2.0, 2.0]


def test_two_runs_take_turns(place):
    options = f"--options={TINY} --max_iters=1500"
    process = start(place, f"--before={ROOT}", options, "--seconds=0.2")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "| before" in out and "| now " in out and "now / before: " in out
    assert float(out.split("now / before: ")[1].split()[0]) > 0


def test_a_run_that_fails_says_why(place):
    process = start(place, f"--before={ROOT}", f"--options={TINY} --no_such=1")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "no_such" in err and len(err.splitlines()) == 1, err


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="states of processes by /proc")
def test_nothing_stays_stopped(place):
    """Ended while one of the two is stopped: both end."""
    process = start(place, f"--before={ROOT}", f"--options={TINY} --max_iters=1000000")
    children = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(state(pid) == "T" for pid in children):
        children = children_of(process.pid)
        time.sleep(0.1)
    assert len(children) == 2 and any(state(pid) == "T" for pid in children)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert all(state(pid) in ("", "Z") for pid in children)


def children_of(pid: int) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as f:
                if int(f.read().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(name))
        except OSError:  # it has just ended
            continue
    return found


def state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""
