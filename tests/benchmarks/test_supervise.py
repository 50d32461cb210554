"""benchmarks/supervise.py: however a program ends, nothing of what it has started goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.programs import ROOT, environment

from benchmarks import supervise

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups of POSIX")

# Starts another, says its id, and waits for it; the one of them that is told to is deaf to SIGTERM.
PROGRAM = """
import os, signal, sys, time
child = os.fork()
if sys.argv[1] == ("parent" if child else "child"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if child:
    time.sleep(0.2)
    os.write(1, b"%d\\n" % child)
    if sys.argv[2] == "leaves":
        sys.exit(3)
time.sleep(60)
"""


def command(seconds: float, deaf: str = "", then: str = "waits") -> list[str]:
    return [
        *(sys.executable, str(ROOT / "benchmarks" / "supervise.py"), str(seconds)),
        *(sys.executable, "-S", "-c", PROGRAM, deaf, then),
    ]


def start(*words) -> tuple[subprocess.Popen, int]:
    """The supervisor, and the id of what its program has started."""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process = subprocess.Popen(command(*words), env=environment(), **pipes)
    return process, int(process.stdout.readline())


def is_over(pid: int) -> bool:
    """Now; one that nobody has waited for is."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


@pytest.mark.parametrize(
    "how, status",
    [("leaves", 3), ("seconds", 124), ("pipe", 125), ("SIGTERM", 143), ("SIGINT", 130)],
)
def test_nothing_goes_on(how, status):
    process, child = start(1 if how == "seconds" else 60, "", how)
    if how == "pipe":
        process.stdin.close()
    elif how.startswith("SIG"):
        process.send_signal(signal.Signals[how])
    assert process.wait(timeout=30) == status and is_over(child)
    process.stdin.close()
    process.stdout.close()


def test_the_pipe_is_closed_by_a_kill(tmp_path):
    """Of the process that holds its other end."""
    code = "import subprocess, sys; subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE).wait()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, *command(60)], stdout=subprocess.PIPE, env=environment()
    )
    child = int(holder.stdout.readline())
    assert not is_over(child)
    holder.kill()
    assert holder.stdout.read() == b"" and holder.wait() == -signal.SIGKILL  # all have let go of it
    assert is_over(child)
    holder.stdout.close()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux for a parent")
@pytest.mark.parametrize("deaf", ["", "parent", "child"])
def test_a_killed_supervisor_takes_along_what_it_has_started(deaf):
    process, child = start(60, deaf)
    program = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    assert not is_over(program) and not is_over(child)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    for _ in range(200):
        left = [pid for pid in (program, child) if not is_over(pid)]
        if not left:
            break
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
    process.stdin.close()
    process.stdout.close()


@pytest.mark.parametrize("deaf", ["parent", "child"])
def test_what_is_deaf_to_sigterm_is_killed(deaf, tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "PATIENCE", 0.5)
    end, other = os.pipe()
    said = tmp_path / "said"
    words = ["sh", "-c", 'exec "$@" > "$0"', str(said), *command(0, deaf)[3:]]
    with open(end) as stdin, open(other, "w"):
        monkeypatch.setattr(sys, "stdin", stdin)
        begin = time.monotonic()
        assert supervise.supervise(1, words) == 124
    assert time.monotonic() - begin >= 1.5
    for _ in range(100):
        if is_over(child := int(said.read_text())):
            break
        time.sleep(0.1)
    assert is_over(child)


def test_a_program_that_a_signal_has_ended_has_its_status(monkeypatch):
    end, other = os.pipe()
    with open(end) as stdin, open(other, "w"):
        monkeypatch.setattr(sys, "stdin", stdin)
        assert supervise.supervise(60, ["sh", "-c", "kill -9 $$"]) == 137
        assert supervise.supervise(60, ["true"]) == 0


def test_it_says_how_it_is_used():
    for words in ([], ["true"], ["soon", "true"]):
        program = [sys.executable, str(ROOT / "benchmarks" / "supervise.py"), *words]
        done = subprocess.run(program, capture_output=True, text=True, env=environment())
        assert done.returncode == 1 and done.stderr.strip() == supervise.__doc__.strip()
