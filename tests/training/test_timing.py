"""bonsai/training/timing.py: steps that are timed."""

import pytest
import torch

from bonsai.system.runtime import setup
from bonsai.training.settings import StepSettings
from bonsai.training.step import TrainingStep
from bonsai.training.timing import TimedSteps, synthetic, time_steps
from model import GPT, GPTConfig


def make(stream, micro_batches: int = 1) -> TimedSteps:
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=16, dropout=0.5))
    training = TrainingStep(model, StepSettings(), setup("cpu", "float32", False))
    return TimedSteps(training, stream, micro_batches)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_timed_step_is_one_of_a_run(micro_batches):
    """Each has the number of the next step, so that dropout is as in a run."""
    stream = synthetic(11, 2, 8, torch.device("cpu"))
    timed, plain = make(stream, micro_batches), make(stream).training
    divisors = [micro_batches] * micro_batches
    for number in range(3):
        assert timed.log(timed()) == (plain(number, stream, divisors).item(), plain.norm.item())
    assert timed.count == 3 and timed.waited >= 0


def test_steps_are_timed_from_idle_to_idle():
    calls = []

    class Step:
        def __call__(self):
            calls.append("step")

        def log(self, loss):
            calls.append("log")

    seconds = time_steps(Step(), 5, lambda: calls.append("wait"), log_every=2)
    assert calls == ["wait", "step", "step", "log", "step", "step", "log", "step", "wait"]
    assert 0 < seconds < 1


def test_synthetic_batches_are_in_the_vocabulary():
    x, y = next(synthetic(7, 3, 50, torch.device("cpu")))
    assert x.shape == y.shape == (3, 50) and x.dtype == torch.int64
    assert x.min() >= 0 and set(torch.cat((x, y)).unique().tolist()) == set(range(7))


def test_synthetic_batches_are_on_the_host_as_those_of_data_are():
    """What is counted from them there waits for no device."""
    batch = next(synthetic(7, 3, 50, torch.device("meta")))
    assert [part.device.type for part in batch] == ["cpu", "cpu"]
