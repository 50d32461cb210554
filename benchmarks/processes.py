"""Programs that a benchmark starts. They end with it: `running` ones unless it is killed by
SIGKILL, `supervised` ones always."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from bonsai import ROOT
from bonsai.system.errors import ENDS, end_at_once, end_by_exit, end_if_told

SUPERVISOR = str(ROOT / "benchmarks" / "supervise.py")
started: set[subprocess.Popen] = set()


@contextmanager
def running(command: list[str], **options) -> Iterator[subprocess.Popen]:
    """Run a program; it is ended if the block ends first. options: of Popen.

    To use it in another thread, call heed_signals in the main thread before.
    """
    if threading.current_thread() is threading.main_thread():
        heed_signals()
    end_if_told()
    process = subprocess.Popen(command, **options)
    started.add(process)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            process.wait()
        started.discard(process)


@contextmanager
def supervised(seconds: float, command: list[str], **options) -> Iterator[subprocess.Popen]:
    """Run a program under supervise.py, whose exit status it has. It is ended with all of its child
    processes after some seconds, when the block ends, and even if this process is killed (SIGKILL).

    options: of Popen. So that other signals end it, too, call leave_by_exit_on_signals before.
    """
    end_if_told()
    command = [sys.executable, SUPERVISOR, str(seconds), *command]
    # A session of its own, so that Ctrl-C in a terminal reaches only this process
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **options)
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()


def leave_by_exit_on_signals() -> None:
    """Let SIGINT, SIGTERM and SIGHUP end this process by SystemExit, so that programs are ended and
    tables printed before; further signals are ignored."""

    def leave(number: int, frame: object) -> None:
        for each in ENDS:
            signal.signal(each, signal.SIG_IGN)
        end_by_exit(number, frame)

    for number in ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, leave)


def heed_signals() -> None:
    """Let signals that would end this process at once also end the programs that it has started."""
    for number in ENDS:
        if number != signal.SIGINT and signal.getsignal(number) is end_at_once:
            signal.signal(number, end_all_at_once)


def end_all_at_once(number: int, frame: object) -> None:
    """A signal handler: end the programs, then this process."""
    end_all()
    end_at_once(number, frame)


def end_all() -> None:
    for process in list(started):
        with suppress(OSError):
            process.terminate()
