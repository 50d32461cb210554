"""Reads files of text as documents.

Documents come as pieces of UTF-8, so that text files of any size can be read in bounded memory. A
piece ends where no token crosses the border (see `safe_cut`): the ids of the pieces, one after
another, are the ids of the whole. To read another format, add a function and a line in READERS.
"""

import codecs
import errno
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bonsai.data.pieces import DEFAULTS, Options, Piece, Seen
from bonsai.data.rows import read_jsonl, read_parquet
from bonsai.files.access import file_size, not_utf8, reading
from bonsai.files.unpack import BLOCK, Unpacked, unpacked
from bonsai.system.errors import UserError
from bonsai.system.progress import Advance, no_progress
from bonsai.tokenizers import EOT_TEXT

PIECE = 1 << 20  # bytes, about: a longer text comes in several pieces
LONGEST = 16 << 20  # bytes of text that is held because it can be cut nowhere
TRIES = 10_000  # newlines, and blanks, that are looked at for a place to cut
WHOLE = 1 << 30  # bytes: the longest text that is given in one piece where that is asked for


def read_pieces(
    files: Iterable[Path],
    options: Options = DEFAULTS,
    progress: Advance = no_progress,
    keep_empty: bool = False,
    heads: bool = False,
    seen: Seen | None = None,
) -> Iterator[Piece]:
    """The documents of the files, in order; null and empty ones, and empty files, are left out
    unless keep_empty.

    progress: called with the number of bytes of the files that were read.
    heads: only the beginnings of documents are wanted: a long text file is not read to its end.
    seen: notes what was left out, and what the user may not have meant.
    Raises UserError, naming the place, for bad input, and if all files are empty or left out.
    """
    if options.on_error not in ("stop", "skip"):
        raise UserError(f"on_error is {options.on_error!r}: stop or skip")
    seen = seen or Seen()
    seen.restart()
    count, file, inside = 0, None, False  # inside: a document has begun and not ended
    for file in files:
        done = size = 0
        try:
            size = _look_at(file, options, seen)
            reader = _reader(file)
            if options.row_text and reader is _read_text:
                raise UserError(f"{file} is not in rows, as .jsonl and .parquet files are")
            with reading(file):
                for piece in reader(file, size, options, seen) if size else ():
                    progress(piece.position - done)
                    done, inside = piece.position, not piece.last
                    if piece.data or keep_empty or not piece.whole:
                        count += 1
                        yield piece
                    if heads and inside and reader is _read_text and not options.split_on:
                        inside = False
                        break
        except MemoryError:
            raise UserError(f"out of memory while reading {file}") from None
        except UserError as e:
            if options.on_error == "stop" or inside or _lacks_resources(e):
                raise
            seen.faults[file] = str(e)
        progress(size - done)
    if not count:
        _fail_if_unreadable(file, seen)


def _look_at(file: Path, options: Options, seen: Seen) -> int:
    """The size of a file. With on_error=skip a text file is read to its end once beforehand, so
    that none is abandoned in its middle. Raises UserError for a file that cannot be read."""
    if file in seen.faults:
        raise UserError(seen.faults[file])
    size = file_size(file)
    seen.empty += size == 0
    if options.on_error == "skip" and size and _reader(file) is _read_text:
        if file not in seen.checked:
            with reading(file), unpacked(file, size) as content:
                for _ in _text_blocks(content):
                    pass
        seen.checked.add(file)
    return size


