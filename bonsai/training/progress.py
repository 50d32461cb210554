"""How far a run is, which its checkpoints store, and what is measured while it trains."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields

from bonsai.system.devices import peak_flops
from bonsai.system.stopwatch import Stopwatch
from bonsai.training.step import TrainingStep


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0  # steps that are done
    tokens: int | None = None  # trained on so far; None: an older checkpoint does not say
    seconds: float = 0.0  # of training, up to the last step that was logged
    best_val_loss: float = math.inf
    evaluated: int = -1  # the step of the last evaluation
    bad_evals: int = 0  # evaluations in a row that were no better than the best

    @classmethod
    def of(cls, checkpoint: dict) -> "Progress":
        """From a checkpoint: two of these are keys of nanoGPT's, the others are in 'progress'."""
        saved = {"best_val_loss": float(checkpoint["best_val_loss"])}
        saved |= checkpoint.get("progress", {})
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in saved.items() if name in known}
        return cls(**{**values, "step": checkpoint["iter_num"]})

    def to_dict(self) -> dict:
        """What a checkpoint has under 'progress'; the step has a key of its own there."""
        values = asdict(self)
        del values["step"]
        return values

    def evaluate(self, val_loss: float) -> bool:
        """Note the result of an evaluation at this step; returns whether it is the best so far."""
        improved = val_loss < self.best_val_loss
        self.best_val_loss = min(self.best_val_loss, val_loss)
        self.evaluated = self.step
        self.bad_evals = 0 if improved else self.bad_evals + 1
        return improved

    def forget_evaluations(self) -> None:
        """When the data change, because losses on other data do not compare with those so far."""
        self.best_val_loss, self.evaluated, self.bad_evals = math.inf, -1, 0


class Meter:
    """Measures a run: the rows of metrics.jsonl, and the seconds of its progress.

    Its clock stands still while a run is evaluated or saved. mfu: model FLOPs utilisation (PaLM,
    Chowdhery et al. 2022, appendix B), the share of the hardware's peak FLOP/s that the model's
    FLOPs took since the logged step before; None until a step is logged, or if the peak is not
    known.
    """

    def __init__(self, progress: Progress, training: TrainingStep, watch: Stopwatch | None = None):
        """watch: times the start of the run; first_step stops it."""
        self.watch = watch
        self.progress, self.training, self.runtime = progress, training, training.runtime
        self.peak = peak_flops(self.runtime.device, self.runtime.dtype)
        self.flops_per_token = training.model.flops_per_token(training.model.config.block_size)
        self.mfu: float | None = None
        self.logged_step, self.logged_tokens = progress.step, progress.tokens
        self.begin = time.perf_counter()  # up to here progress.seconds has counted

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose seconds do not count as training."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.begin += time.perf_counter() - start
            self._lap("evaluation")

    def first_step(self) -> str:
        """After the first step a line with the seconds since the command, from then on ''."""
        if self.watch is None:
            return ""
        self.runtime.synchronize()
        self._lap("first step")
        line, self.watch = f"first step done after {self.watch}", None
        return line

    def _lap(self, part: str) -> None:
        if self.watch:
            self.watch.lap(f"compile and {part}" if self.runtime.compile else part)

    def step_row(self, lr: float) -> dict:
        """The row of the step that was just made, with the speed since the one logged before.

        lr: the step's rate. All processes call this: the loss is the mean over them. Waits for the
        device.
        """
        training, progress, world = self.training, self.progress, self.runtime.world_size
        loss = self.runtime.sum(training.loss).item() / world
        steps, tokens = progress.step - self.logged_step, progress.tokens - self.logged_tokens
        seconds = self._count_seconds()
        if self.peak:
            self.mfu = self.flops_per_token * tokens / seconds / world / self.peak
        row = {
            "iter": progress.step - 1,
            "loss": loss,
            "lr": lr,
            "grad_norm": training.norm.item(),
            "ms": 1000 * seconds / steps,
            "tokens_per_s": tokens / seconds,
        }
        if training.scaler.is_enabled():
            row["loss_scale"] = training.scaler.get_scale()
        if skipped := int(training.skipped):
            row["skipped"] = skipped
        return row

    def evaluation_row(self, lr: float, losses: dict[str, float | None]) -> dict:
        """The row of an evaluation; lr: the rate of the step that comes next."""
        progress = self.progress
        row = {"iter": progress.step, **losses, "lr": lr, "mfu": self.mfu}
        if progress.evaluated < 0 < progress.step:  # after forget_evaluations
            row["other_data"] = 1
        return {**row, "tokens": progress.tokens, "seconds": progress.seconds}

    def stop(self) -> None:
        """At the end of a run: count the seconds of the steps that were not logged."""
        if self.progress.step != self.logged_step:
            self._count_seconds()

    def _count_seconds(self) -> float:
        now = time.perf_counter()
        seconds, self.begin = now - self.begin, now
        self.progress.seconds += seconds
        self.logged_step, self.logged_tokens = self.progress.step, self.progress.tokens
        return seconds
