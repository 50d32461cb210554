"""Files and folders written whole or not at all: under a temporary name, which is then renamed."""

import contextlib
import errno
import os
import re
import secrets
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from bonsai.system.errors import ENDS, end_at_once, end_by_exit, end_if_told, heeded

# name.1a2b3c4d.tmp: each writer has a name of its own, so that two never write into one file
UNFINISHED = re.compile(r"(?P<name>.+)\.[0-9a-f]{8}\.tmp")


OPEN = ("/dev/fd/", "/dev/stdout", "/dev/stderr", "/proc/self/fd/")  # may be redirected to files


def temporary(path: Path) -> Path:
    """A name beside `path` that no other writer uses."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a device, a pipe or an open file of this process, such as /dev/null or
    /dev/stdout. Such a path is written into; a rename would replace the device itself."""
    if str(path).startswith(OPEN):
        return os.path.exists(path)
    with contextlib.suppress(OSError, ValueError):
        mode = os.stat(path).st_mode
        return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
    return False


@contextlib.contextmanager
def undone_by_signals(every: bool = False) -> Iterator[None]:
    """Within this block a signal that ends the program (SIGTERM, a closed terminal) raises an
    exception, as Ctrl-C does, so that unfinished files are removed.

    every: also if it has another handler than a program's first one, such as a benchmark's.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in ENDS:
            handler = signal.getsignal(number)
            other = handler not in (signal.SIG_IGN, None) and number != signal.SIGINT
            if handler is end_at_once or (every and other):
                before[number] = signal.signal(number, end_by_exit)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        heeded(before)


@contextlib.contextmanager
def whole_file(
    path: str | os.PathLike[str], place: Callable[[Path, Path], None] = os.replace
) -> Iterator[BinaryIO]:
    """A file to write bytes into. When the block ends, it is renamed to `path`.

    place: what puts it there, called with the temporary name and `path`.

    It is flushed to the disk before it is renamed, so a kill, a full disk or a power cut leaves the
    earlier file as it was. If the system (OSError) or the block raises an error, the temporary file
    is removed. A device or a pipe is written into directly.
    """
    path = Path(path)
    if place is os.replace and is_stream(path):
        with open(path, "ab") as f:  # appends, as stdout may be redirected to a file with content
            yield f
        return
    tmp = temporary(path)
    with undone_by_signals():
        try:
            with open(tmp, "xb") as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            end_if_told()
            place(tmp, path)
        except BaseException:
            with contextlib.suppress(OSError):
                tmp.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write files into. When the block ends, it is renamed to `path`.

    Raises FileExistsError if there is something already. If the system or the block raises an
    error, the temporary folder is removed.
    """
    path = Path(path)
    tmp = temporary(path)
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    with undone_by_signals():
        tmp.mkdir(parents=True)
        try:
            yield tmp
            sync_folder(tmp)
            end_if_told()
            os.rename(tmp, path)  # fails if another process has filled such a folder meanwhile
        except BaseException:
            shutil.rmtree(tmp, ignore_errors=True)
            raise
    sync_folder(path.parent)


def replace_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text as UTF-8. If that raises OSError, the earlier file stays."""
    with whole_file(path) as f:
        f.write(text.encode("utf-8"))


def put_if_free(tmp: Path, path: Path) -> None:
    """A `place` for whole_file that never replaces a file. Raises FileExistsError if another
    process has written one meanwhile."""
    try:
        os.link(tmp, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.rename(tmp, path)
    else:
        tmp.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, which keeps its content when another replaces the first one."""
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, if the system can do that."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
