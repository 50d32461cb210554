"""The benchmarks' common parts: taking turns, tables, files of results, checkouts of nanoGPT."""

import importlib.util
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from bonsai.files.access import write_whole
from bonsai.files.jsonfile import finite, read_json_object, write_json
from bonsai.files.textfile import check_writable
from bonsai.system import tables
from bonsai.system.errors import UserError, end_if_told
from bonsai.system.provenance import header, provenance

Columns = Sequence[tuple[str, str, str]]
MOST = 2**30  # the most bytes of a results file; a race's has the losses of every step


def in_turn(names: Iterable[str], repeats: int) -> Iterator[tuple[int, str]]:
    """Yields (repeat, name) of every measurement. Every other repeat has the reverse order, so that
    no name gains from its place."""
    order = list(names)
    for repeat in range(repeats):
        for name in order[:: -1 if repeat % 2 else 1]:
            end_if_told()
            yield repeat, name


def seconds_of(call: Callable[[], object], synchronize: Callable[[], None]) -> float:
    """The seconds of a call, from an idle device to an idle device."""
    synchronize()
    begin = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - begin


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, range and number of repeated measurements; `spread` is the range over the median."""
    s = tables.spread(values)
    return {**s, "spread": (s["high"] - s["low"]) / s["median"]}


def known(name: str, words: Iterable[str], choices: Iterable[str], between: str = ", ") -> None:
    """Raise UserError if a word of a setting is not among the choices. name: the setting's."""
    choices = list(choices)
    for word in words:
        if word not in choices:
            raise UserError(f"{name}={word} is not one of {between.join(choices)}")


def check_minutes(minutes: float, begin: float) -> None:
    """Raise UserError if `minutes` have passed since `begin`, by time.monotonic(); 0: no limit."""
    if minutes and time.monotonic() - begin > 60 * minutes:
        raise UserError(f"{minutes:g} minutes are over: repeat the command to go on")


def table(rows: Iterable[dict], columns: Columns) -> str:
    """Like tables.table, but a key may be a path into nested dicts: `ours.tokens_per_s.median`."""

    def value(row: Any, path: str) -> Any:
        for key in path.split("."):
            row = row.get(key) if isinstance(row, dict) else None
        return row

    return tables.table([{key: value(row, key) for _, key, _ in columns} for row in rows], columns)


class Results:
    """The rows that a benchmark has measured, in OUT/NAME.json and as a table in OUT/NAME.txt. Both
    files are written after every row. Rows of an earlier call are not measured again.

    out: a folder; empty: no files. columns: of the table; empty: the table is written at the end.
    about: facts that are saved with each row. An earlier row is used if it agrees in these, and in
    `same`, of what else is saved with it. A line says how many rows do not agree; NAME.before.json
    keeps these. again: use no earlier rows. Raises UserError if the files cannot be written, or are
    not results.
    """

    def __init__(
        self,
        name: str,
        out: str | Path,
        device: torch.device,
        columns: Columns = (),
        same: Sequence[str] = ("commit", "versions", "hardware"),
        again: bool = False,
        **about,
    ):
        print("\n".join(header(device)), flush=True)
        self.name, self.folder = name, Path(out).resolve() if out else None
        self.columns = columns
        self.about, self.rows, self.lock = {**provenance(device), **about}, [], threading.Lock()
        if self.folder:
            path = self.folder / f"{name}.json"
            check_writable(path, "the results")
            if path.exists() and not again:
                self.take(path, (*same, *about))

    def take(self, path: Path, same: Sequence[str]) -> None:
        """Take the rows of an earlier call that agree in all of `same`."""
        now = finite(self.about)  # as it is in a file
        left, others = [], set()
        for row in (rows := rows_of(path)):
            about = row.get("about") or {}
            apart = {k for k in same if about.get(k) != now[k]}
            (left if apart else self.rows).append(row)
            others |= apart
        if left:
            kept = path.with_suffix(".before.json")
            before = rows_of(kept) if kept.exists() else []
            write_json(kept, {"rows": before + [row for row in left if row not in before]})
            apart = " or ".join(k for k in same if k in others)
            print(f"{len(left)} of {len(rows)} rows in {path} are of another {apart}: not used")

    def find(self, key: dict) -> dict | None:
        """The first row with all values of `key`; None if there is none."""
        return next(self.having(key), None)

    def having(self, key: dict) -> Iterator[dict]:
        """The rows with all values of `key`."""
        return (r for r in self.rows if all(r.get(k) == v for k, v in key.items()))

    def measure(self, key: dict, call: Callable[[], dict]) -> dict:
        """The row of `key`: an earlier one, or the result of `call`, which is written at once."""
        return self.measure_together(key, lambda: [call()])[0]

    def measure_together(self, key: dict, call: Callable[[], list[dict]]) -> list[dict]:
        """The rows of `key`: earlier ones, or the results of `call`, which are written together."""
        if rows := list(self.having(key)):
            what = textwrap.shorten(", ".join(map(str, key.values())), 60, placeholder=" ...")
            commit = (rows[0].get("about") or {}).get("commit")
            by = "" if commit == self.about["commit"] else f", by commit {commit}"
            print(f"{what}: measured before, in {self.folder}{by}")
            return rows
        return self.add(*({**key, **row} for row in call()))

    def add(self, *rows: dict) -> list[dict]:
        with self.lock:  # several threads may measure at once
            added = [{**row, "about": self.about} for row in rows]
            self.rows += added
            self.write()
        return added

    def put(self, rows: Iterable[dict]) -> None:
        """Replace all rows by these."""
        self.rows = [{**row, "about": self.about} for row in rows]
        self.write()

    def write(self, text: str = "", **more) -> None:
        if self.folder:
            target = self.folder / f"{self.name}.json"
            write_json(target, {**self.about, **more, "rows": self.rows})
            if text or self.columns:
                text = text or table(self.rows, self.columns)
                write_whole(self.folder / f"{self.name}.txt", text + "\n")

    def finish(self, text: str = "", **more) -> None:
        """Print the results, the table if there is no other text, and write them. more: further
        values for the .json."""
        text = text or table(self.rows, self.columns)
        print(f"\n{text}", flush=True)
        self.write(text, **more)


def rows_of(path: Path) -> list[dict]:
    """The rows in a file of results. Raises UserError if it is not such a file."""
    rows = read_json_object(path, MOST).get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} is not a file of results: set another --out")
    return rows


class Peer:
    """A checkout of nanoGPT. Raises UserError if the folder is not one."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.file("model.py")
        git = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
        done = subprocess.run(git, capture_output=True, text=True, check=False)
        self.commit = done.stdout.strip() or "unknown"

    def file(self, name: str) -> Path:
        if not (self.folder / name).is_file():
            hint = "give the folder of a nanoGPT checkout"
            raise UserError(f"peer={self.folder} has no {name}: {hint}")
        return self.folder / name

    def model(self, settings: dict) -> torch.nn.Module:
        """Its GPT. Its model.py is imported under another name than ours."""
        spec = importlib.util.spec_from_file_location("peer_model", self.file("model.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules["peer_model"] = module  # its dataclass looks up its own module
        spec.loader.exec_module(module)
        with redirect_stdout(StringIO()):  # it prints its size
            return module.GPT(module.GPTConfig(**settings))

    def copy(self, target: Path) -> None:
        """Copy its programs and config files to a folder, to run them there."""
        for name in ("train.py", "model.py", "configurator.py"):
            shutil.copyfile(self.file(name), target / name)
        shutil.copytree(self.folder / "config", target / "config", dirs_exist_ok=True)
