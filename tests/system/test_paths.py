"""bonsai/system/paths.py: a path from here, or from the repository."""

from pathlib import Path

from bonsai.system import paths
from bonsai.system.paths import resolve_path


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
