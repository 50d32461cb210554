"""`| head`: a program that nobody reads any more ends, without a word, as SIGPIPE ends others.

The programs run in this process, with a pipe as their stdout whose other end is closed.
"""

import os
import re
import sys

import pytest
import torch
from helpers.every_program import PROGRAMS, WORK, start, words_for
from helpers.programs import load

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")


@pytest.fixture(params=["at once", "when it is full"])
def unread(request, monkeypatch, place, workplace, capfd):
    """Start a program whose stdout is written to at its first line, or late: its exit status, and
    what it said on stderr."""

    def started(program: str, *words: str) -> tuple[int | None, str]:
        read, write = os.pipe()
        os.close(read)
        with open(write, "w", buffering=1 if request.param == "at once" else -1) as stdout:
            monkeypatch.setattr(sys, "stdout", stdout)
            status = start(monkeypatch, place, workplace, program, *words)
        return status, capfd.readouterr().err

    threads = torch.get_num_threads()
    yield started
    torch.set_num_threads(threads)


@pytest.mark.parametrize("program, words, work", WORK, ids=[f"{w[0]}-{w[1][0]}" for w in WORK])
def test_its_work_ends(unread, place, tmp_path, program, words, work):
    status, err = unread(program, *words_for(words, place, tmp_path / "made"))
    assert status == 141
    if (tmp_path / "made" / "last.pt").exists():  # a run has begun: it saves, and says so
        assert program == "train.py"
        assert err.startswith("\nstdout is closed: finishing this step, then saving\n")
        step = load(tmp_path / "made" / "last.pt")["iter_num"]
        assert err.count("stdout is closed") == 1 and f"\nstopped at step {step}; " in err
    else:
        assert not re.search("error|Traceback|ignored|closed", err)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_its_help_ends(unread, program):
    assert unread(program, "--help") == (141, "")
