"""How many CPU cores this process may use, which may be fewer than the machine has."""

import os
from contextlib import suppress
from pathlib import Path

from bonsai.system.control_groups import own_groups


def allowed_cores(root: Path = Path("/")) -> int:
    """The cores that this process may use at a time: those that it is bound to (taskset, Slurm)
    or, if that is fewer, as much as the limit of a container (docker's --cpus) is worth, rounded
    down, at least 1.

    The limit is on time: with more threads than it is worth the system stops them all for most of
    each tenth of a second, and threads that wait for one another use up the time by waiting.

    root: of the file system, which tests set.
    """
    try:
        bound = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        bound = os.cpu_count() or 1
    return max(1, min([bound, *map(int, worth_of_limits(root))]))


def worth_of_limits(root: Path) -> list[float]:
    """The limit of each control group of this process, and of those around it, in cores."""
    worth = []
    for folder, version in own_groups("cpu", root):
        with suppress(OSError, ValueError, ZeroDivisionError):  # not there, or no limit: "max"
            if version == 1:
                names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                quota, period = (int((folder / name).read_text()) for name in names)
            else:
                quota, period = map(int, (folder / "cpu.max").read_text().split())
            if quota > 0:  # -1: no limit
                worth.append(quota / period)
    return worth


def cores_in_words() -> str:
    """For the head of logs and tables: "8 cores", or "2 of 8 cores" if this process may use fewer
    than the machine has."""
    allowed, there = allowed_cores(), os.cpu_count() or 1
    return f"{there} cores" if allowed == there else f"{allowed} of {there} cores"
