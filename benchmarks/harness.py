"""What the benchmarks share: turns, tables, files of results, checkouts of nanoGPT."""

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
MOST = 2**30  # bytes of a file of results, which has the losses of every step of a race


def in_turn(names: Iterable[str], repeats: int) -> Iterator[tuple[int, str]]:
    """(repeat, name) of every measurement; every other repeat goes backwards, so that the first
    place is no advantage."""
    order = list(names)
    for repeat in range(repeats):
        for name in order[:: -1 if repeat % 2 else 1]:
            end_if_told()
            yield repeat, name


def seconds_of(call: Callable[[], object], synchronize: Callable[[], None]) -> float:
    """What a call takes, from an idle device to an idle device."""
    synchronize()
    begin = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - begin


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, range and number of repeated measurements; `spread`, the range over the median."""
    s = tables.spread(values)
    return {**s, "spread": (s["high"] - s["low"]) / s["median"]}


def known(name: str, words: Iterable[str], choices: Iterable[str], between: str = ", ") -> None:
    """Raise UserError where one of the words of a setting is not among the choices."""
    choices = list(choices)
    for word in words:
        if word not in choices:
            raise UserError(f"{name}={word} is not one of {between.join(choices)}")


def check_minutes(minutes: float, begin: float) -> None:
    """Raise UserError where so many are over since `begin`, by time.monotonic(); 0: no limit."""
    if minutes and time.monotonic() - begin > 60 * minutes:
        raise UserError(f"{minutes:g} minutes are over: the same command goes on")


def table(rows: Iterable[dict], columns: Columns) -> str:
    """As tables.table, but a key may lead into what a row holds: `ours.tokens_per_s.median`."""

    def value(row: Any, path: str) -> Any:
        for key in path.split("."):
            row = row.get(key) if isinstance(row, dict) else None
        return row

    return tables.table([{key: value(row, key) for _, key, _ in columns} for row in rows], columns)


class Results:
    """What a benchmark has measured, row by row, in OUT/NAME.json and as a table in OUT/NAME.txt,
    which both are written with every row. Rows that are there are not measured again.

    out: a folder; none, no files. columns: of the table; none, it is written at the end. same:
    names of `about`, what is noted beside a row, in which an earlier row must agree to be taken;
    a line says of how many that was not so, and NAME.before.json keeps them. again: take none.
    Raises UserError where nothing can be written there, or what is there are no results.
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
                self.take(path, same)

    def take(self, path: Path, same: Sequence[str]) -> None:
        """The rows of an earlier call that agree in all of `same`."""
        now = finite(self.about)  # as the file has it
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
            print(f"{len(left)} of {len(rows)} rows in {path} are of another {apart}: not taken")

    def find(self, key: dict) -> dict | None:
        """The first row that has all of `key`, if it has been measured."""
        return next(self.having(key), None)

    def having(self, key: dict) -> Iterator[dict]:
        """The rows that have all of `key`."""
        return (r for r in self.rows if all(r.get(k) == v for k, v in key.items()))

    def measure(self, key: dict, call: Callable[[], dict]) -> dict:
        """The row of `key`: the earlier one, or what `call` finds now, which is written at once."""
        return self.measure_together(key, lambda: [call()])[0]

    def measure_together(self, key: dict, call: Callable[[], list[dict]]) -> list[dict]:
        """The rows of `key`: the earlier ones, or all that `call` finds now, written together."""
        if rows := list(self.having(key)):
            what = textwrap.shorten(", ".join(map(str, key.values())), 60, placeholder=" ...")
            commit = (rows[0].get("about") or {}).get("commit")
            by = "" if commit == self.about["commit"] else f", by commit {commit}"
            print(f"{what}: measured before, in {self.folder}{by}")
            return rows
        return self.add(*({**key, **row} for row in call()))

    def add(self, *rows: dict) -> list[dict]:
        with self.lock:  # runs that go at once
            added = [{**row, "about": self.about} for row in rows]
            self.rows += added
            self.write()
        return added

    def put(self, rows: Iterable[dict]) -> None:
        """What is known by now, in place of the rows so far."""
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
        """Print what has come out, the table where there is no other text, and write it; more: for
        the .json."""
        text = text or table(self.rows, self.columns)
        print(f"\n{text}", flush=True)
        self.write(text, **more)


def rows_of(path: Path) -> list[dict]:
    """Those of a file of results. Raises UserError where it is none."""
    rows = read_json_object(path, MOST).get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} has no results of this benchmark: set another --out")
    return rows


class Peer:
    """A checkout of nanoGPT. Raises UserError for a folder that is no such checkout."""

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
        """Its GPT, from its model.py under a name of its own."""
        spec = importlib.util.spec_from_file_location("peer_model", self.file("model.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules["peer_model"] = module  # its dataclass looks itself up
        spec.loader.exec_module(module)
        with redirect_stdout(StringIO()):  # it prints its size
            return module.GPT(module.GPTConfig(**settings))

    def copy(self, target: Path) -> None:
        """Its programs and config files, to be run in another folder."""
        for name in ("train.py", "model.py", "configurator.py"):
            shutil.copyfile(self.file(name), target / name)
        shutil.copytree(self.folder / "config", target / "config", dirs_exist_ok=True)
