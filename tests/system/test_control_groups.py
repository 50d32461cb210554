"""bonsai/system/control_groups.py: which groups limit this process."""

import pytest

from bonsai.system.control_groups import own_groups


@pytest.mark.parametrize(
    "line, groups",
    [
        ("", []),
        ("0::/", [("sys/fs/cgroup", 2)]),
        ("0::/job/step", [(f"sys/fs/cgroup{g}", 2) for g in ("/job/step", "/job", "")]),
        ("4:cpu,cpuacct:/job", [(f"sys/fs/cgroup/cpu{g}", 1) for g in ("/job", "")]),
        ("4:cpuacct:/job", []),
    ],
)
def test_the_groups_and_those_around_them(tmp_path, line, groups):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{line}\n" * bool(line))
    assert [*own_groups("cpu", tmp_path)] == [(tmp_path / path, v) for path, v in groups]


def test_a_system_without_them(tmp_path):
    assert [*own_groups("cpu", tmp_path)] == []
