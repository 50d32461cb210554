"""Training runs under some folders: what the page needs to list them and to draw their curves.

Whatever lies in a folder, it costs that folder's entry at most; and however long a run is, its file
is read line by line, and what is kept of it has a bound.
"""

import contextlib
import json
import stat
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from bonsai.files.jsonfile import finite
from bonsai.runs.metrics import LONGEST_LINE, lines_of, parse_object
from bonsai.runs.names import METRICS, SETTINGS

LIVE = 60  # seconds after the last line in which a run counts as going on
MOST_ROWS = 10_000  # per answer
MOST_SETTINGS = 2**20  # bytes of a config.json
BLOCK = 2**20  # bytes that are read at once


def find_runs(folders: Iterable[Path]) -> dict[str, Path]:
    """Folders out* that hold metrics.jsonl, by name; the first of two of the same name."""
    runs: dict[str, Path] = {}
    for folder in folders:
        with contextlib.suppress(OSError):  # a folder that is not for us
            for run in sorted(folder.glob("out*")):
                if is_file(run / METRICS) and run.name.isprintable():
                    runs.setdefault(run.name, run)
    return runs


def is_file(path: Path) -> bool:
    """Whether it is a plain file, and can be looked at: opening a FIFO would wait for a writer."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def list_runs(folders: Iterable[Path], now: float | None = None) -> list[dict]:
    """A summary of each run, the one last written to first."""
    folders = [Path(folder).resolve() for folder in folders]
    now = time.time() if now is None else now
    runs = []
    for name, folder in find_runs(folders).items():
        try:
            status = (folder / METRICS).stat()
            step, val_loss = where_it_stands(folder, status.st_mtime_ns, status.st_size)
        except OSError:  # removed in the meantime, or not for us
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


@lru_cache(maxsize=4096)  # runs: with less than there are, each look would read all of them
def where_it_stands(folder: Path, changed: int, size: int) -> tuple[int, float | None]:
    """Last step and validation loss of a run, looked for from the end of its file; read again when
    that has changed."""
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
    """The finished lines of a file, the last one first."""
    with open(path, "rb") as f:
        end = f.seek(0, 2)
        rest = b""  # the end of a line of which the beginning is not read yet
        finished = False  # what stands after the last line break is not
        while end > 0:
            begin = max(0, end - BLOCK)
            f.seek(begin)
            first, *lines = (f.read(end - begin) + rest).split(b"\n")
            for line in reversed(lines):
                if finished:
                    yield line
                finished = True
            rest, end = first[-LONGEST_LINE - 1 :], begin  # of one too long to be a row, the end
        if finished:
            yield rest


def read_settings(folder: Path) -> dict:
    path = folder / SETTINGS
    try:
        if not is_file(path) or path.stat().st_size > MOST_SETTINGS:
            return {}
        settings = finite(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def rows_from(folder: Path, start: int = 0, most: int = MOST_ROWS) -> tuple[list[dict], int]:
    """Rows of metrics.jsonl from line `start` on, and the number of the line after the last.

    Of more than `most` lines every second, third, ... is given, and the last one; so are rows of
    evaluations, which are rare. A line that is not finished yet is left for the next call; one that
    is damaged is passed over. A `start` after the end (the run was begun anew) reads from the
    beginning.
    """
    path = folder / METRICS
    if not is_file(path):
        return [], 0
    end = count_lines(path)
    if start > end:
        start = 0
    rows, every = [], max(1, -(-(end - start) // most))
    evals, every_eval = 0, 1  # of lines that were left out
    with open(path, "rb") as f:
        for i, line in enumerate(lines_of(f)):
            if i >= end:
                break
            if i < start:
                continue
            wanted = (i - start) % every == 0 or i == end - 1
            if not wanted and b'"val_loss"' in line:
                wanted = evals % every_eval == 0
                evals += 1
                if evals >= most:  # not so rare
                    every_eval = every
            if wanted and (row := parse_object(line)) is not None:
                rows.append(row)
    return rows, end


def count_lines(path: Path) -> int:
    """Finished lines."""
    with open(path, "rb") as f:
        return sum(block.count(b"\n") for block in iter(lambda: f.read(BLOCK), b""))


def number(value: object) -> float | int | None:
    """`value` if it is a number, else None."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
