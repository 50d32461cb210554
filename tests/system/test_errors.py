"""Errors in one line, whatever is in them."""

import pytest

from bonsai.system.errors import LONGEST, UserError, fail, one_line, run


@pytest.mark.parametrize(
    "message, line",
    [
        ("plain", "plain"),
        ("two\n  lines\tand a tab", "two lines and a tab"),
        ("\x1b]0;title\x07\x1b[2J", "\\x1b]0;title\\x07\\x1b[2J"),  # a terminal would obey these
        ("caf\u00e9 \u65e5\u672c", "caf\u00e9 \u65e5\u672c"),
        ("right \u202eto left", "right \\u202eto left"),
        ("half \ud800", "half \\ud800"),
        (UserError("an exception"), "an exception"),
    ],
)
def test_one_line(message, line):
    assert one_line(message) == line


@pytest.mark.parametrize("size", [LONGEST, LONGEST + 1, 10**6])
def test_a_name_without_end(size):
    line = one_line("cannot read " + "x" * size + ": it is a folder")
    assert line.startswith("cannot read xxx") and line.endswith("xxx: it is a folder")
    assert len(line) <= LONGEST + 5


def test_what_a_program_says(capsys):
    def main():
        raise UserError("no\x1b[31m\nsuch " + "y" * 5000)

    with pytest.raises(SystemExit) as e:
        run(main)
    assert e.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("error: no\\x1b[31m such yyy") and err.count("\n") == 1
    assert len(err) < LONGEST + 20


def test_fail_takes_a_status(capsys):
    with pytest.raises(SystemExit) as e:
        fail("x", 3)
    assert (e.value.code, capsys.readouterr().err) == (3, "error: x\n")
