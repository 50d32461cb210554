"""Training steps as train.py takes them, to be timed.

train.py keeps its loop whole and readable; bench.py and benchmarks/ share this one. A test holds
the two to the same losses.
"""

import itertools
import time
from collections.abc import Callable, Iterator

import torch
from torch.nn.parallel import DistributedDataParallel as DDP

from bonsai.models.kernels import to_device
from bonsai.system.runtime import Runtime, seed_everything
from bonsai.training.optimizers import build_optimizer

# Settings of the optimizer where a benchmark names none; they do not change the time of a step.
OPTIMIZER = dict(
    optimizer="adamw",
    learning_rate=1e-4,
    weight_decay=1e-1,
    beta1=0.9,
    beta2=0.95,
    adam_eps=1e-8,
    grad_clip=1.0,
    embedding_lr=0.1,
    head_lr=4e-3,
    scalar_lr=1e-2,
    momentum=0.95,
    cautious_decay=False,
)


class TrainingStep:
    """One step per call: batch, forward, backward, clip, update; returns the loss, a tensor.

    model: put on its device, compiled and wrapped for several processes here, as the runtime says.
    stream: yields micro-batches (x, y), each (B, T) int64. settings: the optimizer's, grad_clip,
    seed. Nothing waits for the device but `log`.
    """

    def __init__(self, model: torch.nn.Module, stream: Iterator, settings: dict, runtime: Runtime):
        self.model = model = to_device(model, runtime.device)
        self.stream, self.settings, self.runtime = stream, settings, runtime
        self.optimizer = build_optimizer(model, settings, runtime)
        device = runtime.device
        self.scaler = torch.amp.GradScaler(device.type, enabled=runtime.dtype == "float16")
        self.net = torch.compile(model) if runtime.compile else model
        if runtime.world_size > 1 and not self.optimizer.sharded:
            ids = [device.index] if device.type == "cuda" else None
            self.net = DDP(self.net, device_ids=ids)
        self.net.train()
        self.steps = 0
        self.waited = 0.0  # seconds in which there was no batch yet
        self.norm = torch.zeros((), device=device)

    def __call__(self) -> torch.Tensor:
        loss = self.backward()
        self.update()
        return loss

    def backward(self) -> torch.Tensor:
        """The first part of a step, up to the gradients."""
        runtime, device = self.runtime, self.runtime.device
        seed_everything(self.settings["seed"], self.steps, runtime.rank)
        begin = time.perf_counter()
        x, y = next(self.stream)
        self.waited += time.perf_counter() - begin
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        with runtime.autocast():
            _, loss = self.net(x, y)
        self.scaler.scale(loss).backward()
        return loss.detach()

    def update(self) -> None:
        """The second part, from the gradients on."""
        self.scaler.unscale_(self.optimizer)
        self.norm = self.optimizer.clip_gradients(self.settings["grad_clip"])
        if not self.scaler.is_enabled():
            self.optimizer.found_inf = (~torch.isfinite(self.norm)).float()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1

    def log(self, loss: torch.Tensor) -> tuple[float, float]:
        """Loss and gradient norm as numbers, as for a line on the console; waits for the device."""
        return loss.item(), self.norm.item()


def synthetic(vocab_size: int, batch_size: int, T: int, device: torch.device) -> Iterator:
    """One random batch for ever, already on the device: no time goes into data."""
    x, y = torch.randint(vocab_size, (2, batch_size, T)).to(device)
    return itertools.repeat((x, y))


def time_steps(step: Callable, count: int, synchronize: Callable, log_every: int = 1) -> float:
    """Seconds that `count` steps take together, from an idle device to an idle device.

    step: called without arguments; step.log(loss) after each log_every of them.
    """
    synchronize()
    begin = time.perf_counter()
    for i in range(count):
        loss = step()
        if (i + 1) % log_every == 0:
            step.log(loss)
    synchronize()
    return time.perf_counter() - begin