def _lacks_resources(e: UserError) -> bool:
    """Whether an error is not the file's fault: too many files are open, or memory is short."""
    return getattr(e.__context__, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def _fail_if_unreadable(file: Path | None, seen: Seen) -> None:
    """Raise UserError if nothing was read, because of faults or because all files are empty."""
    if seen.faults or seen.first_row:
        first = next(iter(seen.faults.values()), seen.first_row)
        raise UserError(f"nothing in the input can be read: {first}")
    if seen.empty:
        raise UserError(f"{file} is empty" if seen.empty == 1 else f"{seen.empty} files are empty")


def _reader(path: Path) -> "Reader":
    """The reader for the ending of a file's name. Other files are text, as the user says so."""
    ends = path.name.lower().endswith
    return next((read for end, read in READERS.items() if ends(end)), _read_text)


# -- text -----------------------------------------------------------------------------------------


def _read_text(path: Path, size: int, options: Options, seen: Seen) -> Iterator[Piece]:
    """Line ends become \\n, as in Python's text mode; a byte order mark is removed."""
    border, mark = options.border, EOT_TEXT.encode()
    seen.texts += 1
    with unpacked(path, size) as file:
        parts: list[bytes] = []  # of the text that no piece holds yet
        length, wanted, first = 0, PIECE, True
        for block in _text_blocks(file):
            seen.marks += mark in block
            parts.append(block)
            length += len(block)
            if length < wanted:
                continue
            text = b"".join(parts)
            if border:
                *documents, text = text.split(border)
                seen.borders += len(documents)
                for document in documents:
                    yield Piece(document, first, True, file.position)
                    first = True
            # do not cut within a border that only the next block completes
            cut = 0
            if len(text) >= PIECE:
                head = text[: len(text) - len(border)]
                cut = safe_cut(head) or (_any_cut(head) if len(head) >= LONGEST else 0)
            if cut:
                yield Piece(text[:cut], first, False, file.position)
                first = False
            parts, length = [text[cut:]], len(text) - cut
            wanted = min(max(PIECE, 2 * length), max(LONGEST, length + PIECE))
        *documents, text = b"".join(parts).split(border) if border else [b"".join(parts)]
        seen.borders += len(documents)
        for document in documents:
            yield Piece(document, first, True, size)
            first = True
    yield Piece(text, first, True, size)


def _text_blocks(file: Unpacked) -> Iterator[bytes]:
    """The text of a file, block by block: valid UTF-8, whole characters, no line ends but \\n."""
    start = 0  # of `block` in the file
    rest = b""  # the last bytes of a block: a character that goes on in the next, or a \r
    while True:
        data = file.read(BLOCK)
        block = rest + data if rest else data
        whole = block
        if start == 0 and block.startswith(codecs.BOM_UTF8):
            start, block = 3, block[3:]
        end = len(block)
        if not block.isascii():
            try:
                _, end = codecs.utf_8_decode(block, "strict", not data)
            except UnicodeDecodeError as e:
                beginning = whole if start == 0 else b""
                raise not_utf8(file.path, start + e.start, beginning) from None
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


def safe_cut(text: str | bytes) -> int:
    """The last place in `text` where a cut changes no token id; 0 if there is none.

    That is after a newline between two characters that are not white space or, if there is none,
    before a blank between two ASCII letters: in the patterns of GPT-2 and GPT-4 both end a chunk,
    whether more text follows or not.
    """
    end, newline = len(text), "\n" if isinstance(text, str) else b"\n"
    for _ in range(TRIES):
        if (at := text.rfind(newline, 1, end - 1)) < 0:
            break
        before, after = text[max(at - 4, 0) : at], text[at + 1 : at + 5]
        if isinstance(text, bytes):  # a character has up to four
            before, after = before.decode("utf-8", "ignore"), after.decode("utf-8", "ignore")
        if not before[-1:].isspace() and not after[:1].isspace():
            return at + 1
        end = at + 1
    end, blank = len(text), " " if isinstance(text, str) else b" "
    for _ in range(TRIES):
        if (at := text.rfind(blank, 1, end - 1)) < 0:
            break
        before, after = text[at - 1 : at], text[at + 1 : at + 2]
        if (before + after).isascii() and before.isalpha() and after.isalpha():
            return at
        end = at + 1
    return 0


def _any_cut(data: bytes) -> int:
    """The last border between characters, for text that has no better place and is too long."""
    cut = len(data) - 1
    while cut > 0 and data[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


def read_whole(path: Path) -> str:
    """All of one text file, whatever its name. Raises UserError if it is empty, or longer than
    WHOLE bytes."""
    size = file_size(path)
    if size > WHOLE:
        raise UserError(
            f"{path} has {size / 1e9:.1f} GB: use data/custom/prepare.py, which reads in pieces"
        )
    with reading(path), open(path, "rb", buffering=0) as raw:
        text = b"".join(_text_blocks(Unpacked(path, raw, size))).decode("utf-8")
    if not text:
        raise UserError(f"{path} is empty")
    return text


Reader = Callable[[Path, int, Options, Seen], Iterator[Piece]]
READERS: dict[str, Reader] = {
    ".txt": _read_text,
    ".txt.gz": _read_text,
    ".txt.xz": _read_text,
    ".txt.zst": _read_text,
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".jsonl.xz": read_jsonl,
    ".jsonl.zst": read_jsonl,
    ".parquet": read_parquet,
}
