"""Training runs in some folders: a list of them, and their curves, for the page.

A folder with unexpected content loses at most its own entry. Files are read line by line, and the
number of rows in memory is bounded, no matter how long a run is.
"""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from bonsai.files.jsonfile import finite
from bonsai.runs.metrics import LONGEST_LINE, lines_of, parse_object
from bonsai.runs.names import METRICS, SETTINGS

LIVE = 60  # a run counts as going on for so many seconds after its last line
MOST_ROWS = 10_000  # the most rows of an answer
MOST_SETTINGS = 2**20  # the most bytes of a config.json
BLOCK = 2**20  # bytes that are read at a time


def find_runs(folders: Iterable[Path]) -> dict[str, Path]:
    """Folders out* with a metrics.jsonl, by name; of two with the same name the first."""
    runs: dict[str, Path] = {}
    for folder in folders:
        with contextlib.suppress(OSError):  # a folder that we may not read
            for run in sorted(folder.glob("out*")):
                if os.path.isfile(run / METRICS) and run.name.isprintable():
                    runs.setdefault(run.name, run)
    return runs


def list_runs(folders: Iterable[Path], now: float | None = None) -> list[dict]:
    """A summary of each run, the most recently changed one first."""
    folders = [Path(folder).resolve() for folder in folders]
    now = time.time() if now is None else now
    runs = []
    for name, folder in find_runs(folders).items():
        try:
            status = (folder / METRICS).stat()
            step, val_loss = where_it_stands(folder, status.st_mtime_ns, status.st_size)
        except OSError:  # removed meanwhile, or we may not read it
            continue
        settings = read_settings(folder)
        base = next((f for f in folders if folder.is_relative_to(f)), folder.parent)
        runs.append(
            {
                "name": name,
                "path": folder.relative_to(base).as_posix(),
                "step": step,
                "max_iters": number(settings.get("max_iters")),
                "val_loss": val_loss,
                "live": now - status.st_mtime < LIVE,
                "settings": settings,
                "changed": status.st_mtime,
            }
        )
    return sorted(runs, key=lambda run: -run["changed"])


@lru_cache(maxsize=4096)  # with fewer entries than runs, every list would read all files again
def where_it_stands(folder: Path, changed: int, size: int) -> tuple[int, float | None]:
    """The last step and the last validation loss of a run, searched from its file's end. changed,
    size: of the file; it is read again if they differ."""
    step = val_loss = None
    for line in last_lines(folder / METRICS):
        if step is not None and b'"val_loss"' not in line:
            continue
        row = parse_object(line)
        if row is None:
            continue
        if step is None:
            step = number(row.get("iter"))
        val_loss = number(row.get("val_loss"))
        if step is not None and val_loss is not None:
            break
    return int(step or 0), val_loss


def last_lines(path: Path) -> Iterator[bytes]:
    """The complete lines of a file, the last one first."""
    with open(path, "rb") as f:
        end = f.seek(0, 2)
        rest = b""  # the end of a line whose beginning has not been read yet
        finished = False  # whether lines are complete: not the one after the last line break
        while end > 0:
            begin = max(0, end - BLOCK)
            f.seek(begin)
            first, *lines = (f.read(end - begin) + rest).split(b"\n")
            for line in reversed(lines):
                if finished:
                    yield line
                finished = True
            # only the end of a line that is too long to be a row
            rest, end = first[-LONGEST_LINE - 1 :], begin
        if finished:
            yield rest


def read_settings(folder: Path) -> dict:
    path = folder / SETTINGS
    try:
        if not os.path.isfile(path) or path.stat().st_size > MOST_SETTINGS:
            return {}
        settings = finite(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def rows_from(folder: Path, start: int = 0, most: int = MOST_ROWS) -> tuple[list[dict], int]:
    """Rows of metrics.jsonl from line `start` on, and the number of the line after the last one.

    If there are more than `most` lines, only every second, third, ... row is returned, and besides
    these the last one and those of evaluations, which are rare. An incomplete last line is left for
    the next call; damaged lines are skipped. If `start` is after the end, because the run has begun
    anew, reading starts at the beginning.
    """
    path = folder / METRICS
    if not os.path.isfile(path):  # opening a pipe, for example, would wait for a writer
        return [], 0
    end = count_lines(path)
    if start > end:
        start = 0
    rows, every = [], max(1, -(-(end - start) // most))
    evals, every_eval = 0, 1  # of lines that would be left out
    with open(path, "rb") as f:
        go_to_line(f, start)
        for i, line in enumerate(itertools.islice(lines_of(f), end - start), start):
            wanted = (i - start) % every == 0 or i == end - 1
            if not wanted and b'"val_loss"' in line:
                wanted = evals % every_eval == 0
                evals += 1
                if evals >= most:  # evaluations are not rare in this file
                    every_eval = every
            if wanted and (row := parse_object(line)) is not None:
                rows.append(row)
    return rows, end


def count_lines(path: Path) -> int:
    """How many complete lines a file has."""
    with open(path, "rb") as f:
        return sum(block.count(b"\n") for block in iter(lambda: f.read(BLOCK), b""))


def go_to_line(f: BinaryIO, number: int) -> None:
    """Go from the beginning of a file to that of line `number`, many lines at a time."""
    while number and (block := f.read(BLOCK)):
        count = block.count(b"\n")
        if count >= number:
            at = 0
            for _ in range(number):
                at = block.index(b"\n", at) + 1
            f.seek(at - len(block), os.SEEK_CUR)
            return
        number -= count


def number(value: object) -> float | int | None:
    """The value if it is a number, else None."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
