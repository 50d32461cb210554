"""Programs that a benchmark starts: they end with it, whatever ends it but SIGKILL."""

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from bonsai.system.errors import end_at_once, end_if_told

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
