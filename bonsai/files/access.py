"""Reading and writing files with checks: of their kind, of their size, and of errors of the system.

The user may name a folder, a pipe that nobody writes to, or a file without an end. Each ends in an
error of one line, not in a program that hangs or fills the memory.
"""

import codecs
import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bonsai.files.atomic import replace_text, whole_file
from bonsai.system.errors import FULL, UserError, reason, why_not_written

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# The most bytes of a meta.json or of a tokenizer: parsed JSON takes up to 35 times its size in
# memory, and the largest known vocabularies have 5 MB.
SETTINGS = 16 << 20
KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
PIPES = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")  # pipes that have a writer
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn the system's error while reading a file into a UserError."""
    try:
        yield
    except OSError as e:
        raise UserError(f"cannot read {path}: {reason(e)}") from None


@contextlib.contextmanager
def writing(path: str | Path, hint: str = "") -> Iterator[None]:
    """Turn the system's error while writing a file into a UserError. hint: how to write to another
    place, if there is a way."""
    try:
        yield
    except OSError as e:
        if e.errno in FULL:
            raise UserError(
                f"the disk is full while writing {path}: free some space, or write to another disk"
                f"{hint}"
            ) from None
        elsewhere = f": write elsewhere{hint}" if hint else ""
        raise UserError(f"cannot write {path}: {why_not_written(e, path)}{elsewhere}") from None


def write_whole(path: str | Path, text: str) -> None:
    """Write a text file, all of it or nothing; its folder is made if it is missing. Raises
    UserError for errors of the disk."""
    with writing(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text)


def save_picture(figure, path: str | Path, **options) -> None:
    """Write a matplotlib figure, in the way that write_whole writes a text."""
    with writing(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as f:
            figure.savefig(f, format=Path(path).suffix[1:], **options)


def file_size(path: str | Path, name: str = "") -> int:
    """A file's size in bytes. Raises UserError if there is none, or if it is not a regular file."""
    name = name or str(path)
    try:
        with reading(name):
            status = os.stat(path)
    except ValueError as e:  # a null byte in its name
        raise UserError(f"cannot read {name!r}: {e}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in KINDS.items() if test(status.st_mode)), "something")
        raise UserError(f"cannot read {name}: it is {kind}, not a file")
    return status.st_size


def check_no_pipe(path: str | Path) -> None:
    """Raises UserError for a pipe: opening it would wait until another process reads from it."""
    with contextlib.suppress(OSError):
        if stat.S_ISFIFO(os.stat(path).st_mode):
            raise UserError(f"cannot write {path}: it is a pipe, not a file")


def read_bytes(path: str | Path, limit: int = SETTINGS, what: str = "") -> bytes:
    """All bytes of a file, or of the pipe that a shell makes for <(...). what: the content's name
    in messages. Raises UserError for more than `limit` bytes, before more are read."""
    name = f"{what} from {path}" if what else str(path)
    size = 0 if str(path).startswith(PIPES) else file_size(path, name)
    if size <= limit:
        with reading(name), open(path, "rb") as f:
            data = f.read(limit + 1)
        size = max(size, len(data))  # the file may have grown meanwhile
    if size > limit:
        raise UserError(f"cannot read {name}: it has more than {limit >> 20} MB")
    return data


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[BinaryIO]:
    """A large file, open for reading bytes. Raises UserError, here and within the `with` block, if
    the file cannot be read or its content does not fit into memory."""
    file_size(path)  # refuses pipes: opening one may wait for ever
    try:
        with reading(path), open(path, "rb") as f:
            yield f
    except MemoryError:
        raise UserError(
            f"the memory does not suffice to read {path}: free some, or raise its limit (ulimit -v)"
        ) from None


@contextlib.contextmanager
def bounded(size: int) -> Iterator[None]:
    """Limit this process to `size` more bytes of address space within the block; beyond them
    allocations raise MemoryError. It is for libraries that trust the sizes which a file states. Has
    an effect on Linux only."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = used + size
    limit = limit if before == resource.RLIM_INFINITY else min(limit, before)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def allow_open_files(more: int) -> None:
    """Allow this process to have `more` further files open, connections included, or as many as the
    system lets it have. Linux begins with 1024, macOS with 256."""
    try:
        import resource  # not on Windows
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in (hard, resource.RLIM_INFINITY):
        return
    wanted = soft + more if hard == resource.RLIM_INFINITY else min(soft + more, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def exists(path: str | Path) -> bool:
    """Whether the path exists. Raises UserError if the system does not allow to find out."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as e:
        raise UserError(f"cannot read {path}: {reason(e)}") from None
    except ValueError as e:  # a null byte in its name
        raise UserError(f"cannot read {str(path)!r}: {e}") from None
    return True


def lock_file(fd: int) -> bool | None:
    """Lock an open file without waiting. False: another process has it; None: not possible here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def not_utf8(path: str | Path, offset: int, beginning: bytes = b"") -> UserError:
    """The error for a file whose byte at `offset` is not UTF-8. beginning: its first bytes."""
    if beginning.startswith(UTF16):
        return UserError(f"{path} is not UTF-8 at byte {offset} but UTF-16: save it as UTF-8")
    return UserError(
        f"{path} is not UTF-8 at byte {offset}: convert it first, for example by iconv"
    )
