"""Files of text: found, and read as documents.

Documents come as pieces of UTF-8, so that a text file of any size passes in bounded memory. A piece
ends where no token crosses (see `safe_cut`): the ids of the pieces, put together, are the ids of
the whole. To read another format: a function, and a line in READERS.
"""

import codecs
import contextlib
import glob
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from bonsai.errors import UserError
from bonsai.progress import Advance, no_progress
from bonsai.tokenizers import well_formed

PIECE = 1 << 20  # bytes, about: a longer text comes in several pieces
BLOCK = 1 << 18  # bytes that are read at a time


class Piece(NamedTuple):
    """A document, or a part of one."""

    data: bytes  # UTF-8
    first: bool  # the document begins here
    last: bool  # the document ends here
    position: int  # bytes of its file that have been read so far
    size: int  # bytes of its file

    @property
    def whole(self) -> bool:
        return self.first and self.last


class Options(NamedTuple):
    """text_column: field of a .jsonl or .parquet row that holds the text.
    split_on: what stands between the documents of one text file; empty: a file is a document."""

    text_column: str = "text"
    split_on: str = ""


DEFAULTS = Options()

# -- finding files --------------------------------------------------------------------------------


def find_files(
    spec: str, bases: Sequence[Path] = (Path(),), endings: Sequence[str] = ()
) -> list[Path]:
    """The files that `--input=` names: a file, a folder (all known files below it), a pattern
    with * ? or [, or several of these between commas. Relative ones are tried from each base.
    `endings`: of further files that are plain text. Raises UserError for what is not there."""
    if not spec:
        raise UserError("no input: name a file, a folder or a pattern with --input=PATH")
    known = (*READERS, *endings)
    found: dict[Path, None] = {}  # a set that keeps its order
    parts = [spec] if any((base / spec).exists() for base in bases) else spec.split(",")
    for part in filter(None, map(str.strip, parts)):
        found.update(dict.fromkeys(_find(part, bases, known)))
    return list(found)


def _find(part: str, bases: Sequence[Path], known: tuple[str, ...]) -> list[Path]:
    part = os.path.expanduser(part)
    for path in (base / part for base in bases):
        if path.is_dir():
            if files := _below(path, known):
                return files
            raise UserError(f"no {', '.join(known)} file in the folder {path}")
        if path.exists():
            if not path.name.lower().endswith(known):
                raise UserError(f"cannot read {path}: known are {', '.join(known)} files")
            return [path]
    if glob.has_magic(part):
        for base in bases:
            matches = map(Path, glob.glob(str(base / part), recursive=True))
            files = sorted(f for f in matches if f.name.lower().endswith(known) and f.is_file())
            if files:
                return files
        raise UserError(f"no {', '.join(known)} file matches {part}")
    raise UserError(f"no such file or folder: {part}")


def _below(folder: Path, known: tuple[str, ...]) -> list[Path]:
    """The files below a folder, but for hidden ones, in the order of their paths' parts."""
    found = []
    for at, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.join(at, name)
            for name in names
            if name.lower().endswith(known) and not name.startswith(".")
        ]
    return [Path(file) for file in sorted(found, key=lambda file: file.split(os.sep))]


# -- reading documents ----------------------------------------------------------------------------


def read_pieces(
    files: Iterable[Path],
    options: Options = DEFAULTS,
    progress: Advance = no_progress,
    keep_empty: bool = False,
    heads: bool = False,
) -> Iterator[Piece]:
    """The documents of the files, in order; null and empty ones are left out unless keep_empty.

    progress: is called with the bytes of the files as they are read.
    heads: only the beginnings of the documents are wanted: a long text file is not read to its end.
    Raises UserError, naming the place, for bad input.
    """
    for file in files:
        done = 0
        try:
            size = file.stat().st_size
            if size == 0:
                raise UserError(f"{file} is empty")
            reader = _reader(file)
            for piece in reader(file, size, options):
                progress(piece.position - done)
                done = piece.position
                if piece.data or keep_empty or not piece.whole:
                    yield piece
                if heads and not piece.last and reader is _read_text and not options.split_on:
                    break
            progress(size - done)
        except OSError as e:
            raise UserError(f"cannot read {file}: {e.strerror or e}") from None


