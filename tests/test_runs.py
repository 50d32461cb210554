"""Training runs as the page sees them."""

import json
import os

from bonsai.serving.runs import find_runs, list_runs, read_rows


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
    found = find_runs([tmp_path / "x", tmp_path / "y"])
    assert found == {"out": tmp_path / "x" / "out", "out-2": tmp_path / "y" / "out-2"}


def test_rows_from_a_line_on(tmp_path):
    make_run(tmp_path / "out", [{"iter": i} for i in range(5)])
    assert read_rows(tmp_path / "out", 3) == ([{"iter": 3}, {"iter": 4}], 5)
    assert read_rows(tmp_path / "out", 5) == ([], 5)
    assert read_rows(tmp_path / "out", 1, most=2) == ([{"iter": 1}, {"iter": 2}], 3)
    assert len(read_rows(tmp_path / "out", 99)[0]) == 5  # the run was begun anew


def test_lines_in_the_making_and_damaged_ones(tmp_path):
    path = make_run(tmp_path / "out", [{"iter": 0}])
    with open(path, "a") as f:
        f.write('{"iter"\n5\n{"iter": 1, "loss": NaN, "norm": Infinity}\n{"iter": 2')
    rows, end = read_rows(tmp_path / "out")
    assert rows == [{"iter": 0}, {"iter": 1, "loss": None, "norm": None}] and end == 4
    with open(path, "a") as f:
        f.write("}\n")
    assert read_rows(tmp_path / "out", end) == ([{"iter": 2}], 5)
