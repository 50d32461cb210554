"""benchmarks/processes.py: what was started ends with what has started it."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers.programs import ROOT, environment

from benchmarks.processes import running, started, supervised

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

# os.write: whole, beside what another process writes
SLEEP = [sys.executable, "-S", "-c", r"import os, time; os.write(1, b'on\n'); time.sleep(60)"]

# A program that runs others, in its main thread or in two more.
PROGRAM = f"""
import bonsai.system.startup
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from benchmarks.processes import end_all, heed_signals, running
from bonsai.system.errors import run

def wait(_):
    with running({SLEEP!r}) as process:
        os.write(1, b"%d\\n" % process.pid)
        process.wait()

def main():
    if sys.argv[1] == "1":
        return wait(0)
    heed_signals()
    with ThreadPoolExecutor(2) as pool:
        try:
            [each.result() for each in [pool.submit(wait, i) for i in range(2)]]
        except BaseException:
            end_all()
            raise

run(main)
"""

# A program that runs one in a shell, supervised, and is slow to end.
SUPERVISING = f"""
import bonsai.system.startup
import os
import subprocess
import time
from benchmarks.processes import leave_by_exit_on_signals, supervised
from bonsai.system.errors import run

def main():
    leave_by_exit_on_signals()
    shell = ["sh", "-c", 'echo $$; exec "$@"', "sh", *{SLEEP!r}]
    try:
        with supervised(60, shell, stdout=subprocess.PIPE, bufsize=0) as process:
            os.write(1, process.stdout.readline())
            process.wait()
    finally:
        time.sleep(1)
        os.write(1, b"said\\n")

run(main)
"""


def is_over(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name, status", [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_to_the_benchmark_alone_ends_its_programs(count, name, status):
    command = [sys.executable, "-c", PROGRAM, str(count)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes)
    lines = [process.stdout.readline() for _ in range(2 * count)]
    pids = [int(line) for line in lines if line.strip().isdecimal()]
    assert len(pids) == count
    process.send_signal(signal.Signals[name])
    err = process.communicate(timeout=60)[1]
    assert process.returncode == status and len(err.strip().splitlines()) == 1, err
    assert all(map(is_over, pids))


def test_a_program_that_has_ended_is_left_alone():
    with running([sys.executable, "-S", "-c", "raise SystemExit(3)"]) as process:
        assert started == {process} and process.wait() == 3
    with running(SLEEP, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"on\n"
    assert process.returncode == -signal.SIGTERM and not started


@pytest.mark.parametrize("name, status", [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_no_second_signal_cuts_short_what_has_to_be_said(name, status):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command = [sys.executable, "-c", SUPERVISING]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes)
    pid = int(process.stdout.readline())
    process.send_signal(signal.Signals[name])
    line = process.stderr.readline()  # it has heeded the first
    for other in ("SIGTERM", "SIGHUP", "SIGINT"):
        process.send_signal(signal.Signals[other])
    said, err = process.communicate(timeout=60)
    assert said == "said\n" and line.startswith("error: ") and not err
    assert process.returncode == status and is_over(pid)


def test_a_supervised_program_ends_with_its_block_or_before():
    with supervised(60, ["sh", "-c", "exit 3"]) as process:
        process.wait()
    assert process.returncode == 3
    with supervised(60, SLEEP, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"on\n"
    assert process.returncode == 125
    with supervised(0.5, SLEEP) as process:
        assert process.wait() == 124
