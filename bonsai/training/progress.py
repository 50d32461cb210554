"""How far a run is, which its checkpoints carry, and the clock that counts its seconds."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0  # steps that are done
    tokens: int | None = None  # that it has trained on; None: an older checkpoint does not say
    seconds: float = 0.0  # of training, up to the last step that was logged
    best_val_loss: float = math.inf
    evaluated: int = -1  # the step of the last evaluation
    bad_evals: int = 0  # evaluations in a row that were no better than the best

    @classmethod
    def of(cls, checkpoint: dict) -> "Progress":
        """What a checkpoint says; nanoGPT's have two of these, ours the others under 'progress'."""
        saved = {"best_val_loss": float(checkpoint["best_val_loss"])}
        saved |= checkpoint.get("progress", {})
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in saved.items() if name in known}
        return cls(**{**values, "step": checkpoint["iter_num"]})

    def to_dict(self) -> dict:
        """What stands in a checkpoint under 'progress'; the step has a key of its own there."""
        values = asdict(self)
        del values["step"]
        return values

    def evaluate(self, val_loss: float) -> bool:
        """Take an evaluation at this step into account; returns whether it is the best so far."""
        improved = val_loss < self.best_val_loss
        self.best_val_loss = min(self.best_val_loss, val_loss)
        self.evaluated = self.step
        self.bad_evals = 0 if improved else self.bad_evals + 1
        return improved

    def forget_evaluations(self) -> None:
        """On other data: their losses do not compare with those so far."""
        self.best_val_loss, self.evaluated, self.bad_evals = math.inf, -1, 0


class Clock:
    """Seconds of training. It stands still while a run is evaluated or saved.

    >>> clock = Clock()
    >>> with clock.paused():
    ...     time.sleep(0.2)
    >>> clock.lap() < 0.2
    True
    """

    def __init__(self):
        self.begin = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.begin += time.perf_counter() - start

    def lap(self) -> float:
        """Seconds since the last lap, or since the beginning."""
        now = time.perf_counter()
        seconds, self.begin = now - self.begin, now
        return seconds
