"""One line for a user's mistake, a traceback for ours.

Code that finds a mistake of the user or of the environment (a missing file, ids outside the
vocabulary, a full disk) raises `UserError` with one line that says what is wrong and what to do.
Every program is started through `run`, which turns that into the line on stderr and exit status 1.
"""

import contextlib
import errno
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Container, Iterator
from functools import partial
from typing import Any, NoReturn

PROGRAM, PARENT = os.getpid(), os.getppid()  # as the program was started
told = 0  # the signal that is to end this program, from when its handler raises until it is heeded
BROKEN_PIPE = 13  # the number of SIGPIPE, also where there is no such signal
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHORT = ("allocate memory", "out of memory", "can't start new thread", "failed to map segment")
ENDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "the terminal was closed"}


class UserError(Exception):
    """A mistake of the user or of the environment; its message is one line for the terminal."""


def reason(e: OSError) -> str:
    """What the system says: "Permission denied", "the disk is full"."""
    return "the disk is full" if e.errno in FULL else e.strerror or str(e)


def why_not_written(e: OSError, path: str | os.PathLike[str]) -> str:
    """What the system says where `path` cannot be written; but "File exists", which is what it says
    where a part of the path is a file, is put into better words."""
    if e.errno == errno.EEXIST and not os.path.lexists(path):
        return "a part of its path is no folder"
    return reason(e)


def why_no_folder(e: OSError) -> str:
    """What the system says where a folder cannot be made or written into; but "File exists" and
    "Not a directory" are put into better words."""
    if e.errno in (errno.EEXIST, errno.ENOTDIR):
        return "it, or a part of its path, is no folder"
    return reason(e)


def cannot_write_into(folder: object, e: OSError) -> str:
    """One line for a run's folder in which the system lets us write nothing."""
    if e.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"cannot write into {folder}: {why_no_folder(e)}: set --out_dir"
    advice = (
        "free some space or set another --out_dir" if e.errno in FULL else "set another --out_dir"
    )
    return f"cannot write into {folder} ({e.strerror or e}): {advice}"


def short_of_memory(e: BaseException) -> bool:
    """Whether the system had no more memory, for data or for another thread."""
    if isinstance(e, MemoryError) or (isinstance(e, OSError) and e.errno == errno.ENOMEM):
        return True
    return any(word in str(e).lower() for word in SHORT)


def kept_from_compiling(e: BaseException) -> str:
    """What the system said where torch.compile could not keep what it makes; '' of other errors,
    and its own."""
    cause = getattr(e, "inner_exception", None)  # of those that it wraps
    if isinstance(cause, OSError):
        return reason(cause) + (f": {cause.filename}" if cause.filename else "")
    return "the disk is full" if "No space left on device" in str(cause) else ""


LONGEST = 1200  # characters of an error line

NO_MEMORY = (
    "out of memory: use a smaller batch_size or a smaller model, free some memory, or raise its "
    "limit (ulimit -v)"
)
ELSEWHERE = "free some space, or name another folder in TORCHINDUCTOR_CACHE_DIR"


