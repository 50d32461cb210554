"""When threads do not spin: where others compute, and the environment does not say otherwise."""

import os
import sys

import pytest
from helpers.programs import ROOT, run_command

from bonsai.system import threads

PROGRAM = """
import os, sys
from bonsai.system import threads
threads.is_busy = lambda: sys.argv[1] == "busy"
import bonsai.system.startup
import torch
from bonsai.system.runtime import setup
print(os.environ.get("OMP_WAIT_POLICY"), "do not spin" in setup("cpu").summary)
"""


@pytest.mark.parametrize(
    "cores, minute, running, busy",
    [
        (2, 1.2, [2, 2, 2], True),  # this process and another one
        (2, 1.2, [1, 1, 1], False),  # a busy minute, but nobody computes now
        (2, 1.2, [3, 2, 1], False),  # what ran has just ended
        (2, 0.1, [4, 4, 4], False),  # programs of a moment
        (16, 4.0, [5, 5, 5], False),  # enough cores are left
        (16, 9.0, [9, 12, 10], True),
        (1, 0.9, [2, 3, 2], True),
    ],
)
def test_busy_is_half_of_the_cores_for_a_minute_and_now(
    tmp_path, monkeypatch, cores, minute, running, busy
):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "getloadavg", lambda: (minute, 0.0, 0.0), raising=False)
    load, numbers = tmp_path / "loadavg", iter(running)
    monkeypatch.setattr(threads, "LOAD", load)

    def sleep(seconds: float) -> None:
        load.write_text(f"{minute} 0.00 0.00 {next(numbers)}/300 4711\n")

    monkeypatch.setattr(threads.time, "sleep", sleep)
    assert threads.is_busy() is busy


@pytest.mark.parametrize("text", ["", "nothing", "1 2 3 x/y 4"])
def test_a_system_that_does_not_say_is_not_busy(tmp_path, monkeypatch, text):
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0), raising=False)
    monkeypatch.setattr(threads, "LOAD", tmp_path / "loadavg")
    assert not threads.is_busy()
    (tmp_path / "loadavg").write_text(text)
    assert not threads.is_busy()
    monkeypatch.delattr(os, "getloadavg")  # Windows
    assert not threads.is_busy()


@pytest.mark.parametrize(
    "load, env, said",
    [
        ("busy", {"OMP_NUM_THREADS": "2"}, "passive True"),
        ("idle", {"OMP_NUM_THREADS": "2"}, "None False"),
        ("busy", {"OMP_NUM_THREADS": "1"}, "None False"),  # one thread waits for nobody
        ("busy", {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "active"}, "active False"),
        ("busy", {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "9"}, "None False"),
    ],
)
def test_a_program_sets_it_before_torch_is_loaded(load, env, said):
    command = [sys.executable, "-c", PROGRAM, load]
    done = run_command(command, ROOT, {"PYTHONPATH": str(ROOT), **env})
    assert done.rc == 0 and done.stdout.strip() == said, done
