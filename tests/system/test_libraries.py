"""bonsai/system/libraries.py: what is installed, and what only looks so."""

import sys

from bonsai.system.libraries import installed


def test_a_library_is_more_than_a_folder_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "results_of_mine").mkdir()
    (tmp_path / "a_library").mkdir()
    (tmp_path / "a_library" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert installed("a_library") and installed("json") and installed("torch")
    assert not installed("results_of_mine") and not installed("no_such_library")
