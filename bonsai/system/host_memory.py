"""How much of this machine's memory is free, as far as its system says so."""

from contextlib import suppress
from pathlib import Path

from bonsai.system.control_groups import own_groups

# in which files of a control group its limit, what it uses, and what of that it can give back are
# found, by the version of the interface
FILES = {
    1: ("limit_in_bytes", "usage_in_bytes", "total_inactive_file"),
    2: ("max", "current", "inactive_file"),
}


def available_bytes(root: Path = Path("/")) -> int | None:
    """What new programs can take without swapping, by Linux's estimate; None elsewhere.

    root: of the file system, which tests set.
    """
    with suppress(OSError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) << 10
    return None


def free_host_bytes(root: Path = Path("/")) -> int | None:
    """As available_bytes, but at most what the limits on this process leave it: a container or a
    job of a cluster that takes more is killed."""
    free = available_bytes(root)
    return None if free is None else min([free, *left_by_limits(root)])


def left_by_limits(root: Path) -> list[int]:
    """Bytes that each control group of this process, and those around it, may still take."""
    left = []
    for folder, version in own_groups("memory", root):
        limit, used, cached = FILES[version]
        with suppress(OSError, ValueError):  # it is not there, or its limit is "max"
            most, now = (int((folder / f"memory.{n}").read_text()) for n in (limit, used))
            left.append(most - now + number_in(folder / "memory.stat", cached))
    return left


def number_in(path: Path, name: str) -> int:
    """The number after a name in a file of such lines; 0 where it is not there."""
    with suppress(OSError):
        return int(dict(line.split() for line in path.read_text().splitlines()).get(name, 0))
    return 0
