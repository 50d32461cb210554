"""benchmarks/gpu.sh: its stages with a stand-in for Python, and how they end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.programs import ROOT, assert_one_line_error, environment, run_command

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or sys.platform != "linux", reason="bash on Linux, with /proc"
)

# In place of Python: notes what it is asked for; a program of the repository leaves a table, and
# where $SLOW is, it goes on for long.
STUB = """#!/usr/bin/env bash
echo "$@" >> "$CALLS"
[ -e "$FAIL" ] && { echo "error: no luck"; exit 1; }
for word in "$@"; do
    out=${word#--out=}
    [ "$out" = "$word" ] || { mkdir -p "$out"; echo table > "$out/$NAME.txt"; }
done
echo measured
[ -e "$SLOW" ] && { sleep 60 & echo $! > "$SLOW"; wait; }
exit 0
"""


def ends(pid: int) -> bool:
    """Whether a process is over, soon; one that nobody has waited for is."""
    for _ in range(100):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def gpu_sh(tmp_path):
    """Runs benchmarks/gpu.sh with the stub: (result, the calls so far)."""
    (tmp_path / "stub").write_text(STUB)
    os.chmod(tmp_path / "stub", 0o755)
    calls = tmp_path / "calls"

    def start(*stages, run=run_command, **env):
        env = {"TOY": "1", "OUT": "results", "PYTHON": "./stub", "CALLS": str(calls), **env}
        env |= {"FAIL": str(tmp_path / "fail"), "SLOW": str(tmp_path / "slow")}
        env = {"NAME": stages[0] if stages else "", **env}
        command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *stages]
        done = run(command, tmp_path, env)
        return done, calls.read_text().splitlines() if calls.exists() else []

    return start


def test_it_goes_on_where_it_was_cut(gpu_sh, tmp_path):
    (tmp_path / "fail").touch()
    done, calls = gpu_sh("train", PEER="peer")
    assert done.rc == 1 and "NOT done" in done.stdout and "no luck" in done.stdout, done
    assert calls[0].startswith("benchmarks/train.py --out=")
    for word in ("--sizes=toy", "--repeats=2", f"--peer={tmp_path / 'peer'}", "--device=cpu"):
        assert word in calls[0].split()
    (tmp_path / "fail").unlink()
    done, calls = gpu_sh("train", PEER="peer")
    assert done.rc == 0 and "train:\ntable\n" in done.stdout, done
    assert [call.split()[:2] for call in calls[2:]] == [
        *(["bench.py", "--n_layer=1"], *[["bench.py", "config/fast_gpt2.py"]] * 2)
    ]
    assert "--micro_batches=2" in calls[4] and "--micro_batches" not in calls[3]
    assert (tmp_path / "results" / "train.log").read_text() == "measured\n" * 4
    done, again = gpu_sh("train", PEER="peer")
    assert done.rc == 0 and "train: done before" in done.stdout and again == calls, done
    done, again = gpu_sh("train", FORCE="1")
    first = again[len(calls)].split()
    assert done.rc == 0 and "--force" in first and "--peer" not in first, done


def test_every_stage(gpu_sh, tmp_path):
    for stage, name, program in (
        ("tests", "tests", "tests/benchmarks/test_gpu.py"),
        ("decode", "decode", "benchmarks/decode.py"),
        ("long", "windows", "benchmarks/windows.py"),
        ("race", "race", "benchmarks/race_gpu.py"),
        ("bytes", "bytes", "benchmarks/bytes.py --quick --scale=toy"),
    ):
        done, calls = gpu_sh(stage, NAME=name)
        assert done.rc == 0 and f"{stage}:\ntable" in done.stdout, done
        assert any(call.startswith(program) for call in calls), calls


@pytest.mark.parametrize("how", ["LIMIT", "TOTAL"])
def test_what_takes_too_long_is_ended_and_its_table_printed(gpu_sh, tmp_path, how):
    """With all that it has started; the next stage goes on, where the call has time left."""
    (tmp_path / "slow").touch()
    begin = time.monotonic()
    done, calls = gpu_sh("decode", "tests", NAME="decode", **{how: "2"})
    assert done.rc == 1 and time.monotonic() - begin < 30
    assert "decode: NOT done" in done.stdout and done.stdout.endswith("decode:\ntable\n\n"), done
    assert ends(int((tmp_path / "slow").read_text()))
    assert len(calls) == (2 if how == "LIMIT" else 1)
    assert ("no time is left" in done.stdout) == (how == "TOTAL")
    (tmp_path / "slow").unlink()
    assert gpu_sh("decode")[0].rc == 0  # nothing is taken as done


def test_a_signal_ends_it_with_its_tables(gpu_sh, tmp_path):
    (tmp_path / "slow").touch()

    def stopped(command, folder, env):
        env = environment(**env)
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process = subprocess.Popen(command, cwd=folder, env=env, **pipes)
        while not (tmp_path / "slow").read_text().strip():
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        return process.communicate(timeout=30)[0]

    said, _ = gpu_sh("decode", run=stopped)
    assert said.endswith("decode:\ntable\n\n")
    assert ends(int((tmp_path / "slow").read_text()))


def test_it_says_what_is_wrong(gpu_sh, tmp_path):
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
    assert checks["failed"] == 0 and checks["passed"] >= 6, checks
    assert f"{checks['passed']} checks passed, 0 failed" in done.stdout.rstrip().splitlines()[-1]
    assert torch.cuda.is_available() or "skipped: needs CUDA" in done.stdout
