"""benchmarks/train.py and windows.py at toy size, beside a stand-in for the peer; gpu.sh."""

import json
import os
import shutil
import sys

import pytest
import torch
from helpers.peer import make_peer
from helpers.programs import ROOT, assert_one_line_error, run_command

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


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for wrong, says in (
        ({"peer": "nowhere"}, "peer=nowhere has no model.py"),
        ({"sizes": "huge"}, "sizes=huge is not one of toy, recipe"),
        ({"modes": "fast"}, "modes=fast is not one of eager, compiled"),
    ):
        with pytest.raises(UserError, match=says):
            train.main(**{**TOY, **wrong})


# ---- windows.py ----


def test_windows_are_measured(tmp_path):
    shape = dict(n_layer=2, n_head=2, n_embd=16, window=8, repeats=2)
    there = dict(device="cpu", dtype="float32", out=str(tmp_path))
    windows.main(lengths="32,64", **shape, **there)
    rows = json.loads((tmp_path / "windows.json").read_text())["rows"]
    assert [(r["T"], r["pattern"]) for r in rows] == [
        (n, p) for n in (32, 64) for p in ("D", "DL", "L")
    ]
    assert [r["scores"] for r in rows] == [32, 24, 16, 64, 40, 16]
    assert all(r["spread"]["n"] == 2 and r["kept"] > 0 for r in rows)


def test_windows_mistakes_are_one_line(capsys):
    with pytest.raises(UserError, match="letters D and L"):
        windows.main(patterns="X", device="cpu")
    with pytest.raises(SystemExit):
        windows.main(lengths="long")
    assert "'long'" in capsys.readouterr().err


# ---- gpu.sh ----

# In place of Python: notes what it is asked for; a program of the repository leaves a table.
STUB = """#!/usr/bin/env bash
echo "$@" >> "$CALLS"
[ -e "$FAIL" ] && { echo "error: no luck"; exit 1; }
for word in "$@"; do
    out=${word#--out=}
    [ "$out" = "$word" ] || { mkdir -p "$out"; echo table > "$out/$NAME.txt"; }
done
echo measured
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def gpu_sh(tmp_path):
    """Runs benchmarks/gpu.sh with the stub: (result, the calls so far)."""
    (tmp_path / "stub").write_text(STUB)
    os.chmod(tmp_path / "stub", 0o755)
    calls = tmp_path / "calls"

    def start(*stages, **env):
        env = {"TOY": "1", "OUT": "results", "PYTHON": "./stub", "CALLS": str(calls), **env}
        env = {"FAIL": str(tmp_path / "fail"), "NAME": stages[0] if stages else "", **env}
        command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *stages]
        done = run_command(command, tmp_path, env)
        return done, calls.read_text().splitlines() if calls.exists() else []

    return start


def test_gpu_sh_goes_on_where_it_was_cut(gpu_sh, tmp_path):
    (tmp_path / "fail").touch()
    done, calls = gpu_sh("train", PEER="peer")
    assert done.rc == 1 and "FAILED" in done.stdout and "no luck" in done.stdout, done
    assert calls[0].startswith("benchmarks/train.py --out=")
    for word in ("--sizes=toy", "--repeats=2", f"--peer={tmp_path / 'peer'}", "--device=cpu"):
        assert word in calls[0].split()
    (tmp_path / "fail").unlink()
    done, calls = gpu_sh("train", PEER="peer")
    assert done.rc == 0 and done.stdout.endswith("train:\ntable\n\n") and len(calls) == 2, done
    assert (tmp_path / "results" / "train.log").read_text() == "measured\n"
    done, calls = gpu_sh("train", PEER="peer")
    assert done.rc == 0 and "train: done before" in done.stdout and len(calls) == 2, done
    done, calls = gpu_sh("train", FORCE="1")
    assert done.rc == 0 and "--force" in calls[2] and "--peer" not in calls[2], done


def test_gpu_sh_runs_every_stage(gpu_sh, tmp_path):
    for stage, name, program in (
        ("tests", "tests", "tests/benchmarks/test_gpu.py"),
        ("decode", "decode", "benchmarks/decode.py"),
        ("race", "gpu", "benchmarks/race.py --race=gpu"),
        ("bytes", "bytes", "benchmarks/bytes.py --quick --scale=toy"),
    ):
        done, calls = gpu_sh(stage, NAME=name)
        assert done.rc == 0 and f"{stage}:\ntable" in done.stdout, done
        assert any(call.startswith(program) for call in calls), calls


def test_gpu_sh_says_what_is_wrong(gpu_sh, tmp_path):
    assert_one_line_error(gpu_sh("nosuch")[0], "unknown stage nosuch")
    assert_one_line_error(gpu_sh()[0], "no stage given")
    assert_one_line_error(gpu_sh("tests", PYTHON="no-python")[0], "no-python")
    (tmp_path / "fail").touch()
    assert_one_line_error(gpu_sh("tests", TOY="")[0], "TOY=1")


@pytest.mark.slow
def test_gpu_sh_runs_the_checks(gpu_sh, tmp_path):
    done, _ = gpu_sh("tests", PYTHON=sys.executable)
    assert done.rc == 0, done
    checks = json.loads((tmp_path / "results" / "tests.json").read_text())
    assert (checks["passed"], checks["failed"], checks["skipped"]) == (5, 0, 2), checks
    assert "5 checks passed" in done.stdout.rstrip().splitlines()[-1]
    assert torch.cuda.is_available() or "skipped: needs CUDA" in done.stdout
