"""Text files that people write, edit or read; needs the standard library only.

Some editors on Windows begin a file with a byte order mark, and some shells there write UTF-16. So
every file of this kind (a prompt, a key, questions, meta.json, a tokenizer) is read by `read_text`.
"""

import errno
import io
import os
from collections.abc import Iterable
from pathlib import Path

from bonsai.files.access import UTF16, read_bytes
from bonsai.system.errors import UserError, why_not_written
from bonsai.system.paths import resolve_path

LARGEST = 256 << 20  # bytes


def read_text(path: str | os.PathLike[str], what: str = "", limit: int = LARGEST) -> str:
    """The text of a file without its byte order mark, line ends as \\n.

    what: the content's name in messages, such as "the prompts". Raises UserError if the file cannot
    be read, has more than `limit` bytes, or is neither UTF-8 nor UTF-16 with a byte order mark.
    """
    text = decode_text(read_bytes(path, limit, what), f"{what} from {path}" if what else str(path))
    return io.IncrementalNewlineDecoder(None, translate=True).decode(text, final=True)


def text_or_file(text: str, what: str) -> str:
    """A text that a user gives, or the content of a file if it is given as `FILE:prompt.txt`."""
    if not text.startswith("FILE:"):
        return whole_text(text, what)
    if not (name := text.removeprefix("FILE:")):
        raise UserError(f"{what}: FILE: must name a file, as FILE:prompt.txt does")
    return read_text(resolve_path(name), what)


def whole_text(text: str, what: str) -> str:
    """A text that was typed, unchanged. Raises UserError if its bytes were not UTF-8: Python has
    turned them into lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise UserError(f"{what} is not UTF-8 from {text[e.start :][:20]!a} on") from None
    return text


def decode_text(data: bytes, name: str) -> str:
    """Bytes as text, line ends unchanged. name: the file's name in messages."""
    encoding = "UTF-16" if data.startswith(UTF16) else "UTF-8"
    try:
        text = data.decode("utf-16" if encoding == "UTF-16" else "utf-8-sig")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        message = f"cannot read {name}: byte {e.start}, in line {line}, is not {encoding}: "
        raise UserError(message + "save the file as UTF-8") from None
    return text


def is_same_file(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> bool:
    """Whether both exist and are the same file, even under different names."""
    try:
        return Path(a).is_file() and os.path.samefile(a, b)
    except (OSError, ValueError):  # no such file, or a name that none can have
        return False


def check_writable(
    path: str | os.PathLike[str], what: str, sources: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Make the folder of a file that will be written later. Raises UserError now, rather than after
    an hour's work, if the file cannot be written.

    path: '-' means stdout. what: the content's name in messages, such as "the results". sources:
    files that the program reads, which must not be overwritten; other names may be among them.
    """
    path = Path(path)
    if str(path) == "-":
        return
    if any(is_same_file(path, source) for source in sources):
        raise UserError(f"cannot write {what} to {path}: it is an input; name another file")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as e:
        raise UserError(f"cannot write {what} to {path}: {why_not_written(e, path)}") from None
