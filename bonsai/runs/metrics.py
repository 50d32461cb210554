"""metrics.jsonl of a run: a JSON object per logged step and per evaluation, always with `iter`."""

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bonsai.files.access import exists, file_size, reading
from bonsai.files.atomic import whole_file
from bonsai.files.jsonfile import finite
from bonsai.runs.names import METRICS

LONGEST_LINE = 2**16  # bytes; a longer line is no row


def row_text(row: dict) -> str:
    """The row as one line of JSON; numbers that JSON does not have (nan, inf) become null.

    >>> row_text({"iter": 3, "loss": float("nan")})
    '{"iter": 3, "loss": null}'
    """
    return json.dumps(finite(row), allow_nan=False)


def read_metrics(folder: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl. Lines that are no rows, such as the last one after a kill,
    are left out."""
    return [*filter(None, each_row(Path(folder) / METRICS))]


def read_curve(folder: Path) -> tuple[array, array, list[dict]]:
    """The steps of a run that were logged, their losses, and the rows of its evaluations; without
    a million rows in memory for a million steps."""
    steps, losses, evals = array("q"), array("d"), []
    for row in filter(None, each_row(Path(folder) / METRICS)):
        if row.get("loss") is not None:
            steps.append(row["iter"])
            losses.append(row["loss"])
        if row.get("val_loss") is not None:
            evals.append(row)
    return steps, losses, evals


def each_row(path: Path) -> Iterator[dict | None]:
    """The rows of a file, None for a line that is no row; nothing if there is no file. Raises
    UserError for what is not a file, such as a pipe, or cannot be read."""
    return (row for _, row in _lines_and_rows(path))


def _lines_and_rows(path: Path, having: bytes = b"") -> Iterator[tuple[bytes, dict | None]]:
    """As each_row, with the lines. having: what is in all lines that are wanted."""
    if not exists(path):
        return
    file_size(path)  # that it is a file
    with reading(path), open(path, "rb") as f:
        for line in lines_of(f):
            if having in line:
                row = parse_object(line)
                yield line, row if is_row(row) else None


def read_evaluations(folder: Path) -> list[dict]:
    """The evaluations of a run whose losses can be compared, without parsing its other rows."""
    lines = _lines_and_rows(Path(folder) / METRICS, b'"val_loss"')
    return evaluations([row for _, row in lines if row])


def evaluations(rows: list[dict]) -> list[dict]:
    """The evaluations in these rows whose losses can be compared. If the data have changed, these
    are the ones from then on; the first of them says "other_data"."""
    found: list[dict] = []
    for row in rows:
        if row.get("val_loss") is not None:
            if row.get("other_data"):
                found.clear()
            found.append(row)
    return found


def lines_of(f: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of a line that is too long to be a row, only its beginning."""
    while line := f.readline(LONGEST_LINE):
        yield line
        while line and not line.endswith(b"\n"):
            line = f.readline(LONGEST_LINE)


def parse_object(line: bytes) -> dict | None:
    """The JSON object in a line, with nan and inf as null; None if there is none."""
    if len(line) > LONGEST_LINE:
        return None
    try:
        value = finite(json.loads(line.decode("utf-8", "replace")))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_row(row: dict | None) -> bool:
    """Whether this is a row: an object of numbers and nulls with the number of a step."""
    if row is None or type(row.get("iter")) is not int or not 0 <= row["iter"] < 2**63:
        return False
    return all(v is None or type(v) in (int, float) for v in row.values())


def forget_after(path: Path, start: int, evaluated: int) -> int:
    """Drop the rows of steps that are done again after a resume from step `start`.

    Returns how many broken lines were dropped, too. Raises OSError.
    """
    if not exists(path):
        return 0
    file_size(path)  # that it is a file, before one is put in its place
    broken = 0
    with whole_file(path) as f:
        for line, row in _lines_and_rows(path):  # one at a time: there may be a million
            if row is None:
                broken += 1
                continue
            again = row["iter"] >= start
            if not again or ("val_loss" in row and row["iter"] == start == evaluated):
                f.write(line.rstrip(b"\r\n") + b"\n")
    return broken
