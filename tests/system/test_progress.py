"""bonsai/system/progress.py: a bar on a terminal, else a line every half minute."""

import io
import sys
from types import SimpleNamespace

import pytest

from bonsai.system import progress
from bonsai.system.progress import ProgressBar


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so; no terminal."""
    made = SimpleNamespace(now=100.0, monotonic=lambda: made.now)
    monkeypatch.setattr(progress, "time", made)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    return made


def test_a_line_every_half_minute(clock, capsys):
    with ProgressBar(4_000_000, label="reading") as job:
        for _ in range(10):
            clock.now += 10
            job.advance(100_000)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0] == "reading: 8%, 10 kB/s, 6 min left"
    assert lines[-1] == "reading: 22%, 10 kB/s, 5 min left"


def test_a_short_job_says_nothing(clock, capsys):
    with ProgressBar(10) as job:
        clock.now += 29
        job.advance(10)
    assert capsys.readouterr().out == ""


def test_nothing_to_do_and_nothing_done_divide_by_nothing(clock, capsys):
    job = ProgressBar(0, unit="doc")
    clock.now += 30
    job.advance(0)
    assert capsys.readouterr().out == "tokenizing: 0%, 0 doc/s, inf min left\n"


def test_a_bar_on_a_terminal(clock, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with ProgressBar(2048, label="reading") as job:
        clock.now += 60
        job.advance(2048)
    assert "reading: 100%" in sys.stderr.getvalue() and capsys.readouterr().out == ""
