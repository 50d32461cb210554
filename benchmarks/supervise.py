"""Runs a program for at most some seconds, and leaves none of its child processes running.

    python benchmarks/supervise.py SECONDS PROGRAM [its arguments] < PIPE

The program and its child processes are a process group. The group is ended when the program ends,
when the seconds are over, or when the pipe is closed: the process that has started this one holds
its other end, which the system closes even if that process is killed. The group gets SIGTERM, and
after 5 seconds SIGKILL if something is left. If this process itself is killed, a second one, its
guard, ends the group in the same way. Exit status: the program's; 128 + N if signal N ended it; 124
if the seconds were over (as GNU timeout); 125 if the pipe was closed.
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
END_GROUP = "--end-group"
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def adopt_orphans() -> None:
    """Become the parent of child processes' children that lose their own parent. An ended process
    stays in the process group until its parent waits for it; without this that parent would be
    process 1, which in a container may never wait."""
    if LIBC:
        LIBC.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def end_with_supervisor() -> None:
    """Called in the process that becomes the program: Linux then sends it SIGTERM when its parent
    ends, which may be before the guard knows of the program."""
    if LIBC:
        LIBC.prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG


def end_group(number: int) -> None:
    """End all processes of a group."""
    last = time.monotonic() + PATIENCE
    with contextlib.suppress(ProcessLookupError):  # no process is left
        os.killpg(number, signal.SIGTERM)
        while time.monotonic() < last:
            with contextlib.suppress(ChildProcessError):  # none of them is our child
                while os.waitpid(-number, os.WNOHANG)[0]:
                    pass
            os.killpg(number, 0)
            time.sleep(0.1)
        os.killpg(number, signal.SIGKILL)


def start_guard() -> subprocess.Popen:
    """Start the guard: it reads the number of a process group from its pipe, and ends that group
    when the pipe is closed, which the system does if this process is killed."""
    command = [sys.executable, "-S", __file__, END_GROUP]
    return subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, start_new_session=True)


def supervise(seconds: float, command: list[str]) -> int:
    """Run a command as described above; returns the exit status."""
    guard = start_guard()
    last = time.monotonic() + seconds
    options = dict(start_new_session=True, preexec_fn=end_with_supervisor)
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
    try:
        guard.stdin.write(b"%d" % program.pid)
        while program.poll() is None:
            if time.monotonic() > last:
                return 124
            if select.select([sys.stdin], [], [], 0.1)[0]:  # closed, as nobody writes to it
                return 125
        return program.returncode if program.returncode >= 0 else 128 - program.returncode
    finally:
        end_group(program.pid)
        program.wait()
        guard.kill()
        guard.communicate()


if __name__ == "__main__":
    if sys.argv[1:] == [END_GROUP]:
        if told := sys.stdin.read():
            end_group(int(told))
        sys.exit()
    try:
        seconds, (program, *words) = float(sys.argv[1]), sys.argv[2:]
    except (IndexError, ValueError):
        sys.exit(__doc__)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    adopt_orphans()
    sys.exit(supervise(seconds, [program, *words]))
