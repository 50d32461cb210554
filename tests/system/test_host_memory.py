"""bonsai/system/host_memory.py: what the machine has free, and what limits leave of it."""

from pathlib import Path

import pytest

from bonsai.system.host_memory import available_bytes, free_host_bytes

MEMINFO = "MemTotal:       1000 kB\nMemAvailable:    800 kB\n"
V1, V2 = "sys/fs/cgroup/memory", "sys/fs/cgroup"
NONE = str(2**63 - 4096)  # version 1 has no word for it


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def group(folder: str, limit: str, used: int, cached: int | None = None) -> dict[str, str]:
    """The files of a control group; cached: what it can give back, which some do not say."""
    names = ("limit_in_bytes", "usage_in_bytes") if folder.startswith(V1) else ("max", "current")
    files = dict(zip(names, (f"{limit}\n", f"{used}\n")))
    if cached is not None:
        name = "total_inactive_file" if folder.startswith(V1) else "inactive_file"
        files["stat"] = f"anon 5\n{name} {cached}\n"
    return {f"{folder}/memory.{name}": text for name, text in files.items()}


@pytest.mark.parametrize(
    "line, files, free",
    [
        ("", {}, 800 * 1024),
        ("0::/", {}, 800 * 1024),
        ("0::/job", group(f"{V2}/job", "max", 500), 800 * 1024),
        ("0::/job", group(f"{V2}/job", "5000", 3000), 2000),
        ("0::/job", group(f"{V2}/job", "5000", 4900, 1000), 1100),
        ("0::/job/step/1", group(f"{V2}/job", "5000", 3000), 2000),  # of one around it
        ("0::/job", group(f"{V2}/job", "5000", 3000) | group(V2, "900", 100), 800),
        ("0::/job", group(V2, "5000", 3000), 2000),  # within a container its own is the first one
        ("0::/../../job", group(V2, "5000", 3000), 2000),
        ("4:cpu,memory:/job\n0::/", group(f"{V1}/job", "5000", 3000, 500), 2500),
        ("4:memory:/job", group(V1, "5000", 3000), 2000),
        ("4:memory:/job", group(f"{V1}/job", NONE, 3000), 800 * 1024),
        ("4:cpu:/job", group(f"{V1}/job", "5000", 3000), 800 * 1024),
    ],
)
def test_what_limits_leave(tmp_path, line, files, free):
    root = write(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": f"{line}\n" * bool(line)})
    assert free_host_bytes(write(root, files)) == free


@pytest.mark.parametrize("files", [{}, {"proc/meminfo": "MemTotal: 5 kB\n"}])
def test_a_system_that_does_not_say(tmp_path, files):
    root = write(tmp_path, {**files, "proc/self/cgroup": "0::/\n", **group(V2, "5000", 0)})
    assert available_bytes(root) is None and free_host_bytes(root) is None


def test_this_machine():
    free = free_host_bytes()
    assert (free is not None) == Path("/proc/meminfo").exists()
    assert free is None or free < 2**50