def _reader(path: Path) -> Callable[[Path, int, Options], Iterator[Piece]]:
    """By the end of the file's name; what has another end was named as text by the user."""
    ends = path.name.lower().endswith
    return next((read for end, read in READERS.items() if ends(end)), _read_text)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The content of a file, unpacked, and the file on the disk, which tells how far we are."""
    name = path.name.lower()
    with open(path, "rb", buffering=0) as raw:
        if name.endswith(".gz"):
            with gzip.open(raw, "rb") as unpacked:
                try:
                    yield unpacked, raw
                except EOFError:
                    raise _damaged(path, "it is cut short") from None
                except (zlib.error, gzip.BadGzipFile) as e:
                    raise _damaged(path, f"not valid gzip ({e})") from None
        elif name.endswith(".zst"):
            with _Zstd(path, raw) as unpacked:
                yield unpacked, raw
        else:
            yield raw, raw


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"cannot read {path}: {reason}; copy or download it again")


def _read_text(path: Path, size: int, options: Options) -> Iterator[Piece]:
    """Line ends become \\n, as in Python's text mode; a byte order mark goes."""
    border = options.split_on.encode("utf-8")
    with _opened(path) as (file, raw):
        parts: list[bytes] = []  # of the text that no piece holds yet
        length, wanted, first, position = 0, PIECE, True, 0
        for block in _text_blocks(path, file):
            parts.append(block)
            length += len(block)
            if length < wanted:
                continue
            text = b"".join(parts)
            position = raw.tell() if file is not raw else raw.tell() - len(block)
            if border:
                *documents, text = text.split(border)
                for document in documents:
                    yield Piece(document, first, True, position, size)
                    first = True
            # A border that the next block completes must not be cut.
            cut = 0 if len(text) < PIECE else safe_cut(text[: len(text) - len(border)])
            if cut:
                yield Piece(text[:cut], first, False, position, size)
                first = False
            parts, length = [text[cut:]], len(text) - cut
            wanted = max(PIECE, 2 * length)
        *documents, text = b"".join(parts).split(border) if border else [b"".join(parts)]
        for document in documents:
            yield Piece(document, first, True, size, size)
            first = True
    yield Piece(text, first, True, size, size)


def _text_blocks(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """The text of a file by and by: valid UTF-8, every block with whole characters, \\n only."""
    start = 0  # of `block` in the file
    rest = b""  # the last bytes of a block: a character that goes on in the next, or a \r
    while True:
        data = file.read(BLOCK)
        block = rest + data if rest else data
        if start == 0 and block.startswith(codecs.BOM_UTF8):
            start, block = 3, block[3:]
        end = len(block)
        if not block.isascii():
            try:
                _, end = codecs.utf_8_decode(block, "strict", not data)
            except UnicodeDecodeError as e:
                raise _not_utf8(path, start + e.start) from None
        if data and block.endswith(b"\r", 0, end):  # \n may follow
            end -= 1
        start += end
        rest = block[end:]
        if rest:
            block = block[:end]
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        yield block
        if not data:
            return


def _not_utf8(path: Path, offset: int) -> UserError:
    return UserError(
        f"{path} is not UTF-8 at byte {offset}: convert it first, for example by iconv"
    )


def safe_cut(text: str | bytes) -> int:
    """The last place in `text` where cutting changes no token id, 0 if there is none.

    That is behind a newline between two characters that are not white space: in the patterns of
    GPT-2 and GPT-4 such a newline ends a chunk, whether more text follows or not.
    """
    end, newline = len(text), "\n" if isinstance(text, str) else b"\n"
    while (at := text.rfind(newline, 1, end - 1)) > 0:
        before, after = text[max(at - 4, 0) : at], text[at + 1 : at + 5]
        if isinstance(text, bytes):  # a character has up to four
            before, after = before.decode("utf-8", "ignore"), after.decode("utf-8", "ignore")
        if not before[-1:].isspace() and not after[:1].isspace():
            return at + 1
        end = at + 1
    return 0


def _read_jsonl(path: Path, size: int, options: Options) -> Iterator[Piece]:
    column = options.text_column
    start = 0  # of the line, in bytes
    with _opened(path) as (file, raw):
        lines = file if file is not raw else open(path, "rb")  # noqa: SIM115 - closed below
        with contextlib.closing(lines):
            for number, line in enumerate(lines, 1):
                if number == 1 and line.startswith(codecs.BOM_UTF8):
                    start, line = 3, line[3:]
                if line.strip():
                    text = _json_text(path, number, start, line, column)
                    position = start + len(line) if file is raw else raw.tell()
                    yield Piece(_utf8(text), True, True, position, size)
                start += len(line)


def _json_text(path: Path, number: int, start: int, line: bytes, column: str) -> str:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise _not_utf8(path, start + e.start) from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} line {number} is not valid JSON: {e}") from None
    if not isinstance(row, dict):
        raise UserError(f'{path} line {number} is not a JSON object such as {{"text": "..."}}')
    if column not in row:
        raise _no_column(f"{path} line {number}", column, row)
    text = row[column]
    if not isinstance(text, str | None):
        raise UserError(
            f"{path} line {number}: the field {column!r} holds no text but {text!r:.40}"
        )
    return text or ""


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, from a JSON escape
        return well_formed(text).encode("utf-8")


