"""Timing of training steps, for bench.py and the benchmarks."""

import itertools
import time
from collections.abc import Callable, Iterator

import torch

from bonsai.training.step import TrainingStep


class TimedSteps:
    """Makes one step per call, from a stream of micro-batches (x, y), each (B, T) int64."""

    def __init__(self, training: TrainingStep, stream: Iterator, micro_batches: int = 1):
        self.training, self.stream, self.micro_batches = training, stream, micro_batches
        self.count = 0  # steps so far
        self.waited = 0.0  # seconds spent waiting for batches

    def __call__(self) -> torch.Tensor:
        """Returns the loss as a tensor, without waiting for the device."""
        loss = self.backward()
        self.training.update()
        return loss

    def backward(self) -> torch.Tensor:
        """The first part of a step, up to the gradients; training.update() is the second."""
        self.training.begin(self.count, self.micro_batches)
        for _ in range(self.micro_batches):
            begin = time.perf_counter()
            x, y = next(self.stream)
            self.waited += time.perf_counter() - begin
            self.training.backward(x, y, divisor=self.micro_batches)
        self.count += 1
        return self.training.loss

    def log(self, loss: torch.Tensor) -> tuple[float, float]:
        """Loss and gradient norm as numbers, as a console line needs them; waits for the device."""
        return loss.item(), self.training.norm.item()


def synthetic(vocab_size: int, batch_size: int, T: int, device: torch.device) -> Iterator:
    """The same random batch for ever, so that no time goes into data. Like the batches of prefetch
    it is on the host, in pinned memory for a GPU, so that counting something from it (see
    counted_arguments) does not wait for the device."""
    x, y = torch.randint(vocab_size, (2, batch_size, T))
    pinned = device.type == "cuda"
    return itertools.repeat(tuple(t.pin_memory() if pinned else t for t in (x, y)))


def time_steps(step: Callable, count: int, synchronize: Callable, log_every: int = 1) -> float:
    """Seconds that `count` steps take together, from an idle device to an idle device.

    step: called without arguments; after every log_every steps step.log(loss) is called.
    """
    synchronize()
    begin = time.perf_counter()
    for i in range(count):
        loss = step()
        if (i + 1) % log_every == 0:
            step.log(loss)
    synchronize()
    return time.perf_counter() - begin
