"""Programs that a benchmark starts: they end with it, whatever ends it but SIGKILL."""

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
    """A program, which is ended where the block ends first. options: of Popen.

    From a thread: call heed_signals in the main one before.
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
    """A program that is ended after some seconds, where the block ends first, and even where this
    process is killed (SIGKILL); with all that it has started, and its status is supervise.py's.

    options: of Popen. To end it on other signals, too: call leave_by_exit_on_signals before.
    """
    end_if_told()
    command = [sys.executable, SUPERVISOR, str(seconds), *command]
    # a session of its own: Ctrl-C in a terminal is for this process alone
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **options)
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()


def leave_by_exit_on_signals() -> None:
    """Let SIGINT, SIGTERM and SIGHUP end this process by SystemExit, so that what is to be ended
    and said comes to its end; no second signal cuts it short."""

    def leave(number: int, frame: object) -> None:
        for name in ENDS:
            signal.signal(signal.Signals[name], signal.SIG_IGN)
        end_by_exit(number, frame)

    for name in ENDS:
        if signal.getsignal(signal.Signals[name]) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.Signals[name], leave)


def heed_signals() -> None:
    """Where a signal would end this process at once, let it end what was started, too."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is end_at_once:
            signal.signal(number, end_all_at_once)


def end_all_at_once(number: int, frame: object) -> None:
    """A signal handler."""
    end_all()
    end_at_once(number, frame)


def end_all() -> None:
    for process in list(started):
        with suppress(OSError):
            process.terminate()
