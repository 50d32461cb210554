"""benchmarks/steps.py: programs in the time that there is, and not again."""

import contextlib
import os
import subprocess
import sys
import time

import pytest
from helpers.programs import ROOT

from benchmarks import steps as module
from benchmarks.steps import Steps, alone_in, said_by
from bonsai.system.errors import UserError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups of POSIX")


@pytest.fixture
def steps(tmp_path):
    """Makes Steps in one folder, whose Python is a shell: `program` is a script."""
    (tmp_path / "program").write_text("echo $* in $PWD; echo wrong >&2; sleep $1; exit $2\n")
    with alone_in(tmp_path / "out") as lock:

        def make(about: str = "a machine", again: bool = False, **options) -> Steps:
            return Steps(tmp_path / "out", "sh", about, again, lock, **options)

        yield make


def test_what_a_program_says_is_printed_and_kept(steps, tmp_path, capsys):
    program = str(tmp_path / "program")
    assert steps().run("a", program, "0", "0")
    assert not steps().run("b", program, "0", "1")
    for name, status in (("a", 0), ("b", 1)):
        said = f"0 {status} in {ROOT}\nwrong\n"
        assert (tmp_path / "out" / f"{name}.log").read_text() == said
        assert said in capsys.readouterr().out or name == "b"
        assert (tmp_path / "out" / f"{name}.done").exists() == (name == "a")


def test_what_has_ended_well_is_not_run_again(steps, tmp_path, capsys):
    """With the same words, about the same machine; what a table held of others is gone."""
    program, out = str(tmp_path / "program"), tmp_path / "out"
    assert steps().run("a", program, "0", "0", "--minutes=3")
    for about, again, words, runs in (
        ("a machine", False, ["--minutes=2"], False),
        ("a machine", False, ["--force"], False),
        ("a machine", False, ["--other"], True),
        ("another", False, ["--other"], True),
        ("another", True, ["--other"], True),
    ):
        (out / "a.txt").write_text("table")
        capsys.readouterr()
        assert steps(about, again).run("a", program, "0", "0", *words)
        assert ("done before" not in capsys.readouterr().out) == runs
        assert (out / "a.txt").exists() != runs
    assert not steps().run("a", program, "0", "1", "--other")
    assert not (out / "a.done").exists()


def test_the_time_is_that_of_the_stage_and_of_the_call(steps, tmp_path, capsys):
    program = str(tmp_path / "program")
    call = steps(last=time.monotonic() + 1)
    for limit in (60, 0.5):
        call.begin(limit)
        assert 0 < call.left() <= min(limit, 1)
    begin = time.monotonic()
    assert not call.run("a", program, "50", "0")
    assert time.monotonic() - begin < 20 and not call.left()
    assert not (tmp_path / "out" / "a.done").exists()
    assert not call.run("b", program, "0", "0")
    assert "b: no time is left" in capsys.readouterr().out
    assert not (tmp_path / "out" / "b.log").exists()
    assert steps().left() == float("inf")


def test_a_long_time_leaves_some_to_end_in(steps, monkeypatch):
    given = []

    @contextlib.contextmanager
    def supervised(seconds, command, **options):
        given.append(seconds)
        raise UserError("no")
        yield

    monkeypatch.setattr(module, "supervised", supervised)
    for limit in (9, 100):
        call = steps()
        call.begin(limit)
        with pytest.raises(UserError):
            call.measure("a", "program")
    assert 8 < given[0] <= 9 and 94 < given[1] <= 95


def test_a_pipe_that_another_holds_is_not_waited_for():
    code = "import subprocess; print('on', flush=True); subprocess.Popen(['sleep', '20'])"
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, bufsize=0
    )
    begin = time.monotonic()
    with process:
        assert b"".join(said_by(process)) == b"on\n" and time.monotonic() - begin < 15


def test_one_call_at_a_time_works_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    file = tmp_path / "file"
    file.touch()
    with alone_in(tmp_path):
        for folder, words in ((tmp_path, "another call uses"), (file, "cannot write into")):
            with pytest.raises(UserError, match=words), alone_in(folder):
                pass
    with alone_in(tmp_path):
        pass
