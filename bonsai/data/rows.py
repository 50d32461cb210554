"""Documents in rows: the lines of .jsonl files, the rows of .parquet files.

The text of a row stands in one of its fields, or is made of several of them (Options.row_text).
"""

import codecs
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bonsai.data.pieces import Options, Piece, Seen
from bonsai.files.access import UTF16, bounded, not_utf8
from bonsai.files.jsonfile import MOST_VALUES, has_many_values
from bonsai.files.unpack import check_expansion, lines, pyarrow, unpacked
from bonsai.system.errors import UserError
from bonsai.tokenizers import well_formed

LONGEST = 64 << 20  # bytes of a row
LONG = 1 << 20  # bytes; the values of a longer row are counted before it is parsed
AT_ONCE = 16 << 20  # bytes, about, of the texts of a .parquet that are held
PAGES = 1 << 30  # bytes that pyarrow may take at a time for a .parquet, beyond 4 times its size


def read_jsonl(path: Path, size: int, options: Options, seen: Seen) -> Iterator[Piece]:
    start = 0  # of the line, in bytes
    with unpacked(path, size) as file:
        for number, line in enumerate(lines(file, LONGEST), 1):
            content, mark = line, 0
            if number == 1 and line.startswith(codecs.BOM_UTF8):
                content, mark = line[3:], 3
            if content.strip():
                where = f"{path} line {number}"
                try:
                    row = _json_row(path, number, start + mark, content)
                    text = _text(where, row, options)
                except UserError as e:
                    if options.on_error == "stop" or line.startswith(UTF16):
                        raise
                    seen.left_out_row(e)
                else:
                    yield Piece(_utf8(text), True, True, file.position)
            start += len(line)


def _json_row(path: Path, number: int, start: int, line: bytes) -> dict:
    if len(line) > LONG and has_many_values(line):
        raise UserError(f"{path} line {number} has more than {MOST_VALUES:,} values")
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise not_utf8(path, start + e.start, line if number == 1 else b"") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} line {number} is not valid JSON: {e}") from None
    if not isinstance(row, dict):
        raise UserError(f'{path} line {number} is not a JSON object such as {{"text": "..."}}')
    return row


def _text(where: str, row: dict, options: Options) -> str:
    """The text of a row; null is none."""
    if options.row_text:
        try:
            return options.row_text(row)
        except UserError as e:
            raise UserError(f"{where}: {e}") from None
    column = options.text_column
    if column not in row:
        raise _no_column(where, column, row)
    text = row[column]
    if not isinstance(text, str | None):
        raise UserError(f"{where}: the field {column!r} holds no text but {text!r:.40}")
    return text or ""


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, from a JSON escape
        return well_formed(text).encode("utf-8")


def read_parquet(path: Path, size: int, options: Options, seen: Seen) -> Iterator[Piece]:
    pa = pyarrow(".parquet")
    import pyarrow.parquet as pq

    count, limit = 0, PAGES + 4 * size
    pa.allocate_buffer(1)  # what its allocator sets apart at first, in addresses, does not count
    try:
        with bounded(limit):
            f = pq.ParquetFile(path)
        with f:
            at_once = _rows_at_once(path, size, f.metadata)
            total = f.metadata.num_rows
            for number, row in enumerate(_parquet_rows(pa, path, f, at_once, limit, options), 1):
                try:
                    data = row
                    if isinstance(row, dict):
                        data = _utf8(_text(f"{path} row {number}", row, options))
                except UserError as e:
                    if options.on_error == "stop":
                        raise
                    seen.left_out_row(e)
                    continue
                count += len(data)
                check_expansion(path, size, count)
                yield Piece(data, True, True, size * number // total)
    except MemoryError:  # pyarrow's is an ArrowException too
        raise
    except (pa.ArrowException, UnicodeDecodeError) as e:
        raise UserError(f"{path} is damaged or no parquet file: {e}") from None


def _parquet_rows(
    pa, path: Path, f, at_once: int, limit: int, options: Options
) -> Iterator[bytes | dict]:
    """The rows of an open file: their text_column as UTF-8 or, for row_text, its row_fields."""
    names = f.schema_arrow.names
    # not all columns: images would take memory, and not every value has a counterpart in Python
    columns, prepare = [name for name in names if name in options.row_fields], _whole
    if not options.row_text:
        _check_column(pa, path, f.schema_arrow, options.text_column)
        columns, prepare = [options.text_column], functools.partial(_texts, pa)
    # no threads: each would have an address space of its own
    batches = f.iter_batches(batch_size=at_once, columns=columns, use_threads=False)
    while True:
        with bounded(limit):
            held = _held(batches, prepare)
        if not held:
            return
        for batch in held:
            if options.row_text:
                yield from (dict.fromkeys(names) | row for row in batch.to_pylist())
            else:
                yield from (text.as_py() or b"" for text in batch)


def _check_column(pa, path: Path, schema, column: str) -> None:
    """Raises UserError unless this column is there and holds text."""
    if column not in schema.names:
        raise _no_column(str(path), column, schema.names)
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f"{path}: the column {column!r} holds no text but {kind}")


def _texts(pa, batch):
    """The column of a batch, as an array of bytes."""
    texts = batch.column(0)
    texts = texts.dictionary_decode() if pa.types.is_dictionary(texts.type) else texts
    texts.validate(full=True)  # that they are UTF-8
    return texts.cast(pa.large_binary())


def _whole(batch):
    batch.validate(full=True)
    return batch


def _held(batches: Iterator, prepare: Callable) -> list:
    """The next few batches, prepared: some 16 MB, or those of one; none at the end."""
    held, size = [], 0
    for batch in itertools.islice(batches, 64):
        held.append(prepare(batch))
        size += held[-1].nbytes
        if size > AT_ONCE:
            break
    return held


def _rows_at_once(path: Path, size: int, metadata) -> int:
    """How many rows to hold: they take about 16 MB, unpacked, and are few, as one text may stand
    for many. Asked of the groups: where a column's metadata are damaged, pyarrow ends the process.
    """
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    count = sum(group.total_byte_size for group in groups)
    check_expansion(path, size, count)
    return min(max(1, AT_ONCE * metadata.num_rows // max(count, 1)), 8)


def _no_column(where: str, column: str, names: Iterable[str]) -> UserError:
    return UserError(
        f"{where} has no field {column!r} but {', '.join(map(repr, names)) or 'none'}: "
        f"choose with --text_column="
    )
