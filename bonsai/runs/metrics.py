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
    """One line; a number that JSON does not have (nan, inf) becomes null.

    >>> row_text({"iter": 3, "loss": float("nan")})
    '{"iter": 3, "loss": null}'
    """
    return json.dumps(finite(row), allow_nan=False)


def read_metrics(folder: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl; what is no such row, as the last line after a kill, is
    left out."""
    return [*filter(None, each_row(Path(folder) / METRICS))]


def read_curve(folder: Path) -> tuple[array, array, list[dict]]:
    """Of a run the steps that were logged, their losses, and the rows of its evaluations: of a
    million steps without a million rows in memory."""
    steps, losses, evals = array("q"), array("d"), []
    for row in filter(None, each_row(Path(folder) / METRICS)):
        if row.get("loss") is not None:
            steps.append(row["iter"])
            losses.append(row["loss"])
        if row.get("val_loss") is not None:
            evals.append(row)
    return steps, losses, evals


def each_row(path: Path) -> Iterator[dict | None]:
    """The rows of a file, None for a line that is no row; nothing where there is no file. UserError
    for what is no file, as a pipe, or cannot be read."""
    if not exists(path):
        return
    file_size(path)  # that it is a file
    with reading(path), open(path, "rb") as f:
        for line in lines_of(f):
            row = parse_object(line)
            yield row if is_row(row) else None


def evaluations(rows: list[dict]) -> list[dict]:
    """Of these rows the evaluations whose losses compare: those since the run has had other data,
    the first of which says "other_data"."""
    found: list[dict] = []
    for row in rows:
        if row.get("val_loss") is not None:
            if row.get("other_data"):
                found.clear()
            found.append(row)
    return found


def lines_of(f: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one that is too long to be a row, its beginning."""
    while line := f.readline(LONGEST_LINE):
        yield line
        while line and not line.endswith(b"\n"):
            line = f.readline(LONGEST_LINE)


def parse_object(line: bytes) -> dict | None:
    """The JSON object in a line, nan and inf as null; None where there is none."""
    if len(line) > LONGEST_LINE:
        return None
    try:
        value = finite(json.loads(line.decode("utf-8", "replace")))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_row(row: dict | None) -> bool:
    """Whether it is an object of numbers and nulls with the number of a step."""
    if row is None or type(row.get("iter")) is not int or not 0 <= row["iter"] < 2**63:
        return False
    return all(v is None or type(v) in (int, float) for v in row.values())


def forget_after(path: Path, start: int, evaluated: int) -> int:
    """Drop the rows of steps that are done again after a resume from step `start`.

    Returns the number of lines that were broken, and went as well. Raises OSError.
    """
    if not exists(path):
        return 0
    file_size(path)  # that it is a file, before one is put in its place
    broken = 0
    with whole_file(path) as f:
        for row in each_row(path):  # one at a time: a run may have made a million steps
            if row is None:
                broken += 1
                continue
            again = row["iter"] >= start
            if not again or ("val_loss" in row and row["iter"] == start == evaluated):
                f.write(f"{row_text(row)}\n".encode())
    return broken
