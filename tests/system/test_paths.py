"""bonsai/system/paths.py: a path from here, or from the repository."""

from pathlib import Path

import pytest

from bonsai.system import paths
from bonsai.system.paths import resolve_path, split_paths


def test_resolve_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "root"
    (root / "config").mkdir(parents=True)
    (root / "config" / "a.py").write_text("")
    monkeypatch.setattr(paths, "ROOT", root)
    assert resolve_path("config/a.py") == root / "config" / "a.py"
    assert resolve_path("config/b.py") == Path("config/b.py")
    Path("config").mkdir()
    Path("config/a.py").write_text("")
    assert resolve_path("config/a.py") == Path("config/a.py")
    assert resolve_path(root) == root
    assert resolve_path("~/nowhere") == Path.home() / "nowhere"


@pytest.mark.parametrize(
    "text, paths",
    [
        ("", []),
        ("a", ["a"]),
        ("a, b,,c ", ["a", "b", "c"]),
        ("here, it is", ["here, it is"]),  # a folder of that name
        ("here, it is,a", ["here", "it is", "a"]),
        ("~/mine,too", ["~/mine,too"]),
        (",".join(["name"] * 100), ["name"] * 100),  # longer than a name may be
    ],
)
def test_several_paths_between_commas(tmp_path, monkeypatch, text, paths):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("here, it is", "mine,too"):
        (tmp_path / name).mkdir()
    assert split_paths(text) == paths
