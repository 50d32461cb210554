"""Run a program for some seconds at most, and leave nothing running of what it has started.

    python benchmarks/supervise.py SECONDS PROGRAM [its arguments] < PIPE

The program, and what it starts, is a process group. The group is ended when the program is over,
when the seconds are, or when the pipe is closed: who has started this holds its other end, which
the system closes even where that process is killed. The end is SIGTERM, and 5 seconds later SIGKILL
for what is left. Where this process is killed itself, Linux sends SIGTERM to the program. Exit
status: the program's, 128 + N where signal N ended it, 124 for the seconds (GNU timeout's), 125 for
the pipe.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

PATIENCE = 5.0  # seconds between SIGTERM and SIGKILL
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def adopt_orphans() -> None:
    """Become the parent of what is started below and loses its own: a process that has ended is
    there until its parent has waited for it, and the first process of a container may never."""
    if LIBC:
        LIBC.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def end_with_supervisor() -> None:
    """In the process that becomes the program: have it told when its parent has ended."""
    if LIBC:
        LIBC.prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG


def end_group(leader: subprocess.Popen) -> None:
    """End what is left of the process group that a process leads."""
    last = time.monotonic() + PATIENCE
    with contextlib.suppress(ProcessLookupError):  # nothing is left
        os.killpg(leader.pid, signal.SIGTERM)
        while time.monotonic() < last:
            leader.poll()
            with contextlib.suppress(ChildProcessError):  # no orphan
                while os.waitpid(-leader.pid, os.WNOHANG)[0]:
                    pass
            os.killpg(leader.pid, 0)
            time.sleep(0.1)
        os.killpg(leader.pid, signal.SIGKILL)


def supervise(seconds: float, command: list[str]) -> int:
    """The exit status."""
    last = time.monotonic() + seconds
    options = dict(start_new_session=True, preexec_fn=end_with_supervisor)
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
    try:
        while program.poll() is None:
            if time.monotonic() > last:
                return 124
            if select.select([sys.stdin], [], [], 0.1)[0]:  # nobody writes there: it is closed
                return 125
        return program.returncode if program.returncode >= 0 else 128 - program.returncode
    finally:
        end_group(program)


if __name__ == "__main__":
    try:
        seconds, (program, *words) = float(sys.argv[1]), sys.argv[2:]
    except (IndexError, ValueError):
        sys.exit(__doc__)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    adopt_orphans()
    sys.exit(supervise(seconds, [program, *words]))
