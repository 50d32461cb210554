"""How long an evaluation or a run will still take, estimated from its first part."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bonsai.data.advice import command
from bonsai.planning.costs import describe_time
from bonsai.system.errors import end_if_told
from bonsai.system.progress import LINE_SECONDS

FIRST_SECONDS = 10  # until a long job says how long it will take
SHORT = 60  # seconds: a run that ends sooner gets no forecast
DAY = 86400


def tracked(batches: Sequence, label: str, say: Callable[[str], object], on: bool) -> Iterator:
    """Iterate over the batches of an evaluation and show the progress: on a terminal (stderr) by a
    bar, else by a line with the time left, after ten seconds and then every half minute.

    on: whether this process shows it.
    """
    if not on:
        for batch in batches:
            end_if_told()
            yield batch
        return
    bar, begin = None, time.monotonic()
    line_at = begin + FIRST_SECONDS
    if sys.stderr is not None and sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(total=len(batches), desc=label, unit="batch", leave=False, file=sys.stderr)
    try:
        for done, batch in enumerate(batches, 1):
            end_if_told()
            yield batch
            now = time.monotonic()
            if bar is not None:
                bar.update()
            elif now >= line_at and done < len(batches):
                line_at = now + LINE_SECONDS
                left = describe_time((now - begin) / done * (len(batches) - done))
                say(f"{label}: {done:,} of {len(batches):,} batches, about {left} left")
    finally:
        if bar is not None:
            bar.close()


class Forecast:
    """Says once, after the first steps, how long a run will take on this device.

    rows: windows that are still to be trained on. T: tokens in each. say: called with the line.
    """

    def __init__(self, rows: int, T: int, device: str, dataset: str, say: Callable[[str], object]):
        self.rows, self.T, self.device, self.dataset, self.say = rows, T, device, dataset, say
        self.done, self.looks = 0, 0
        self.begin = self.first = None  # time of the first look, and the rows done by then

    def count(self, rows: int) -> None:
        """To be called after each micro-batch. On a CPU the micro-batch is done by then, so this
        looks at once: the end of the step can be minutes away."""
        self.done += rows
        if self.device == "cpu":
            self.look()

    def look(self) -> None:
        """To be called when the device has done all that was counted. Time counts from the first
        call on, because before that memory is allocated and kernels are compiled."""
        now = time.perf_counter()
        if self.begin is None:
            self.begin, self.first = now, self.done
        seconds, rows = now - self.begin, self.done - self.first
        if self.say is None or not rows or (seconds < FIRST_SECONDS and self.looks < 3):
            self.looks += 1
            return
        left = seconds / rows * (self.rows - self.done)
        if left >= SHORT:
            self.say(self.line(left, rows / seconds))
        self.say = None

    def line(self, left: float, rate: float) -> str:
        """The forecast. left: seconds; rate: rows per second."""
        text = (
            f"about {describe_time(left)} to go at {rate * self.T:,.0f} tokens/s, evaluations not "
            "counted"
        )
        if left < DAY:
            return text
        if self.device == "cpu":
            folder = Path(self.dataset.split(",")[0].partition(":")[0]).name
            words = ["config/quickstart.py", f"--dataset={self.dataset}", f"--out_dir=out-{folder}"]
            other = command("train.py", words)
            return f"{text}: this run is for GPUs; on a CPU minutes are enough for: {other}"
        return f"{text}: more GPUs (torchrun), a smaller model or a lower max_iters take less"


def describe_cost(
    depth: int, parameters: int, tokens: int, flops: float, rate: float | None
) -> str:
    """What a run by --depth costs. flops: of the whole run; rate: peak FLOP/s of all devices
    together, None if it is not known.

    >>> describe_cost(12, 190_000_000, 1_700_000_000, 1.7e18, None)
    'depth=12: 190.0M parameters, 1.70B tokens, 1.7e+18 FLOPs'
    """
    size = f"{tokens / 1e9:,.2f}B" if tokens >= 1e9 else f"{tokens / 1e6:,.2f}M"
    text = f"depth={depth}: {parameters / 1e6:,.1f}M parameters, {size} tokens, {flops:.1e} FLOPs"
    if rate:
        text += f", {describe_time(flops / (0.4 * rate))} at 40% of this hardware's peak"
    return text
