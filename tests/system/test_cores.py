"""bonsai/system/cores.py: the cores that this process may use."""

import os
import re

import pytest
from helpers.programs import ROOT

from bonsai.system import cores

V1, V2 = "sys/fs/cgroup/cpu", "sys/fs/cgroup"


def version_1(quota: int) -> dict[str, str]:
    return {f"{V1}/cpu.cfs_quota_us": f"{quota}\n", f"{V1}/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    "line, files, allowed",
    [
        ("", {}, 8),
        ("0::/", {f"{V2}/cpu.max": "max 100000\n"}, 8),
        ("0::/", {f"{V2}/cpu.max": "400000 100000\n"}, 4),
        ("0::/", {f"{V2}/cpu.max": "250000 100000\n"}, 2),  # rounded down
        ("0::/", {f"{V2}/cpu.max": "50000 100000\n"}, 1),  # at least one
        ("0::/", {f"{V2}/cpu.max": "6400000 100000\n"}, 8),  # more than there are
        ("0::/job", {f"{V2}/cpu.max": "300000 100000\n", f"{V2}/job/cpu.max": "max 1\n"}, 3),
        ("0::/", {f"{V2}/cpu.max": "?\n"}, 8),
        ("2:cpu,cpuacct:/job", version_1(300000), 3),
        ("2:cpu,cpuacct:/job", version_1(-1), 8),
    ],
)
def test_a_limit_on_time_is_worth_so_many_cores(tmp_path, monkeypatch, line, files, allowed):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name, text in {**files, "proc/self/cgroup": f"{line}\n" * bool(line)}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores.allowed_cores(tmp_path) == allowed


def test_cores_that_the_process_is_bound_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5}, raising=False)
    assert cores.allowed_cores(tmp_path) == 2


def test_a_system_that_binds_none(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert cores.allowed_cores(tmp_path) == 4


@pytest.mark.parametrize("allowed, words", [(8, "8 cores"), (2, "2 of 8 cores")])
def test_in_words(monkeypatch, allowed, words):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(cores, "allowed_cores", lambda: allowed)
    assert cores.cores_in_words() == words


def test_nobody_counts_cores_that_it_may_not_use():
    paths = [p for name in ("bonsai", "data", "projects") for p in (ROOT / name).rglob("*.py")]
    counting = [p.name for p in paths if re.search(r"\bcpu_count\b", p.read_text("utf-8"))]
    assert {*counting} == {"cores.py", "threads.py"}  # the load is that of the whole machine
