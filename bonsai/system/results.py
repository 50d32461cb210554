"""Measurements for people and for programs: tables in Markdown, JSON, and what they were made with.

The tables can be pasted into docs/BENCHMARKS.md as they are printed.
"""

import importlib.util
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from bonsai.files.atomic import replace_text
from bonsai.files.jsonfile import finite
from bonsai.system.errors import UserError
from bonsai.system.runtime import device_name
from bonsai.training.report import commit, versions


def provenance(device: torch.device) -> dict[str, Any]:
    """What a measurement needs beside it to be repeated: command, commit, versions, hardware."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "versions": versions(),
        "hardware": device_name(device),
    }


def load_peer(folder: Path) -> ModuleType:
    """model.py of a nanoGPT checkout, under a name of its own. UserError if there is none."""
    path = folder / "model.py"
    if not path.is_file():
        raise UserError(f"peer={folder} has no model.py: give the folder of a nanoGPT checkout")
    spec = importlib.util.spec_from_file_location("peer_model", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["peer_model"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


def peer_commit(folder: Path) -> str:
    git = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range of repeated measurements, and how many there were."""
    low, high = min(values), max(values)
    return {"median": statistics.median(values), "low": low, "high": high, "n": len(values)}


def table(rows: list[dict], columns: Sequence[tuple[str, str, str]]) -> str:
    """Rows as a Markdown table that lines up in a terminal.

    columns: (title, key, format) each; a missing or None value shows as n/a. Numbers stand at the
    right, text (format '') at the left.

    >>> print(table([{"x": "a", "y": 1.25}], [("name", "x", ""), ("loss", "y", ".1f")]))
    | name | loss |
    | :--- | ---: |
    | a    |  1.2 |
    """
    cells = [[title for title, _, _ in columns]]
    for row in rows:
        values = [(row.get(key), spec) for _, key, spec in columns]
        cells.append(["n/a" if value is None else format(value, spec) for value, spec in values])
    widths = [max(4, *(len(line[i]) for line in cells)) for i in range(len(columns))]
    right = [bool(spec) for _, _, spec in columns]
    rules = ["-" * (w - 1) + ":" if r else ":" + "-" * (w - 1) for w, r in zip(widths, right)]
    lines = []
    for line in [cells[0], rules, *cells[1:]]:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right)]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def write_json(target: str | os.PathLike[str], results: dict) -> None:
    """Write to a file, whole or not at all; '-': as one line, the last, to stdout.

    A number that JSON does not have (nan, inf) becomes null. UserError when it cannot be written.
    """
    if str(target) == "-":
        print(json.dumps(finite(results), allow_nan=False), flush=True)
        return
    path = Path(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(finite(results), indent=1, allow_nan=False)
        replace_text(path, text + "\n")
    except OSError as e:
        raise UserError(f"cannot write the results to {path}: {e.strerror}") from None
