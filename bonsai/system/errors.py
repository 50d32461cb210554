"""One line for a user's mistake, a traceback for ours; and how signals end a program.

Code that finds a mistake of the user or of the environment (a missing file, ids outside the
vocabulary, a full disk) raises `UserError` with one line that says what is wrong and what to do.
Every program is started through `run`, which turns that into the line on stderr and exit status 1.
"""

import contextlib
import errno
import gc
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator
from functools import partial
from typing import Any, NoReturn

from bonsai.system.garbage import leave_alone_what_is_loaded

PROGRAM, PARENT = os.getpid(), os.getppid()  # when the program was started
told = 0  # a signal that is to end this program and whose exception may be lost; see end_if_told
BROKEN_PIPE = 13  # the number of SIGPIPE, also where there is no such signal
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHORT = ("allocate memory", "out of memory", "can't start new thread", "failed to map segment")
THREADS = ("can't start new thread", "Resource temporarily unavailable")  # Python's, a library's
UNMAPPED = re.compile(r"(/.*): failed to map segment")  # a library that could not be loaded
# what ends a program from outside, by the number of the signal, and what is said then
ENDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
if hasattr(signal, "SIGHUP"):  # not on Windows
    ENDS[signal.SIGHUP] = "the terminal was closed"


class UserError(Exception):
    """A mistake of the user or of the environment; its message is one line for the terminal."""

    quiet = False  # whether another process says the same, so that this one need not
    follows = False  # whether the error of another process has caused this one


def reason(e: OSError) -> str:
    """What the system says, such as "Permission denied" or "the disk is full"."""
    if e.errno == errno.EMFILE:
        return f"{e.strerror}: raise the limit (ulimit -n)"
    return "the disk is full" if e.errno in FULL else e.strerror or str(e)


def why_not_written(e: OSError, path: str | os.PathLike[str]) -> str:
    """Why `path` cannot be written, by what the system says. If a part of the path is a file, that
    is "File exists", which is put into better words."""
    if e.errno == errno.EEXIST and not os.path.lexists(path):
        return "a part of its path is no folder"
    return reason(e)


def why_no_folder(e: OSError) -> str:
    """Why a folder cannot be made or written into, by what the system says. "File exists" and "Not
    a directory" are put into better words."""
    if e.errno in (errno.EEXIST, errno.ENOTDIR):
        return "it, or a part of its path, is no folder"
    return reason(e)


def cannot_write_into(folder: object, e: OSError) -> str:
    """One line for a run's folder into which we cannot write."""
    if e.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"cannot write into {folder}: {why_no_folder(e)}: set --out_dir"
    advice = (
        "free some space or set another --out_dir" if e.errno in FULL else "set another --out_dir"
    )
    return f"cannot write into {folder} ({e.strerror or e}): {advice}"


def short_of_memory(e: BaseException) -> bool:
    """Whether the system had too little memory, for data or for another thread."""
    if library_not_to_be_run(e):
        return False
    if isinstance(e, MemoryError) or (isinstance(e, OSError) and e.errno == errno.ENOMEM):
        return True
    return any(word in str(e).lower() for word in SHORT)


def short_of_threads(e: BaseException) -> bool:
    """Whether another thread or process could not be started."""
    return any(word in str(e) for word in THREADS)


def runs_no_code(path: str | os.PathLike[str]) -> bool:
    """Whether a path, or what of it is there, is on a file system that is mounted noexec: libraries
    cannot be loaded from there."""
    path = os.path.abspath(path)
    while not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    with contextlib.suppress(OSError, AttributeError):  # not on Windows
        return bool(os.statvfs(path).f_flag & os.ST_NOEXEC)
    return False


def library_not_to_be_run(e: BaseException) -> str:
    """The library that could not be loaded as it is on such a file system; '' for other errors. The
    loader says no more than if memory is short."""
    found = UNMAPPED.search(str(e))
    return found[1] if found and runs_no_code(found[1]) else ""


def kept_from_compiling(e: BaseException) -> str:
    """What the system said, if torch.compile could not write its files, or not load what it made;
    '' for other errors."""
    if library := library_not_to_be_run(e):
        return f"no code may be run from the file system of {library} (noexec)"
    cause = getattr(e, "inner_exception", None)  # of those that it wraps
    if isinstance(cause, OSError):
        return reason(cause) + (f": {cause.filename}" if cause.filename else "")
    return "the disk is full" if "No space left on device" in str(cause) else ""


LONGEST = 1200  # characters of an error line

NO_MEMORY = (
    "out of memory: use a smaller batch_size or a smaller model, free some memory, or raise its "
    "limit (ulimit -v)"
)
NO_THREADS = (
    "the system starts no more threads: raise its limit on processes (ulimit -u; a container's: "
    "--pids-limit) or on memory (ulimit -v), or set OMP_NUM_THREADS=1"
)
ELSEWHERE = "free some space, or name another folder in TORCHINDUCTOR_CACHE_DIR"


