"""Errors in one line, whatever is in them; and signals whose exception got lost."""

import asyncio
import gc
import signal
import sys
import threading

import pytest
from helpers.lost_signals import WAYS, handled_as_in, in_a_bare_except, in_a_callback

from bonsai.system import errors
from bonsai.system.errors import (
    LONGEST,
    UserError,
    end_at_once,
    end_by_exit,
    end_by_interrupt,
    end_if_told,
    fail,
    heeded,
    interrupts_of_python,
    one_line,
    run,
)


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


def test_a_file_in_the_place_of_a_folder(tmp_path, capsys):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit) as e:
            run(lambda path=path: path.mkdir(parents=True, exist_ok=True))
        said = f"{path} cannot be opened or written: it, or a part of its path, is no folder"
        assert (e.value.code, capsys.readouterr().err) == (1, f"error: {said}\n")


# ---- signals ----


def the_main_part_of(step, capfd) -> tuple[int, str]:
    """Exit status and stderr of a program that is this step."""
    with handled_as_in(end_at_once), pytest.raises(SystemExit) as e:
        run(step)
    return e.value.code, capfd.readouterr().err


@pytest.mark.parametrize("lose", WAYS)
def test_a_lost_ctrl_c_ends_the_program_where_it_looks(lose, capfd):
    def main():
        for _ in range(3):
            lose()  # again and again
        end_if_told()
        raise AssertionError

    assert the_main_part_of(main, capfd) == (130, "\nerror: interrupted\n")
    assert errors.told == 0


@pytest.mark.parametrize(
    "end",
    [
        lambda: 0,
        lambda: sys.exit(0),
        lambda: {}["a part that is missing, as its import was cut off"],
        lambda: exec("raise UserError('cannot import it')", {"UserError": UserError}),
    ],
)
def test_it_ends_the_program_at_the_latest_at_its_end(end, capfd):
    def main():
        in_a_callback()
        return end()

    assert the_main_part_of(main, capfd) == (130, "\nerror: interrupted\n")


def test_what_has_said_why_it_ends_has_ended(capfd):
    def main():
        in_a_callback()
        fail("a mistake", 2)

    assert the_main_part_of(main, capfd) == (2, "error: a mistake\n")


def test_what_is_on_its_way_is_not_raised_anew(capfd):
    tidied = []

    def main():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            end_if_told()  # as in what tidies up, where it writes a file
            tidied.append(1)

    assert the_main_part_of(main, capfd) == (130, "\nerror: interrupted\n") and tidied


def test_other_threads_and_what_has_been_heeded_go_on():
    with handled_as_in(end_by_interrupt):
        in_a_bare_except()
        went_on = []
        thread = threading.Thread(target=lambda: went_on.append(end_if_told()))
        thread.start()
        thread.join()
        assert went_on == [None]
        heeded((signal.SIGTERM,))
        with pytest.raises(KeyboardInterrupt):
            end_if_told()
        heeded()
        end_if_told()


def test_other_exceptions_out_of_a_callback_are_told(capfd):
    class Broken:
        def __del__(self):
            raise ValueError("a bug of ours")

    def main():
        in_a_callback()
        Broken()
        gc.collect()

    told, hook = [], sys.unraisablehook
    sys.unraisablehook = lambda lost: told.append(lost.exc_type)
    try:
        assert the_main_part_of(main, capfd)[0] == 130
    finally:
        sys.unraisablehook = hook
    assert told == [ValueError]


def test_a_handler_that_is_not_ours_stays(capfd):
    """As in a notebook, which goes on after what is interrupted."""

    def main():
        signal.raise_signal(signal.SIGINT)

    with handled_as_in(signal.default_int_handler):
        with pytest.raises(SystemExit) as e:
            run(main)
        assert e.value.code == 130 and errors.told == 0
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert capfd.readouterr().err == "\nerror: interrupted\n"


def test_while_asyncio_runs_ctrl_c_is_its_own(capfd, caplog):
    """It ends the tasks in order; an exception in one of them it would report at length."""

    async def client(number: int):
        for turn in range(1000):
            if number == turn == 1:
                signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(0)

    async def clients():
        await asyncio.gather(*(asyncio.ensure_future(client(number)) for number in range(3)))

    def main():
        with interrupts_of_python():
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            asyncio.run(clients())

    assert the_main_part_of(main, capfd) == (130, "\nerror: interrupted\n")
    gc.collect()
    assert sys.version_info < (3, 11) or not caplog.records
    with handled_as_in(end_by_interrupt), interrupts_of_python():
        pass


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_lost_signal_of_another_kind(name, capfd):
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip("not on this system")

    def main():
        signal.signal(number, end_by_exit)
        in_a_callback(number)
        end_if_told()

    status, err = the_main_part_of(main, capfd)
    assert status == 128 + number and err == f"error: {errors.ENDS[number]}\n"
