"""bonsai/system/commands.py: each command is a program of the repository, with its arguments."""

import runpy
import sys

import pytest

from bonsai import ROOT
from bonsai.system import commands

NAMES = {"evaluate": "eval"}  # the others are called as their program
COMMANDS = ["train", "sample", "serve", "evaluate", "bench", "train_tokenizer", "show_tokens"]
COMMANDS += ["export"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_runs_its_program(monkeypatch, name):
    ran = []
    monkeypatch.setattr(runpy, "run_path", lambda path, run_name: ran.append((path, run_name)))
    getattr(commands, name)()
    path = ROOT / f"{NAMES.get(name, name)}.py"
    assert ran == [(str(path), "__main__")] and path.is_file()


def test_arguments_and_the_status_are_the_programs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bonsai-show_tokens", "--tokenizers=byte", "--text=ab"])
    try:
        commands.show_tokens()
    except SystemExit as e:
        assert not e.code
    assert "byte: 2 tokens for 2 bytes" in capsys.readouterr().out
