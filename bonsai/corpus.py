"""Text on its way to a data set: found, read as documents, split, tokenized.

Documents come as pieces, so that a text file of any size passes in bounded memory. A piece ends
where no tokenizer here joins characters across (see `_safe_cut`): the ids of the pieces, put
together, are the ids of the whole.
"""

import codecs
import glob
import gzip
import hashlib
import io
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from bonsai.errors import UserError
from bonsai.tokenizers import Tokenizer, well_formed
from bonsai.writer import Writer

PIECE = 4 << 20  # characters, about: a longer .txt file comes in several pieces
BATCH = 8 << 20  # characters that are tokenized together
LINE_SECONDS = 30  # between progress lines where there is no terminal

Advance = Callable[[int], object]  # is told how many bytes have been read since the last call


def no_progress(count: int) -> None:
    pass


class Piece(NamedTuple):
    """A document, or a part of one."""

    text: str
    first: bool  # the document begins here
    last: bool  # the document ends here
    position: int  # bytes of its file that have been read so far


# -- finding files --------------------------------------------------------------------------------


def find_files(spec: str, bases: Sequence[Path] = (Path(),)) -> list[Path]:
    """The files that `--input=` names: a file, a folder (all known files below it), a pattern
    with * ? or [, or several of these between commas. Relative ones are tried from each base.
    Raises UserError for what is not there."""
    if not spec:
        raise UserError("no input: name a file, a folder or a pattern with --input=PATH")
    found: dict[Path, None] = {}  # a set that keeps its order
    parts = [spec] if any((base / spec).exists() for base in bases) else spec.split(",")
    for part in filter(None, map(str.strip, parts)):
        found.update(dict.fromkeys(_find(part, bases)))
    return list(found)


def _find(part: str, bases: Sequence[Path]) -> list[Path]:
    part = os.path.expanduser(part)
    for path in (base / part for base in bases):
        if path.is_dir():
            files = sorted(
                file
                for file in path.rglob("*")
                if _reader(file) and file.is_file() and not _hidden(file.relative_to(path))
            )
            if not files:
                raise UserError(f"no {', '.join(READERS)} file in the folder {path}")
            return files
        if path.exists():
            if not _reader(path):
                raise UserError(f"cannot read {path}: known are {', '.join(READERS)} files")
            return [path]
    if glob.has_magic(part):
        for base in bases:
            matches = map(Path, glob.glob(str(base / part), recursive=True))
            files = sorted(file for file in matches if file.is_file() and _reader(file))
            if files:
                return files
        raise UserError(f"no {', '.join(READERS)} file matches {part}")
    raise UserError(f"no such file or folder: {part}")


def _hidden(path: Path) -> bool:
    return any(name.startswith(".") for name in path.parts)


def _reader(path: Path) -> Callable | None:
    return next((read for end, read in READERS.items() if path.name.lower().endswith(end)), None)


# -- reading documents ----------------------------------------------------------------------------


def read_pieces(
    files: Iterable[Path],
    text_column: str = "text",
    progress: Advance = no_progress,
    keep_empty: bool = False,
) -> Iterator[Piece]:
    """The documents of .txt (one each), .jsonl, .jsonl.gz and .parquet files (one per row, in the
    field `text_column`), in order; null and empty texts are left out unless keep_empty. `progress`
    is called with the bytes of the files as they are read. Raises UserError, naming the place, for
    bad input."""
    for file in files:
        done = 0
        try:
            if file.stat().st_size == 0:
                raise UserError(f"{file} is empty")
            for piece in _reader(file)(file, text_column):
                progress(piece.position - done)
                done = piece.position
                whole = piece.first and piece.last
                if piece.text or keep_empty or not whole:
                    yield piece
            progress(file.stat().st_size - done)
        except OSError as e:
            raise UserError(f"cannot read {file}: {e.strerror or e}") from None


def _read_txt(path: Path, text_column: str) -> Iterator[Piece]:
    """Line ends become \\n, as in Python's text mode; a byte order mark goes."""
    utf8 = codecs.getincrementaldecoder("utf-8")()
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    text, first = "", True
    with open(path, "rb") as f:
        position = 3 if f.read(3) == codecs.BOM_UTF8 else 0
        f.seek(position)
        while block := f.read(1 << 20):
            held = len(utf8.getstate()[0])  # bytes of a character that the last block cut
            try:
                text += decoder.decode(block)
            except UnicodeDecodeError as e:
                raise _not_utf8(path, position - held + e.start) from None
            position += len(block)
            if len(text) >= PIECE and (cut := _safe_cut(text)):
                yield Piece(text[:cut], first, False, position)
                text, first = text[cut:], False
        held = len(utf8.getstate()[0])
        try:
            text += decoder.decode(b"", final=True)
        except UnicodeDecodeError as e:
            raise _not_utf8(path, position - held + e.start) from None
    yield Piece(text, first, True, position)


