"""benchmarks/train.py and windows.py at toy size, beside a stand-in for the peer."""

import json

import pytest
from helpers.peer import make_peer

from benchmarks import train, windows
from bonsai.system.errors import UserError

TOY = dict(device="cpu", sizes="toy", repeats=2)


def test_both_are_measured_and_rows_are_not_measured_again(tmp_path, capsys):
    peer, out = make_peer(tmp_path / "peer"), tmp_path / "results"
    train.main(**TOY, dtypes="float32", peer=str(peer), out=str(out))
    said = capsys.readouterr().out
    (row,) = json.loads((out / "train.json").read_text())["rows"]
    assert (row["size"], row["dtype"], row["mode"]) == ("toy", "float32", "eager")
    for part in (row["ours"], row["peer"]):
        assert part["tokens_per_s"]["n"] == len(part["seconds"]) == 2
        assert part["mfu"] is None and part["peak_gib"] is None
    medians = [row[name]["tokens_per_s"]["median"] for name in ("ours", "peer")]
    assert row["ratio"]["median"] == pytest.approx(medians[0] / medians[1])
    assert row["peer"]["dtype"] == "float32"  # it has no autocast on a CPU
    text = (out / "train.txt").read_text()
    assert said.endswith(text) and "the peer's own optimizer" not in said
    titles = [cell.strip() for cell in text.splitlines()[0].strip("| ").split("|")]
    ours, theirs = ["tokens/s", "spread", "MFU", "GiB"], ["peer", "tokens/s", "spread", "MFU"]
    assert titles == ["model", "dtype", "mode", "batch", *ours, *theirs, "GiB", "ratio", "n"]

    train.main(**TOY, dtypes="float32", peer=str(peer), out=str(out), steps=2)  # another row
    train.main(**TOY, dtypes="float32", peer=str(peer), out=str(out))
    assert capsys.readouterr().out.count("measured before") == 1
    first, second = json.loads((out / "train.json").read_text())["rows"]
    assert first == row and second["steps"] == 2
    assert (out / "train.txt").read_text() == text


# ---- windows.py ----


def test_windows_are_measured(tmp_path, monkeypatch):
    shape = dict(n_layer=2, n_head=2, n_embd=16, window=8, repeats=2)
    there = dict(device="cpu", dtype="float32", out=str(tmp_path))
    windows.main(lengths="32,64", **shape, **there)
    rows = json.loads((tmp_path / "windows.json").read_text())["rows"]
    assert [(r["T"], r["pattern"]) for r in rows] == [
        (n, p) for n in (32, 64) for p in ("D", "DL", "L")
    ]
    assert [r["scores"] for r in rows] == [32, 24, 16, 64, 40, 16]
    assert all(r["spread"]["n"] == 2 and r["kept"] > 0 for r in rows)
    # what was cut short goes on: a length that lacks a pattern is measured anew, others are not
    (tmp_path / "windows.json").write_text(json.dumps({"rows": rows[:4]}))
    lengths, measure = [], windows.measure
    monkeypatch.setattr(windows, "measure", lambda c, T, r: lengths.append(T) or measure(c, T, r))
    windows.main(lengths="32,64", **shape, **there)
    again = json.loads((tmp_path / "windows.json").read_text())["rows"]
    assert lengths == [64] and again[:3] == rows[:3] and len(again) == 6
    for more, found in (({}, []), ({"force": True}, [32, 64]), ({"window": 4}, [32, 64])):
        lengths.clear()
        windows.main(lengths="32,64", **{**shape, **there, **more})
        assert lengths == found


def test_windows_mistakes_are_one_line():
    with pytest.raises(UserError, match="letters D and L"):
        windows.main(patterns="X", device="cpu")
    with pytest.raises(UserError, match="'long'"):
        windows.main(lengths="long")
