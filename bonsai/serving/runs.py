"""Training runs under some folders: what the page needs to list them and to draw their curves."""

import json
import math
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

LIVE = 60  # seconds after the last line in which a run counts as going on
MOST_ROWS = 20_000  # per answer


def find_runs(folders: Iterable[Path]) -> dict[str, Path]:
    """Folders out* that hold metrics.jsonl, by name; the first of two of the same name."""
    runs: dict[str, Path] = {}
    for folder in folders:
        for metrics in sorted(folder.glob("out*/metrics.jsonl")):
            runs.setdefault(metrics.parent.name, metrics.parent)
    return runs


def list_runs(folders: Iterable[Path], now: float | None = None) -> list[dict]:
    """A summary of each run, the one last written to first."""
    folders = [Path(folder).resolve() for folder in folders]
    now = time.time() if now is None else now
    found = []
    for name, folder in find_runs(folders).items():
        try:
            stat = (folder / "metrics.jsonl").stat()
            step, val_loss = where_it_stands(folder, stat.st_mtime_ns, stat.st_size)
        except OSError:  # removed in the meantime
            continue
        settings = read_settings(folder)
        base = next((f for f in folders if folder.is_relative_to(f)), folder.parent)
        found.append(
            {
                "name": name,
                "path": folder.relative_to(base).as_posix(),
                "step": step,
                "max_iters": settings.get("max_iters"),
                "val_loss": val_loss,
                "live": now - stat.st_mtime < LIVE,
                "settings": settings,
                "changed": stat.st_mtime,
            }
        )
    return sorted(found, key=lambda run: -run["changed"])


@lru_cache(maxsize=4096)  # runs: with less than there are, each look would read all of them
def where_it_stands(folder: Path, changed: int, size: int) -> tuple[int, float | None]:
    """Last step and validation loss of a run; read again when its file has changed."""
    rows, _ = read_rows(folder)
    steps = [row["iter"] for row in rows if isinstance(row.get("iter"), int)]
    evals = [row["val_loss"] for row in rows if row.get("val_loss") is not None]
    return max(steps, default=0), evals[-1] if evals else None


def read_settings(folder: Path) -> dict:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return finite(settings) if isinstance(settings, dict) else {}


def read_rows(folder: Path, start: int = 0, most: int | None = None) -> tuple[list[dict], int]:
    """Rows of metrics.jsonl from line `start` on, and the number of the line after the last.

    A line that is not finished yet is left for the next call; one that is damaged is passed over.
    A `start` behind the end (the run was begun anew) reads from the beginning.
    """
    lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    if start > len(lines):
        start = 0
    end = len(lines) if most is None else min(len(lines), start + most)
    rows = []
    for line in lines[start:end]:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(finite(row))
    return rows, end


def finite(row: dict) -> dict:
    """None for NaN and infinities, which JSON does not have."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