def one_line(message: object) -> str:
    """A message as one line of bounded length: names in it may come from a file of anyone's, and
    what a terminal would obey is shown as an escape.

    >>> one_line("a\\n b \\x1b[2J")
    'a b \\\\x1b[2J'
    """
    text = " ".join(str(message).split())
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 200]} ... {text[-200:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def fail(message: object, status: int = 1) -> NoReturn:
    """Print one line on stderr and end this process with `status`."""
    flush()
    with contextlib.suppress(OSError, ValueError):
        print(f"error: {one_line(message)}", file=sys.stderr, flush=True)
    sys.exit(status)


def flush() -> None:
    """Send what was printed on its way; where nobody takes it, it is dropped, and what follows."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):  # else Python tries again at its exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def end_at_once(number: int, frame: object) -> None:
    """A signal handler where nothing is to be saved: one line, and the status of a signal's end."""
    if os.getpid() != PROGRAM:  # a process that was forked off ends without a word
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    with contextlib.suppress(OSError):  # print is not safe in a signal handler
        os.write(2, f"error: {ENDS[signal.Signals(number).name]}\n".encode())
    os._exit(128 + number)


def end_by_exit(number: int, frame: object) -> None:
    """A signal handler where something is to be undone, on the way out of the blocks around it."""
    if os.getpid() != PROGRAM:
        end_at_once(number, frame)
    global told
    told = number
    with contextlib.suppress(OSError):
        os.write(2, f"error: {ENDS[signal.Signals(number).name]}\n".encode())
    sys.exit(128 + number)


def end_by_interrupt(number: int, frame: object) -> None:
    """The signal handler of Ctrl-C while a program runs: Python's own, but it is remembered."""
    global told
    told = number
    raise KeyboardInterrupt


def end_if_told() -> None:
    """Raise anew what a signal has raised, where that was lost: a library's bare `except` takes it,
    and out of a callback or a finalizer Python lets no exception. (Its import system has a callback
    at each module: while libraries load, one Ctrl-C in a hundred or two is lost there.)

    To be called where a program passes from its start to its work, between the parts of the work,
    and before what it has made takes its place. Does nothing in other threads than the main one,
    nor while the exception is on its way.
    """
    if not told or threading.current_thread() is not threading.main_thread():
        return
    if not isinstance(sys.exc_info()[1], (KeyboardInterrupt, SystemExit)):
        raise KeyboardInterrupt if told == signal.SIGINT else SystemExit(128 + told)


def heeded(numbers: Container[int] = (signal.SIGINT,)) -> None:
    """What one of these signals was to end has ended; the program may go on."""
    global told
    if told in numbers:
        told = 0


def report_lost(report: Callable[[Any], object], lost: Any) -> None:
    """As sys.unraisablehook: says nothing of what `end_if_told` will raise anew."""
    if not told or not issubclass(lost.exc_type, (KeyboardInterrupt, SystemExit)):
        report(lost)


@contextlib.contextmanager
def interrupts_of_python() -> Iterator[None]:
    """A block, such as asyncio.run, that takes over Ctrl-C where it finds Python's own handler."""
    ours = signal.getsignal(signal.SIGINT) is end_by_interrupt
    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, end_by_interrupt)


def by_interrupt(e: BaseException | None) -> bool:
    """Whether Ctrl-C is the cause: where it ends the making of a class, Python before 3.12 raises a
    RuntimeError from it, and libraries do so where it ends their import."""
    while e is not None and not isinstance(e, KeyboardInterrupt):
        e = e.__cause__
    return e is not None


def interrupted() -> None:
    """End this process as Ctrl-C does."""
    heeded()
    if signal.getsignal(signal.SIGINT) is end_by_interrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends at once
    with contextlib.suppress(OSError, ValueError):
        print(file=sys.stderr)
    fail("interrupted", 130)


def run(*steps: Callable[[], object]) -> None:
    """Call `steps` as a program: the last one's value is the exit status, user errors are one line.

    Exit status: 0 done, 1 user error, 130 interrupted, 141 where nobody reads what it prints any
    more, as of other programs that SIGPIPE ends; other exceptions keep their traceback.
    A character that the terminal's encoding lacks is printed as an escape.
    """
    if signal.getsignal(signal.SIGINT) is end_at_once:  # from here on there may be things to tidy
        signal.signal(signal.SIGINT, end_by_interrupt)
        sys.unraisablehook = partial(report_lost, sys.unraisablehook)
    if not gc.isenabled():  # since startup.py; what was loaded meanwhile stays
        gc.freeze()
        gc.enable()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not, and it may be closed
            stream.reconfigure(errors="backslashreplace")
    try:
        status = 0
        try:
            status = [step() for step in steps][-1]
        except SystemExit as e:
            status = e.code
        finally:  # also where another error has come of it
            if not status:  # else it has said why it ends
                end_if_told()
        sys.stdout.flush()  # what is wrong with it is caught here, not where Python exits
        sys.exit(status)
    except UserError as e:
        fail(e)
    except KeyboardInterrupt:
        interrupted()
    except BrokenPipeError:  # `| head` closed our stdout: not worth a word
        flush()
        sys.exit(128 + BROKEN_PIPE)
    except (MemoryError, RuntimeError, ImportError) as e:
        if by_interrupt(e):
            interrupted()
        if short_of_memory(e):
            fail(NO_MEMORY)
        if said := kept_from_compiling(e):
            fail(f"torch.compile cannot keep what it makes ({said}): {ELSEWHERE}")
        raise
    except OSError as e:
        if e.errno == errno.ENOMEM:
            fail(NO_MEMORY)
        if e.errno in FULL:
            where = f" while writing {e.filename}" if e.filename else ""
            fail(f"the disk is full{where}: free some space or write elsewhere")
        if e.filename is None and e.errno not in (errno.EMFILE, errno.ENFILE, errno.EIO):
            raise
        fail(f"{e.filename or 'a file'} cannot be opened or written: {why_no_folder(e)}")
