"""benchmarks/gpu.py, called by gpu.sh: its stages with a stand-in for Python, and how they end."""

import fcntl
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import SkipTest

import psutil
import pytest
import torch
from helpers.programs import ROOT, assert_one_line_error, environment, program_module, run_command
from helpers.settings import settings

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or sys.platform != "linux", reason="bash on Linux, with /proc"
)

# In place of Python, but for gpu.py itself: notes what it is asked for; a program of the repository
# leaves a table, and where $SLOW is, it goes on for long.
STUB = """#!/usr/bin/env bash
case "$1" in */benchmarks/gpu.py) exec "$REAL" "$@";; esac
echo "$@" >> "$CALLS"
case "$*" in *"${FAILS:-no such word}"*) echo "error: no luck"; exit 1;; esac
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
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def gpu_sh(tmp_path):
    """Runs benchmarks/gpu.sh with the stub: (result, the calls so far)."""
    (tmp_path / "stub").write_text(STUB)
    os.chmod(tmp_path / "stub", 0o755)
    calls = tmp_path / "calls"

    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "model.py").touch()

    def start(*stages, run=run_command, **env):
        env = {"TOY": "1", "OUT": "results", "PYTHON": "./stub", "CALLS": str(calls), **env}
        env |= {"FAIL": str(tmp_path / "fail"), "SLOW": str(tmp_path / "slow")}
        env = {"REAL": sys.executable, "NAME": stages[0] if stages else "", **env}
        command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *stages]
        done = run(command, tmp_path, env)
        return done, calls.read_text().splitlines() if calls.exists() else []

    return start


def test_it_goes_on_where_it_was_cut(gpu_sh, tmp_path):
    """Of a stage's programs those go on that have not ended well, with the same words."""
    done, calls = gpu_sh("train", PEER="peer", FAILS="config/fast_gpt2.py")
    assert done.rc == 1 and "train: NOT done" in done.stdout and "no luck" in done.stdout, done
    assert "train:\ntable\n" in done.stdout
    assert calls[0].startswith("benchmarks/train.py --out=")
    for word in ("--sizes=toy", "--repeats=2", f"--peer={tmp_path / 'peer'}", "--device=cpu"):
        assert word in calls[0].split()
    assert [call.split()[:2] for call in calls[1:]] == [
        *(["bench.py", "--n_layer=1"], *[["bench.py", "config/fast_gpt2.py"]] * 2)
    ]
    assert "--micro_batches=2" in calls[3] and "--micro_batches" not in calls[2]
    assert (tmp_path / "results" / "train.log").read_text() == "measured\n"
    done, again = gpu_sh("train", PEER="peer")
    assert done.rc == 0 and "train:\ntable\n" in done.stdout, done
    assert again == [*calls, *calls[2:]] and done.stdout.count("done before") == 2
    done, again = gpu_sh("train", PEER="peer")
    assert done.rc == 0 and done.stdout.count("done before") == 4 and len(again) == 6, done


@pytest.mark.parametrize("stage", ["train", "decode"])
@pytest.mark.parametrize("other", ["settings", "FORCE", "commit", "nothing"])
def test_what_was_measured_otherwise_is_measured_again(gpu_sh, tmp_path, stage, other):
    """With another peer, at another commit or elsewhere; and no old table stands for it."""
    assert gpu_sh(stage, PEER="peer")[0].rc == 0
    count = len(gpu_sh(stage, PEER="peer")[1])
    for words in (tmp_path / "results").glob("*.words") if other == "commit" else ():
        words.write_text(words.read_text().replace("commit ", "commit earlier"))
    env = {"settings": {}, "FORCE": {"PEER": "peer", "FORCE": "1"}}.get(other, {"PEER": "peer"})
    done, calls = gpu_sh(stage, FAILS="benchmarks/", **env)
    assert (done.rc == 1) == (other != "nothing") == (len(calls) > count), done
    assert ("table" in done.stdout) == (other == "nothing")
    forced = [call for call in calls[count:] if "--force" in call.split()]
    assert len(forced) == (other == "FORCE") * {"train": 1, "decode": 2}[stage]
    assert not any("--peer" in call for call in calls[count:]) or other != "settings"


