"""The quickstart: what its run, as `make quickstart` makes it, must reach."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.programs import ROOT

BOUND = 1.38  # bits per byte; measured 1.295


def final_bits_per_byte(out_dir: Path) -> tuple[float, float]:
    rows = [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]
    evals = [row["val_bpb"] for row in rows if "val_bpb" in row]
    return evals[0], evals[-1]


@pytest.fixture(scope="module")
def quickstart_run(tmp_path_factory) -> Path:
    """The run of `make quickstart` where there is one of this very config, else a run made now."""
    done = ROOT / "out-quickstart"
    config = ROOT / "config" / "quickstart.py"
    if (done / "last.pt").exists():
        newest = max(p.stat().st_mtime for p in (config, ROOT / "train.py", ROOT / "model.py"))
        if (done / "config.json").stat().st_mtime > newest:
            return done
    if os.environ.get("CI") != "true":
        pytest.skip("a minute of training: run make quickstart first, or set CI=true")
    subprocess.run([sys.executable, ROOT / "data/python_stdlib/prepare.py"], check=True)
    out = tmp_path_factory.mktemp("quickstart")
    subprocess.run([sys.executable, ROOT / "train.py", config, f"--out_dir={out}"], check=True)
    return out


def test_bits_per_byte_end_below_the_bound(quickstart_run):
    before, after = final_bits_per_byte(quickstart_run)
    assert 3 < before < 4  # untrained: of the 8 bits the vocabulary alone knows more than half
    assert after < BOUND


def test_the_context_holds_a_real_text(quickstart_run):
    config = json.loads((quickstart_run / "config.json").read_text())
    meta = json.loads((ROOT / "data" / config["dataset"] / "meta.json").read_text())
    split = meta["splits"]["train"]
    assert config["block_size"] * split["bytes"] / split["tokens"] >= 512  # characters


def test_the_run_leaves_what_a_person_looks_at(quickstart_run):
    names = ("ckpt.pt", "last.pt", "loss.png", "metrics.jsonl", "config.json", "log.txt")
    assert [n for n in names if not (quickstart_run / n).exists()] == []
