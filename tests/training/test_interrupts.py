"""bonsai/training/interrupts.py: signals are noted until a step is done, in this process."""

import os
import signal
import threading
from dataclasses import replace

import pytest
from helpers.lost_signals import handled_as_in, in_a_bare_except

from bonsai.system.errors import ENDS, end_by_interrupt
from bonsai.system.runtime import setup
from bonsai.training import interrupts
from bonsai.training.interrupts import BROKEN_PIPE, Interrupts

posix = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs POSIX signals")


@pytest.fixture
def runtime():
    return setup("cpu", "float32", False)


@pytest.fixture
def watched(runtime):
    with Interrupts(runtime) as signals:
        signals.watch()
        yield signals


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@posix
@pytest.mark.parametrize("number", ENDS)
def test_a_signal_is_said_once_and_becomes_the_status(watched, capfd, number):
    assert watched.status() == 0
    send(number)
    assert watched.status() == 128 + number
    assert capfd.readouterr().err == f"\n{number.name}: finishing this step, then saving\n"


@posix
def test_what_got_lost_before_ends_the_program_before_its_first_step(runtime):
    with handled_as_in(end_by_interrupt):
        in_a_bare_except()
        with pytest.raises(KeyboardInterrupt), Interrupts(runtime) as signals:
            signals.watch()
        assert signal.getsignal(signal.SIGINT) is end_by_interrupt and not signals.received


@posix
def test_the_first_of_several_counts(watched):
    send(signal.SIGTERM)
    send(signal.SIGINT)
    assert watched.status() == 128 + signal.SIGTERM


@posix
def test_the_same_signal_at_once_is_no_second_one(watched, capfd):
    """As a terminal that is closed, or torchrun, sends it twice."""
    for _ in range(3):
        send(signal.SIGINT)
    assert watched.status() == 130 and capfd.readouterr().err.count("SIGINT") == 1


@posix
def test_a_second_one_later_ends_the_program(watched, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    send(signal.SIGINT)
    ends = []
    monkeypatch.setattr(interrupts.os, "kill", lambda *call: ends.append(call))
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: watched.times[signal.SIGINT] + 1.5)
    signal.raise_signal(signal.SIGINT)
    assert ends == [(os.getpid(), signal.SIGINT)]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL != before


@posix
def test_the_signals_are_given_back(runtime):
    before = [signal.getsignal(number) for number in ENDS]
    with Interrupts(runtime) as signals:
        signals.watch()
        assert all(signal.getsignal(number) == signals._note for number in ENDS)
    assert [signal.getsignal(number) for number in ENDS] == before


@posix
def test_what_nohup_ignores_stays_ignored(runtime):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts(runtime) as signals:
            signals.watch()
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            send(signal.SIGHUP)
            assert signals.status() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_no_signal_is_taken_over(runtime):
    signals, before = Interrupts(runtime), signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=signals.watch)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before and not signals.before


def test_a_reader_that_has_gone_is_a_broken_pipe(runtime, capfd):
    signals = Interrupts(runtime)
    signals.stdout_closed()
    assert signals.status() == 128 + BROKEN_PIPE
    assert "stdout is closed: finishing this step" in capfd.readouterr().err


def test_the_end_of_torchrun_is_noticed(runtime, capfd):
    """Its workers are left behind with another parent."""
    signals = Interrupts(replace(runtime, agent=os.getppid()))
    assert signals.status() == 0
    signals = Interrupts(replace(runtime, agent=os.getppid() + 1))
    assert signals.status() == 128 + signal.SIGTERM
    assert "torchrun has ended" in capfd.readouterr().err


def test_only_one_process_speaks(runtime, capfd):
    signals = Interrupts(runtime)
    signals.runtime = replace(runtime, rank=1)
    signals.stdout_closed()
    assert signals.status() == 128 + BROKEN_PIPE and capfd.readouterr().err == ""


def test_batches_end_where_the_run_is_to_stop(runtime):
    signals, seen = Interrupts(runtime), []
    for batch in signals.until_stopped(range(9)):
        seen.append(batch)
        if batch == 2:
            signals.stdout_closed()
    assert seen == [0, 1, 2]
