"""Seconds from the command to the first step, part by part."""

import os
import time
from pathlib import Path


class Stopwatch:
    """Measures laps one after another; as text: their sum, and each of them.

    since_the_command: begin when this process started, before it loaded anything; else now.

    >>> watch = Stopwatch()
    >>> watch.lap("data")
    >>> str(watch).startswith("0.0 s (data 0.0")
    True
    """

    def __init__(self, since_the_command: bool = False):
        self.last = time.perf_counter() - (seconds_of_this_process() if since_the_command else 0)
        self.laps: dict[str, float] = {}

    def lap(self, part: str) -> None:
        """Add the time since the last lap to this part; a part may come several times."""
        now = time.perf_counter()
        self.laps[part] = self.laps.get(part, 0.0) + now - self.last
        self.last = now

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.laps.items())
        return f"{sum(self.laps.values()):.1f} s ({parts})"


def seconds_of_this_process() -> float:
    """Seconds since this process was started or, if the system does not say, its CPU time."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # seconds after the system
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError, ValueError, IndexError):
        return time.process_time()