def test_every_stage(gpu_sh, tmp_path):
    for stage, name, program in (
        ("tests", "tests", "tests/benchmarks/test_gpu.py"),
        ("decode", "decode", "benchmarks/decode.py"),
        ("long", "windows", "benchmarks/windows.py"),
        ("parts", "update", "benchmarks/update.py"),
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
    assert "decode: NOT done" in done.stdout and "decode:\ntable\n\n" in done.stdout, done
    assert ends(int((tmp_path / "slow").read_text()))
    assert len(calls) == (2 if how == "LIMIT" else 1)
    assert "sample: no time is left" in done.stdout  # of the same stage
    assert ("tests: no time is left" in done.stdout) == (how == "TOTAL")
    (tmp_path / "slow").unlink()
    assert gpu_sh("decode")[0].rc == 0  # nothing is taken as done


def stopped_by(number: str, slow: Path):
    """As run_command: sends a signal once a program of the call goes on for long; what was said."""
    status = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGKILL": -9}[number]
    slow.touch()

    def run(command, folder, env):
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process = subprocess.Popen(command, cwd=folder, env=environment(**env), **pipes)
        while not slow.read_text().strip():
            time.sleep(0.05)
        process.send_signal(signal.Signals[number])
        said = process.communicate(timeout=30)[0]
        assert process.returncode == status
        return said

    return run


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_signal_ends_it_with_its_tables(gpu_sh, tmp_path, number):
    """And all that it has started, when it is killed as well; the same command goes on."""
    said, _ = gpu_sh("decode", run=stopped_by(number, tmp_path / "slow"))
    assert said.endswith("decode:\ntable\n\n") or number == "SIGKILL"
    assert ends(int((tmp_path / "slow").read_text()))
    (tmp_path / "slow").unlink()
    done, calls = gpu_sh("decode", "decode")  # what is left of the first has 10 s to end
    assert done.rc == 0 and len(calls) == 3, done
    assert done.stdout.count("done before") == 2


@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_a_signal_ends_the_search_for_a_gpu(gpu_sh, tmp_path, number):
    _, calls = gpu_sh("decode", run=stopped_by(number, tmp_path / "slow"), TOY="")
    assert ends(int((tmp_path / "slow").read_text()))
    assert len(calls) == 1 and calls[0].startswith("-c import torch")


def test_one_call_at_a_time(gpu_sh, tmp_path):
    (tmp_path / "results").mkdir()
    with open(tmp_path / "results" / "lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        assert_one_line_error(gpu_sh("tests")[0], "another call uses", "set --out to another")
    assert gpu_sh("tests")[0].rc == 0


def test_the_race_begins_nothing_in_the_last_minute(gpu_sh):
    """minutes: what is left but for one, in decimals."""
    for limit, most in (("45", 0.0001), ("64", 0.07), ("300", 4), ("304", 4.07)):
        _, calls = gpu_sh("race", LIMIT=limit, FORCE="1")
        given = [word for word in calls[-1].split() if word.startswith("--minutes=")]
        assert 0 < float(given[0].partition("=")[2]) <= most, calls[-1]


def test_force_repeats_the_runs_of_the_race(gpu_sh, tmp_path):
    """It has no --force of its own."""
    for force, left in (("", True), ("1", False)):
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / "race.json").touch()
        assert gpu_sh("race", FORCE=force)[0].rc == 0
        assert (tmp_path / "results" / "race.json").exists() == left


@pytest.mark.skipif((ROOT / "data" / "race_text").exists(), reason="its text is prepared here")
@pytest.mark.parametrize(
    "text, ending", [("a.c.xz", ",.xz"), ("a", ""), ("folder.d", ""), ("folder.d/a.txt", ",.txt")]
)
def test_the_text_of_the_race_may_be_any_file_or_folder(gpu_sh, tmp_path, text, ending):
    (tmp_path / "folder.d").mkdir()
    for file in ("a.c.xz", "a", "folder.d/a.txt"):
        (tmp_path / file).touch()
    done, calls = gpu_sh("race", TOY="", TEXT=text, TOKENS="1e7")
    assert done.rc == 0 and len(calls) == 3, done  # the first asks for the GPU
    words = calls[1].split()
    assert f"--input={tmp_path / text}" in words
    assert f"--endings=.c,.h,.py,.md{ending}" in words and "--tokenizer=gpt2" in words
    assert "--dataset=race_text" in calls[2].split() and "--device=cpu" not in calls[2]
    assert "--tokens=10000000" in calls[2].split()


def test_each_setting_is_a_variable_of_gpu_sh(tmp_path):
    """And what is not set is left to gpu.py."""
    (tmp_path / "echo").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    os.chmod(tmp_path / "echo", 0o755)
    others = {*settings("benchmarks/gpu.py", [])} - {"stages", "python"}
    assert len(others) == 8
    env = {name.upper(): "" for name in others} | {"PYTHON": "./echo"}
    for given in ({}, {name.upper(): f"a {name}" for name in others}):
        command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "tests", "train"]
        program, *words = run_command(command, tmp_path, env | given).stdout.splitlines()
        assert program == str(ROOT / "benchmarks" / "gpu.py")
        assert words[:2] == ["--stages=tests,train", "--python=./echo"]
        assert {*words[2:]} == {f"--{name.lower()}={value}" for name, value in given.items()}


