"""bonsai/system/provenance.py: what stands beside a measurement can be repeated, and be stored."""

import json
import os
import re
import subprocess
import sys

import torch

from bonsai.system import provenance as module
from bonsai.system.provenance import commit, header, provenance, versions

CPU = torch.device("cpu")


def test_the_command_can_be_pasted(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--out_dir=my runs", "--start=a;b"])
    assert header(CPU)[0] == "command: python train.py '--out_dir=my runs' '--start=a;b'"
    assert provenance(CPU)["command"] == "python train.py '--out_dir=my runs' '--start=a;b'"


def test_plain_values_only():
    """Checkpoints hold plain values, and tables are JSON."""
    about = provenance(CPU)
    assert json.loads(json.dumps(about)) == about
    assert all(type(value) is str for value in versions().values())
    assert {"bonsai", "torch", "python"} == set(versions())
    assert [line.split(":")[0] for line in header(CPU)] == ["command", "commit", "hardware"]


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
