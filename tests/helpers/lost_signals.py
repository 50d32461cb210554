"""A signal in a moment in which its exception is lost, as it is in some moments of a library."""

import contextlib
import signal
import sys
import weakref
from collections.abc import Iterator

from bonsai.system import errors


def in_a_callback(number: int = signal.SIGINT) -> None:
    """As in Python's import system, which has one at the end of each module's import."""

    class Lock:
        pass

    lock = Lock()
    reference = weakref.ref(lock, lambda _: signal.raise_signal(number))
    del lock
    assert reference() is None


def in_a_bare_except(number: int = signal.SIGINT) -> None:
    """As while torch chooses what a compiled step keeps."""
    with contextlib.suppress(BaseException):
        signal.raise_signal(number)


WAYS = [in_a_callback, in_a_bare_except]


@contextlib.contextmanager
def handled_as_in(moment) -> Iterator[None]:
    """Signals as in a program of ours, with this handler of Ctrl-C; afterwards as they were."""
    before = {number: signal.getsignal(number) for number in errors.ENDS}
    hook = sys.unraisablehook
    signal.signal(signal.SIGINT, moment)
    try:
        yield
    finally:
        errors.told, sys.unraisablehook = 0, hook
        for number, handler in before.items():
            signal.signal(number, handler)
