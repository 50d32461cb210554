"""train.py in this process, called from Python as in a notebook."""

import signal
from types import ModuleType

import pytest
from helpers.programs import program_module
from helpers.train_in_process import MACHINE, SMALL

from bonsai.training import report


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return program_module("train.py")


@pytest.fixture
def train(program, workplace, monkeypatch):
    """train.main with these settings alone, in the workplace."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(report, "plot_loss", lambda folder: None)  # not the subject
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def main(out, *parts: dict, **settings) -> int:
        together = {"dataset": "meta", **MACHINE}
        for part in (*parts, settings):
            together |= part
        return program.main(out_dir=str(out), **together)

    yield main
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def finished(program, workplace, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        settings = {**SMALL, "max_iters": 1, "dataset": "meta"}
        assert program.main(out_dir=str(out), **settings) == 0
    return out
