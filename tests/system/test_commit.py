"""bonsai/system/commit.py: the commit is that of the repository, and to ask changes nothing."""

import os
import re
import subprocess

from bonsai.system import commit as module
from bonsai.system.commit import commit


def test_the_commit_is_that_of_the_repository(tmp_path, monkeypatch):
    assert re.fullmatch(r"[0-9a-f]{7,40}\+?|unknown", commit())
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert re.fullmatch(r"[0-9a-f]{7,40}", commit())
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    assert commit().endswith("+")
    subprocess.run([*git, "commit", "-q", "-m", "y"], check=True)
    index = tmp_path / ".git" / "index"
    before = index.read_bytes()
    os.utime(tmp_path / "a", (1, 1))  # of which git would make a note in its index
    assert re.fullmatch(r"[0-9a-f]{7,40}", commit()) and index.read_bytes() == before
    (tmp_path / "a").write_text("2")
    assert commit().endswith("+") and index.read_bytes() == before


def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert commit() == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))  # no program of that name
    assert commit() == "unknown"
