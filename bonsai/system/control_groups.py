"""Linux's control groups, by which containers and jobs of a cluster are limited; standard library
only."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def own_groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, int]]:
    """The folder of each control group of this process, and of those around it, that may limit
    what `controller` names ("memory", "cpu"); with the version of the interface, 1 or 2.

    root: of the file system, which tests set. Some of the folders may not be there.
    """
    lines = []
    with suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    for line in lines:  # number:controllers:path; version 2 names no controllers
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = f"sys/fs/cgroup/{controller}" if controllers else "sys/fs/cgroup"
        own = Path(path.lstrip("/"))
        for group in (own, *own.parents):
            yield root / mount / group, 1 if controllers else 2