def test_stages_that_are_named_are_there():
    """In documents, in gpu.py and in gpu.sh, whose command is one of gpu.py's."""
    stages = program_module("benchmarks/gpu.py").STAGES
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("gpu.*")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages if page.stem != "LOG")
    named = [n for names in re.findall(r"--stages=([\w,]+)", text) for n in names.split(",")]
    assert set(named) == set(stages)
    words = re.search(r"^#   (.*benchmarks/gpu\.sh) (.*)\n#   (python .*)\n#$", text, re.M)
    assert words[3].split() == ["python", "benchmarks/gpu.py"] + [
        f"--stages={words[2].replace(' ', ',')}",
        *(f"--{key.lower()}={value}" for key, value in re.findall(r"(\w+)=(\S+)", words[1])),
    ]


def test_it_says_what_is_wrong(gpu_sh, tmp_path):
    assert_one_line_error(gpu_sh("nosuch")[0], "unknown stage nosuch")
    assert_one_line_error(gpu_sh()[0], "no stage given")
    assert_one_line_error(gpu_sh("tests", PYTHON="no-python")[0], "no-python")
    for name, value, words in (
        ("TOTAL", "5m", "--total expects int, got '5m'"),
        ("LIMIT", "-3", "--limit=-3 must be at least 1"),
        ("TOKENS", "1e-7", "--tokens expects int, got '1e-7'"),
        ("PEER", "nowhere", "nowhere has no model.py"),
        ("TEXT", "nowhere.xz", "nowhere.xz does not exist"),
        ("OUT", "stub", "cannot write into the folder"),
    ):
        assert_one_line_error(gpu_sh("tests", **{name: value})[0], words)
    (tmp_path / "fail").touch()
    assert_one_line_error(gpu_sh("tests", TOY="")[0], "TOY=1")


def test_the_checks_go_on_where_they_were_cut(tmp_path, capsys):
    """Those that passed are not repeated, but with --force."""
    spec = importlib.util.spec_from_file_location("checks", ROOT / "tests/benchmarks/test_gpu.py")
    checks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(checks)
    for name in [name for name in vars(checks) if name.startswith("test_")]:
        delattr(checks, name)
    ran, ends = [], {"a": None, "b": KeyboardInterrupt(), "c": SkipTest("needs CUDA")}

    def add(name: str) -> None:
        def check(device):
            ran.append(name)
            print(f"{name} is right")
            if ends[name]:
                raise ends[name]

        setattr(checks, f"test_{name}", check)

    for name in ends:
        add(name)
    given = {"device": "cpu", "out": str(tmp_path)}
    with pytest.raises(KeyboardInterrupt):
        checks.main(**given)
    assert "| test_a | passed |" in (tmp_path / "tests.txt").read_text()
    for failure, more, want in (
        (AssertionError("off by 1"), {}, ["b", "c"]),
        (None, {}, ["b", "c"]),
        (None, {}, ["c"]),
        (None, {"force": True}, ["a", "b", "c"]),
    ):
        ends["b"] = failure
        ran.clear()
        assert checks.main(**given, **more) == bool(failure) and ran == want
        said = (tmp_path / "tests.txt").read_text()
        passed = "1 checks passed, 1 failed" if failure else "2 checks passed, 0 failed"
        assert said.endswith(f"{passed}, 1 skipped\n") and "skipped: needs CUDA" in said


@pytest.mark.slow
def test_gpu_sh_runs_the_checks(gpu_sh, tmp_path):
    done, _ = gpu_sh("tests", PYTHON=sys.executable)
    assert done.rc == 0, done
    checks = json.loads((tmp_path / "results" / "tests.json").read_text())
    assert checks["failed"] == 0 and checks["passed"] >= 6, checks
    assert f"{checks['passed']} checks passed, 0 failed" in done.stdout.rstrip().splitlines()[-1]
    assert torch.cuda.is_available() or "skipped: needs CUDA" in done.stdout
