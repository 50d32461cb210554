"""How far a long job is: a bar on a terminal, a line now and then anywhere else."""

import sys
import time
from collections.abc import Callable, Iterable

from bonsai.system.errors import end_if_told

LINE_SECONDS = 30  # between progress lines where there is no terminal

Advance = Callable[[int], object]  # is told how many bytes have been read since the last call
Track = Callable[[Iterable], Iterable]  # wraps an iteration, to show how far it is or to stop it


def no_progress(count: int) -> None:
    pass


class ProgressBar:
    """A bar with rate and time left on a terminal, else a line every half minute."""

    def __init__(self, total: int, unit: str = "B", label: str = "tokenizing"):
        self.total, self.unit, self.label = total, unit, label
        self.done, self.start = 0, time.monotonic()
        self._next_line = self.start + LINE_SECONDS
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit=unit, unit_scale=True, desc=label)

    def advance(self, count: int) -> None:
        end_if_told()
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif (now := time.monotonic()) >= self._next_line:
            self._next_line = now + LINE_SECONDS
            rate = self.done / (now - self.start)
            left = (self.total - self.done) / rate / 60 if rate else float("inf")
            print(
                f"{self.label}: {100 * self.done / max(self.total, 1):.0f}%, "
                f"{_short(rate)}{self.unit}/s, {left:.0f} min left",
                flush=True,
            )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _short(number: float) -> str:
    for prefix in ("", "k", "M"):
        if number < 1000:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:.3g} G"