def _not_utf8(path: Path, offset: int) -> UserError:
    return UserError(
        f"{path} is not UTF-8 at byte {offset}: convert it first, for example by iconv"
    )


def _safe_cut(text: str) -> int:
    """The last place in `text` where cutting changes no token id, 0 if there is none.

    That is behind a newline between two characters that are not white space: in the patterns of
    GPT-2 and GPT-4 such a newline ends a chunk, whether more text follows or not.
    """
    end = len(text)
    while (newline := text.rfind("\n", 1, end - 1)) > 0:
        if not text[newline - 1].isspace() and not text[newline + 1].isspace():
            return newline + 1
        end = newline + 1
    return 0


def _read_jsonl(path: Path, text_column: str) -> Iterator[Piece]:
    with open(path, "rb") as f:
        yield from _json_lines(path, text_column, f, f)


def _read_jsonl_gz(path: Path, text_column: str) -> Iterator[Piece]:
    with open(path, "rb") as f, gzip.open(f, "rb") as lines:
        try:
            yield from _json_lines(path, text_column, lines, f)
        except (EOFError, zlib.error, gzip.BadGzipFile) as e:
            reason = "it is cut short" if isinstance(e, EOFError) else f"not valid gzip ({e})"
            raise UserError(f"cannot read {path}: {reason}; copy or download it again") from None


def _json_lines(path: Path, column: str, lines: BinaryIO, raw: BinaryIO) -> Iterator[Piece]:
    """`raw` is the file on the disk, which tells how far we are."""
    start = 0  # of the line, in bytes
    for number, line in enumerate(lines, 1):
        if number == 1 and line.startswith(codecs.BOM_UTF8):
            start, line = 3, line[3:]
        if line.strip():
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as e:
                raise _not_utf8(path, start + e.start) from None
            except (ValueError, RecursionError) as e:
                raise UserError(f"{path} line {number} is not valid JSON: {e}") from None
            if not isinstance(row, dict):
                raise UserError(
                    f'{path} line {number} is not a JSON object such as {{"text": "..."}}'
                )
            if column not in row:
                raise _no_column(f"{path} line {number}", column, row)
            text = row[column]
            if not isinstance(text, str | None):
                raise UserError(
                    f"{path} line {number}: the field {column!r} holds no text but {text!r:.40}"
                )
            yield Piece(well_formed(text or ""), True, True, raw.tell())
        start += len(line)


