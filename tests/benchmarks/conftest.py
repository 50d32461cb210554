"""What the tests of benchmarks share."""

import contextlib
import json
import runpy
import sys
from pathlib import Path

import pytest
from helpers.made_model import TEXT, knows_text

from benchmarks import track
from bonsai.data.writer import Writer
from bonsai.tokenizers import ByteTokenizer


@pytest.fixture(scope="session")
def made_run(tmp_path_factory):
    """A folder with a run that knows one text, and the data it names."""
    folder = tmp_path_factory.mktemp("made_run")
    knows_text(folder / "out-byte", block_size=64, config={"dataset": "tiny"})
    coder = ByteTokenizer()
    with Writer(folder / "data" / "tiny", coder) as writer:
        for split in ("train", "val"):
            writer.add(split, coder.encode(TEXT * 3), text_bytes=3 * len(TEXT.encode()))
        writer.finish()
    return folder


def in_this_process(command: list[str], folder: Path, log: Path) -> float:
    """In place of track.launch, whose processes each load torch again: the program by runpy, and
    what clock.py would note."""
    if command[0].endswith("clock.py"):
        times, steps, command = command[1], int(command[2]), command[4:]
        Path(times).write_text(json.dumps([0.1 * (i + 1) for i in range(steps)]))
    with pytest.MonkeyPatch.context() as patch, open(log, "w") as f:
        patch.chdir(folder)
        patch.setattr(sys, "argv", command)
        with contextlib.redirect_stdout(f), contextlib.suppress(SystemExit):
            runpy.run_path(command[0], run_name="__main__")
    return 2.0


@pytest.fixture
def place(workplace, tmp_path, monkeypatch):
    """A folder to race in, with data/shakespeare_char."""
    monkeypatch.setattr(track, "launch", in_this_process)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shakespeare_char").symlink_to(workplace / "data" / "meta")
    return tmp_path