def _read_parquet(path: Path, size: int, options: Options) -> Iterator[Piece]:
    pa = _pyarrow(".parquet")
    import pyarrow.parquet as pq

    column = options.text_column
    try:
        with pq.ParquetFile(path) as f:
            schema, rows = f.schema_arrow, 0
            if column not in schema.names:
                raise _no_column(str(path), column, schema.names)
            kind = schema.field(column).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise UserError(f"{path}: the column {column!r} holds no text but {kind}")
            for batch in f.iter_batches(batch_size=256, columns=[column]):
                rows += batch.num_rows
                texts = batch.column(0)
                texts = texts.dictionary_decode() if pa.types.is_dictionary(texts.type) else texts
                texts.validate(full=True)  # that they are UTF-8
                for data in texts.cast(pa.large_binary()).to_pylist():
                    position = size * rows // f.metadata.num_rows
                    yield Piece(data or b"", True, True, position, size)
    except pa.ArrowException as e:
        raise UserError(f"{path} is damaged or no parquet file: {e}") from None


def _no_column(where: str, column: str, names: Iterable[str]) -> UserError:
    return UserError(
        f"{where} has no field {column!r} but {', '.join(map(repr, names)) or 'none'}: "
        f"choose with --text_column="
    )


def _pyarrow(kind: str):
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"reading {kind} files needs pyarrow: pip install pyarrow") from None
    return pyarrow


class _Zstd:
    """A zstd file, unpacked by pyarrow; a context manager that says what is wrong with it."""

    def __init__(self, path: Path, raw: BinaryIO):
        self.path, self._pa = path, _pyarrow(".zst")
        self._file = self._pa.CompressedInputStream(raw, "zstd")
        self._ended = False

    def __enter__(self) -> "_Zstd":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except (OSError, self._pa.ArrowException) as e:
            raise _damaged(self.path, f"cut short or not valid zstd ({e})") from None

    def __iter__(self) -> Iterator[bytes]:
        rest: list[bytes] = []
        while block := self.read(BLOCK):
            *lines, end = block.split(b"\n")
            for line in lines:
                yield b"".join([*rest, line, b"\n"])
                rest = []
            rest.append(end)
        if any(rest):
            yield b"".join(rest)

    def close(self) -> None:
        pass


READERS: dict[str, Callable[[Path, int, Options], Iterator[Piece]]] = {
    ".txt": _read_text,
    ".txt.gz": _read_text,
    ".txt.zst": _read_text,
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".jsonl.zst": _read_jsonl,
    ".parquet": _read_parquet,
}


def read_text(path: Path) -> str:
    """All of one text file, whatever its name. Raises UserError if there is nothing to read."""
    try:
        with open(path, "rb", buffering=0) as f:
            text = b"".join(_text_blocks(path, f)).decode("utf-8")
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None
    if not text:
        raise UserError(f"{path} is empty")
    return text