def _read_parquet(path: Path, text_column: str) -> Iterator[Piece]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError("reading .parquet files needs pyarrow: pip install pyarrow") from None
    try:
        with pq.ParquetFile(path) as f:
            schema, rows, size = f.schema_arrow, 0, path.stat().st_size
            if text_column not in schema.names:
                raise _no_column(str(path), text_column, schema.names)
            kind = schema.field(text_column).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise UserError(f"{path}: the column {text_column!r} holds no text but {kind}")
            for batch in f.iter_batches(batch_size=256, columns=[text_column]):
                rows += batch.num_rows
                for text in batch.column(0).to_pylist():
                    yield Piece(text or "", True, True, size * rows // f.metadata.num_rows)
    except (pa.ArrowException, UnicodeDecodeError) as e:
        raise UserError(f"{path} is damaged or no parquet file: {e}") from None


def _no_column(where: str, column: str, names: Iterable[str]) -> UserError:
    return UserError(
        f"{where} has no field {column!r} but {', '.join(map(repr, names)) or 'none'}: "
        f"choose with --text_column="
    )


READERS: dict[str, Callable[[Path, str], Iterator[Piece]]] = {  # by the end of the file's name
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl_gz,
    ".parquet": _read_parquet,
}


def whole_documents(pieces: Iterable[Piece]) -> Iterator[str]:
    """The documents in one string each."""
    text: list[str] = []
    for piece in pieces:
        text.append(piece.text)
        if piece.last:
            yield "".join(text)
            text = []


def read_text(path: Path) -> str:
    """All of one text file, whatever its name. Raises UserError if there is nothing to read."""
    try:
        text = "".join(piece.text for piece in _read_txt(path, ""))
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None
    if not text:
        raise UserError(f"{path} is empty")
    return text


class Progress:
    """How far we are: a bar with rate and time left on a terminal, else a line now and then."""

    def __init__(self, total: int, unit: str = "B", label: str = "tokenizing"):
        self.total, self.unit, self.label = total, unit, label
        self.done, self.start = 0, time.monotonic()
        self._next_line = self.start + LINE_SECONDS
        self._bar = tqdm(total=total, unit=unit, unit_scale=True, desc=label, disable=None)

    def advance(self, count: int) -> None:
        self.done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            rate = self.done / (now - self.start)
            left = (self.total - self.done) / rate / 60 if rate else float("inf")
            print(
                f"{self.label}: {100 * self.done / max(self.total, 1):.0f}%, "
                f"{tqdm.format_sizeof(rate)}{self.unit}/s, {left:.0f} min left",
                flush=True,
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


# -- splitting ------------------------------------------------------------------------------------

Part = tuple[str, str, bool]  # split, text, whether the document ends here


def document_key(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_text(text: str, train_fraction: float) -> Iterator[Part]:
    """One text cut as nanoGPT cuts it: the first int(n * train_fraction) characters are "train"."""
    border = int(len(text) * train_fraction)
    for split, start, end in (("train", 0, border), ("val", border, len(text))):
        while end - start > PIECE and (cut := _safe_cut(text[start : start + PIECE])):
            yield split, text[start : start + cut], False
            start += cut
        yield split, text[start:end], True


def split_documents(
    read: Callable[[Advance], Iterable[Piece]],
    val_fraction: float,
    progress: Advance = no_progress,
) -> Iterator[Part]:
    """Send each document to "train" or "val" by a hash of its text (of its first piece, if it has
    several), so that the split depends neither on order nor on chance and equal documents stay
    together. `read` gets who to tell about progress; it is called twice, first for a look at the
    beginning, which is not progress.

    In a small corpus, where chance could leave "val" empty, the documents with the smallest hashes
    make it, at least one. A single document is cut: its end is "val".
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}: give a number between 0 and 1, say 0.05")
    enough = max(1000, round(20 / val_fraction))  # then chance leaves val empty once in e^20
    keys: list[float] = []
    size = 0
    for piece in read(no_progress):
        size += len(piece.text.encode("utf-8"))
        if piece.first:
            keys.append(document_key(piece.text))
            if len(keys) >= enough:
                break
    if not keys:
        raise UserError("there is no text in the input: every document is empty")
    if len(keys) == 1:
        yield from _cut(read(progress), size - round(size * val_fraction))
        return
    limit = val_fraction
    if len(keys) < enough:
        distinct = sorted(set(keys))
        if len(distinct) == 1:
            raise UserError(f"all {len(keys)} documents are the same: nothing to validate with")
        limit = distinct[min(max(1, round(val_fraction * len(distinct))), len(distinct) - 1)]
    split = ""
    for piece in read(progress):
        if piece.first:
            split = "val" if document_key(piece.text) < limit else "train"
        yield split, piece.text, piece.last


def _cut(pieces: Iterable[Piece], train_bytes: int) -> Iterator[Part]:
    """Cut one document behind a line end, if there is one near, at or after `train_bytes`."""
    seen = 0
    for piece in pieces:
        data = piece.text.encode("utf-8")
        if seen + len(data) <= train_bytes:
            yield "train", piece.text, seen + len(data) == train_bytes
        elif seen >= train_bytes:
            yield "val", piece.text, piece.last
        else:
            cut = train_bytes - seen
            while cut < len(data) and data[cut] & 0xC0 == 0x80:  # inside a character
                cut += 1
            line = data.find(b"\n", cut, cut + (len(data) - cut) // 10) + 1
            cut = line or cut
            yield "train", data[:cut].decode("utf-8"), True
            yield "val", data[cut:].decode("utf-8"), piece.last
        seen += len(data)


# -- tokenizing -----------------------------------------------------------------------------------


def write_documents(
    writer: Writer,
    parts: Iterable[Part],
    tokenizer: Tokenizer,
    eot: bool = True,
    separator: str = "",
) -> None:
    """Tokenize `parts` in batches and add them to the writer. Every document is made to end with
    the text `separator`, and is followed by the end-of-text token if the tokenizer has one (`eot`:
    unless told not to)."""
    batch: list[Part] = []
    size = 0

    def write_batch() -> None:
        texts = [
            text + separator if ends and not text.endswith(separator) else text
            for _, text, ends in batch
        ]
        for (split, _, ends), text, ids in zip(batch, texts, tokenizer.encode_batch(texts)):
            if ends and eot and tokenizer.eot is not None:
                ids.append(tokenizer.eot)
            writer.add(split, ids, text_bytes=len(text.encode("utf-8")), documents=int(ends))

    for part in parts:
        batch.append(part)
        size += len(part[1])
        if size >= BATCH or len(batch) >= 4096:
            write_batch()
            batch, size = [], 0
    write_batch()
