"""Training runs as the page sees them."""

import json
import os
import tracemalloc

import pytest

from bonsai.serving.page import runs
from bonsai.serving.page.runs import find_runs, list_runs, rows_from


def make_run(folder, rows, settings=None):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if settings is not None:
        (folder / "config.json").write_text(json.dumps(settings))
    return folder / "metrics.jsonl"


def test_a_summary_of_each_run(tmp_path):
    rows = [{"iter": 0, "loss": 3.0}, {"iter": 5, "val_loss": 2.5}, {"iter": 9, "loss": 2.0}]
    old = make_run(tmp_path / "out-a", rows, {"max_iters": 10})
    os.utime(old, (1e9, 1e9))
    new = make_run(tmp_path / "out-b", [])
    os.utime(new, (1e9 + 100, 1e9 + 100))
    make_run(tmp_path / "other", rows)
    (tmp_path / "out-empty").mkdir()
    b, a = list_runs([tmp_path], now=1e9 + 110)
    assert a["name"] == a["path"] == "out-a" and a["step"] == 9 and a["val_loss"] == 2.5
    assert a["max_iters"] == 10 and a["settings"] == {"max_iters": 10} and not a["live"]
    assert b["live"] and b["step"] == 0 and b["val_loss"] is None and b["settings"] == {}


def test_the_first_of_two_folders_wins(tmp_path):
    make_run(tmp_path / "x" / "out", [])
    make_run(tmp_path / "y" / "out", [])
    make_run(tmp_path / "y" / "out-2", [])
    runs = find_runs([tmp_path / "x", tmp_path / "y"])
    assert runs == {"out": tmp_path / "x" / "out", "out-2": tmp_path / "y" / "out-2"}


def test_rows_from_a_line_on(tmp_path):
    make_run(tmp_path / "out", [{"iter": i} for i in range(5)])
    assert rows_from(tmp_path / "out", 3) == ([{"iter": 3}, {"iter": 4}], 5)
    assert rows_from(tmp_path / "out", 5) == ([], 5)
    assert rows_from(tmp_path / "out", 1, most=2) == ([{"iter": 1}, {"iter": 3}, {"iter": 4}], 5)
    assert len(rows_from(tmp_path / "out", 99)[0]) == 5  # the run was begun anew


def test_lines_in_the_making_and_damaged_ones(tmp_path):
    path = make_run(tmp_path / "out", [{"iter": 0}])
    with open(path, "a") as f:
        f.write('{"iter"\n5\n{"iter": 1, "loss": NaN, "norm": Infinity}\n{"iter": 2')
    rows, end = rows_from(tmp_path / "out")
    assert rows == [{"iter": 0}, {"iter": 1, "loss": None, "norm": None}] and end == 4
    with open(path, "a") as f:
        f.write("}\n")
    assert rows_from(tmp_path / "out", end) == ([{"iter": 2}], 5)


def test_long_runs_are_thinned(tmp_path):
    """Few rows of many, evaluations among them, and no more in memory than that takes."""
    path = make_run(tmp_path / "out", [])
    lines = [b'{"iter": %d, "loss": 2.5, "lr": 0.001, "note": "%s"}\n' % (i, b"x" * 90)
             for i in range(1000)]  # fmt: skip
    with open(path, "wb") as f:
        for i in range(100):
            f.write(b"".join(lines))
            f.write(b'{"iter": %d, "val_loss": %d.5}\n' % (1000 * i, i))
    tracemalloc.start()
    (run,) = list_runs([tmp_path])
    rows, end = rows_from(tmp_path / "out", most=500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert run["val_loss"] == 99.5 and run["step"] == 99000
    assert end == 100 * 1001 and 500 <= len(rows) <= 620
    assert [r["val_loss"] for r in rows if "val_loss" in r] == [i + 0.5 for i in range(100)]
    assert peak < path.stat().st_size / 2
    assert rows_from(tmp_path / "out", end) == ([], end)


@pytest.mark.parametrize("block", [1, 7, 100, 10_000])
def test_rows_from_a_line_on_are_found_in_any_block(tmp_path, monkeypatch, block):
    monkeypatch.setattr(runs, "BLOCK", block)
    rows = [{"iter": i, "loss": 1.5} for i in range(40)]
    make_run(tmp_path / "out", rows)
    for start in range(41):
        assert rows_from(tmp_path / "out", start) == (rows[start:], 40)


ODD = {
    "no rows": b"",
    "half a row": b'{"iter": 1',
    "no JSON": b"\x00\xff\n[1, 2]\n5\nnull\n",
    "not numbers": b'{"iter": "x", "val_loss": [1]}\n{"iter": null, "val_loss": "low"}\n',
    "infinite": b'{"iter": NaN, "val_loss": Infinity, "x": [{"y": -Infinity}]}\n',
    "too deep": b"[" * 60_000 + b"\n",
    "too long": b'{"iter": 7, "x": "' + b"x" * 200_000 + b'"}\n',
    "halves of characters": b'{"iter": 1, "x": "\\ud83d", "\\udc00": 1}\n',
    "long numbers": b'{"iter": ' + b"9" * 5000 + b"}\n",
}


def test_odd_folders_cost_themselves_alone(tmp_path):
    for i, data in enumerate(ODD.values()):
        make_run(tmp_path / f"out-{i}", []).write_bytes(data)
        (tmp_path / f"out-{i}" / "config.json").write_bytes(data)
    make_run(tmp_path / "out-good", [{"iter": 3, "val_loss": 1.5}])
    make_run(tmp_path / "out-settings", [], {"deep": {"lr": [float("nan")]}, "max_iters": "many"})
    (tmp_path / "out-folder" / "metrics.jsonl").mkdir(parents=True)
    (tmp_path / "out-fifo").mkdir()
    os.mkfifo(tmp_path / "out-fifo" / "metrics.jsonl")
    make_run(tmp_path / "out-fifo2", [{"iter": 1}])
    os.mkfifo(tmp_path / "out-fifo2" / "config.json")
    (tmp_path / "out-circle").symlink_to("out-circle")
    os.makedirs(os.fsencode(tmp_path) + b"/out-\xff")
    with open(os.fsencode(tmp_path) + b"/out-\xff/metrics.jsonl", "wb"):
        pass
    runs = {run["name"]: run for run in list_runs([tmp_path, tmp_path / "nowhere"])}
    json.dumps(list(runs.values()), allow_nan=False).encode()
    assert {"out-good", "out-settings", "out-fifo2"} | {f"out-{i}" for i in range(len(ODD))} == (
        set(runs)
    )
    assert runs["out-good"]["val_loss"] == 1.5
    assert runs["out-settings"]["settings"]["deep"] == {"lr": [None]}
    for name in runs:
        json.dumps(rows_from(tmp_path / name), allow_nan=False).encode()
    assert rows_from(tmp_path / "out-fifo") == ([], 0)
