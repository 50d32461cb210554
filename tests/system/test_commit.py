"""bonsai/system/commit.py: the commit is that of the repository, and to ask changes nothing; edits
have checksums of their own."""

import os
import re
import subprocess

from bonsai.system import commit as module
from bonsai.system.commit import code_checksum, commit


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


def test_edits_are_told_from_one_another(tmp_path, monkeypatch):
    """Of the programs here; `+` behind a commit says only that there is some edit."""
    monkeypatch.setattr(module, "ROOT", tmp_path)
    found = []
    for text in ("a = 1\n", "a = 2\n", "a = 1\n"):
        (tmp_path / "train.py").write_text(text)
        (tmp_path / "notes.txt").write_text(text)
        found.append(code_checksum.__wrapped__())
    assert found[0] == found[2] != found[1] and re.fullmatch(r"[0-9a-f]{8}", found[0])
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert code_checksum.__wrapped__() == "unknown"
