"""forecast.py: what is said of how long it will take, by a clock that the tests turn."""

import io
import shlex
import sys

import pytest
from helpers.settings import settings

from bonsai.training import forecast
from bonsai.training.forecast import DAY, Forecast, describe_cost, tracked


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

        perf_counter = monotonic

    made = Clock()
    monkeypatch.setattr(forecast, "time", made)
    return made


def evaluate(clock, seconds: float, batches: int, on: bool = True) -> list[str]:
    said = []
    for _ in tracked(range(batches), "evaluating val", said.append, on):
        clock.now += seconds
    return said


def test_a_long_evaluation_says_how_long_it_will_be(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # no terminal
    assert evaluate(clock, 0.01, 500) == []
    said = evaluate(clock, 1.0, 200)
    assert said[0] == "evaluating val: 10 of 200 batches, about 3.2 minutes left"
    assert len(said) == 7  # one every half minute
    assert evaluate(clock, 1.0, 200, on=False) == []


def test_a_bar_on_a_terminal(clock, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert evaluate(clock, 1.0, 20) == []
    assert "evaluating val" in sys.stderr.getvalue() and "/20" in sys.stderr.getvalue()


def run(clock, device: str, seconds: float, rows: int, steps: int = 10) -> list[str]:
    """Steps of 8 micro-batches of 4 rows; the first one takes a minute more."""
    said = []
    made = Forecast(rows, 1024, device, "mine", said.append)
    clock.now += 60
    for _ in range(steps):
        for _ in range(8):
            clock.now += seconds
            made.count(4)
        made.look()
    return said


def test_gpt2_on_a_cpu_is_years_and_says_so_within_a_step(clock):
    said = run(clock, "cpu", 12.0, 600_000 * 480, steps=1)
    assert len(said) == 1 and "27.4 years" in said[0]
    assert "config/quickstart.py --dataset=mine --out_dir=out-mine" in said[0]


@pytest.mark.parametrize(
    "dataset, words",
    [
        ("mine", "--dataset=mine --out_dir=out-mine"),
        ("/data/of mine/a", "'--dataset=/data/of mine/a' --out_dir=out-a"),
        ("a b:0.7,c:0.3", "'--dataset=a b:0.7,c:0.3' '--out_dir=out-a b'"),
    ],
)
def test_the_command_that_is_advised_can_be_run(dataset, words):
    line = Forecast(1, 1, "cpu", dataset, print).line(2 * DAY, 1.0)
    assert line.endswith(f"train.py config/quickstart.py {words}")
    _, program, *given = shlex.split(line.partition(" enough for: ")[2])
    assert program.endswith("train.py") and settings("train.py", given)["dataset"] == dataset


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_forecast_is_said_once_and_not_for_a_short_run(clock, device):
    assert run(clock, device, 0.01, 10 * 32) == []
    said = run(clock, device, 0.5, 100_000)
    assert len(said) == 1 and "3.5 hours to go at 8,192 tokens/s" in said[0]
    assert "quickstart" not in said[0]
    days = run(clock, "cuda", 4.0, 10 * DAY)
    assert "10.0 days" in days[0] and "more GPUs" in days[0]


@pytest.mark.parametrize("tokens, words", [(2_500_000, " 2.50M"), (1_700_000_000, " 1.70B")])
def test_the_cost_of_a_small_run_is_no_zero(tokens, words):
    assert f"{words} tokens" in describe_cost(2, 500_000, tokens, 7e11, None)