def one_line(message: object) -> str:
    """A message as one line of bounded length, with escapes for what a terminal would obey: names
    in it may come from a file of a stranger's.

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
    tell_torchrun(message)
    if not getattr(message, "quiet", False):
        with contextlib.suppress(OSError, ValueError):
            print(f"error: {one_line(message)}", file=sys.stderr, flush=True)
    sys.exit(status)


def tell_torchrun(message: object) -> None:
    """If torchrun has started this process, have its report say why the process ended.

    The error with the earliest time stands there as the cause of all others; so one that follows
    from another process's is given a later one.
    """
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        when = int(time.time()) + 60 * getattr(message, "follows", False)
        told = {"message": one_line(message), "extraInfo": {"timestamp": str(when)}}
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as f:
            json.dump({"message": told}, f)  # the form of torch.distributed.elastic's own


def flush() -> None:
    """Flush what was printed. If nobody reads it any more, drop it and all that follows."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):  # else Python tries again at its exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def end_at_once(number: int, frame: object) -> None:
    """A signal handler for when nothing is to be saved: one line, and a signal's exit status."""
    if os.getpid() != PROGRAM:  # a forked process ends without a word
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    with contextlib.suppress(OSError):  # print is not safe in a signal handler
        os.write(2, f"error: {ENDS[number]}\n".encode())
    os._exit(128 + number)


def end_by_exit(number: int, frame: object) -> None:
    """A signal handler for when something is to be undone: raises SystemExit."""
    if os.getpid() != PROGRAM:
        end_at_once(number, frame)
    global told
    told = number
    with contextlib.suppress(OSError):
        os.write(2, f"error: {ENDS[number]}\n".encode())
    sys.exit(128 + number)


def end_by_interrupt(number: int, frame: object) -> None:
    """The handler of Ctrl-C while a program runs: like Python's own, but it is remembered."""
    global told
    told = number
    raise KeyboardInterrupt


def end_if_told() -> None:
    """Raise again the exception of a signal, if it was lost: a bare `except` in a library swallows
    it, and Python drops exceptions in callbacks and finalizers. (Its import system has a callback
    for each module: while libraries load, one Ctrl-C in a hundred or two is lost there.)

    To be called between the start of a program and its work, between the parts of the work, and
    before a result is put in its place. Does nothing in threads other than the main one, nor while
    the exception is on its way.
    """
    if not told or threading.current_thread() is not threading.main_thread():
        return
    if not isinstance(sys.exc_info()[1], (KeyboardInterrupt, SystemExit)):
        raise KeyboardInterrupt if told == signal.SIGINT else SystemExit(128 + told)


def heeded(numbers: Container[int] = (signal.SIGINT,)) -> None:
    """Forget that one of these signals came: what it was to end has ended."""
    global told
    if told in numbers:
        told = 0


def report_lost(report: Callable[[Any], object], lost: Any) -> None:
    """A sys.unraisablehook that keeps silent about what `end_if_told` will raise again."""
    if not told or not issubclass(lost.exc_type, (KeyboardInterrupt, SystemExit)):
        report(lost)


@contextlib.contextmanager
def interrupts_of_python() -> Iterator[None]:
    """A context for code that takes over Ctrl-C only from Python's own handler: asyncio.run."""
    ours = signal.getsignal(signal.SIGINT) is end_by_interrupt
    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, end_by_interrupt)


def by_interrupt(e: BaseException | None) -> bool:
    """Whether Ctrl-C caused an exception: Python before 3.12 raises a RuntimeError from it while a
    class is being made, and so do some libraries while they are imported."""
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


def raise_of_ours(e: BaseException) -> NoReturn:
    """Raise an exception that is a mistake of ours, for its traceback."""
    tell_torchrun(f"{type(e).__name__}: {e}")
    raise e


def run(*steps: Callable[[], object]) -> None:
    """Call `steps` as a program: the last one's value is the exit status, user errors are one line.

    Exit status: 0 done, 1 user error, 130 interrupted, 141 if nobody reads stdout any more (as for
    programs that SIGPIPE ends). Other exceptions keep their traceback. Characters that the
    terminal's encoding does not have are printed as escapes.
    """
    if signal.getsignal(signal.SIGINT) is end_at_once:  # from now on there may be files to tidy up
        signal.signal(signal.SIGINT, end_by_interrupt)
        sys.unraisablehook = partial(report_lost, sys.unraisablehook)
    if not gc.isenabled():  # startup.py did that; what was loaded meanwhile is never collected
        leave_alone_what_is_loaded()
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
        finally:  # also if the lost signal has caused another error
            if not status:  # else the program has said why it ends
                end_if_told()
        sys.stdout.flush()  # here, where errors are caught, and not when Python exits
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
            fail(NO_THREADS if short_of_threads(e) else NO_MEMORY)
        if said := kept_from_compiling(e):
            fail(f"torch.compile cannot keep what it makes ({said}): {ELSEWHERE}")
        raise_of_ours(e)
    except OSError as e:
        if e.errno == errno.ENOMEM:
            fail(NO_MEMORY)
        if e.errno == errno.EAGAIN and e.filename is None:  # of a fork
            fail(NO_THREADS)
        if e.errno in FULL:
            where = f" while writing {e.filename}" if e.filename else ""
            fail(f"the disk is full{where}: free some space or write elsewhere")
        if e.filename is None and e.errno not in (errno.EMFILE, errno.ENFILE, errno.EIO):
            raise_of_ours(e)
        fail(f"{e.filename or 'a file'} cannot be opened or written: {why_no_folder(e)}")
    except SystemExit:
        raise
    except BaseException as e:  # a library in Rust has errors that are no Exceptions
        if short_of_threads(e):
            fail(NO_THREADS)
        raise_of_ours(e)
