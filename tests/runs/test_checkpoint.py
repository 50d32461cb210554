"""bonsai/runs/checkpoint.py: a file is whole or not there."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import state
from helpers.errors import one_line
from helpers.kills import Killed, killed_after
from helpers.programs import ROOT, environment

from bonsai.runs import checkpoint
from bonsai.runs.checkpoint import save_checkpoint
from bonsai.runs.names import previous, remove_unfinished, step_name
from bonsai.runs.restore import load_checkpoint
from bonsai.system.errors import UserError


def steps(path: Path) -> int:
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["model"]["w"], state(loaded["iter_num"])["model"]["w"])
    return loaded["iter_num"]


# ---- writing ----


def test_the_previous_file_stays(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state(step))
    assert previous(tmp_path / "ckpt.pt").name == "ckpt.prev.pt"
    assert steps(tmp_path / "ckpt.pt") == 3 and steps(tmp_path / "ckpt.prev.pt") == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt.prev.pt", "ckpt.pt"]
    assert load_checkpoint(tmp_path / "ckpt.pt")["format"] == checkpoint.FORMAT


def test_one_state_under_several_names(tmp_path):
    save_checkpoint(tmp_path, state(1), ("ckpt.pt", "best.pt", "last.pt"))
    save_checkpoint(tmp_path, state(2), ("ckpt.pt", "last.pt"))
    saved = {p.name: steps(p) for p in tmp_path.iterdir()}
    expected = {"ckpt.pt": 2, "last.pt": 2, "best.pt": 1, "ckpt.prev.pt": 1, "last.prev.pt": 1}
    assert saved == expected


def test_keep_last(tmp_path):
    for step in range(1, 12):
        save_checkpoint(tmp_path, state(step), ("last.pt", step_name(step)), keep_last=3)
    kept = sorted(tmp_path.glob("step_*.pt"))
    assert [steps(p) for p in kept] == [9, 10, 11]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, state(2))

    def fail(obj, f):
        f.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError) as e:
        save_checkpoint(tmp_path, state(3), ("ckpt.pt", "last.pt"))
    monkeypatch.undo()
    text = one_line(e)
    assert "ckpt.pt" in text and "No space left on device" in text and "free some space" in text
    assert steps(tmp_path / "ckpt.pt") == 2 and steps(tmp_path / "ckpt.prev.pt") == 1
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files, which needs POSIX")
def test_a_full_disk_leaves_what_was_there(tmp_path):
    """With a real write that fails, at every stage of torch's writer."""
    save_checkpoint(tmp_path, state(1))
    code = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from pathlib import Path
from bonsai.runs.checkpoint import save_checkpoint
from bonsai.system.errors import UserError
from bonsai.runs.names import previous, remove_unfinished, step_name
weights = dict(model=dict(w=torch.zeros(3000)), model_args={{}}, iter_num=2)
for limit in (0, 1, 100, 1000, 5000, 12000, 13000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save_checkpoint(Path({str(tmp_path)!r}), weights)
    except UserError as e:
        assert "free some space" in str(e) and chr(10) not in str(e), e
        print("failed")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0 and done.stdout.count("failed") == 7, done.stdout + done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt.pt"] and steps(tmp_path / "ckpt.pt") == 1


@pytest.mark.parametrize("links", [True, False])
def test_killed_at_any_moment_of_a_save(tmp_path, monkeypatch, links):
    """At each system call: what was saved before can be read, and the next save tidies up."""

    def refuse(*args):
        raise OSError(95, "Operation not supported")

    def half(obj, f):
        f.write(b"half of it")
        f.flush()
        raise Killed

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    names = ("ckpt.pt", "last.pt")
    for moment in range(40):
        folder = tmp_path / str(moment)
        folder.mkdir()
        save_checkpoint(folder, state(1), names)
        save_checkpoint(folder, state(2), names)
        system_calls = [(os, name) for name in ("link", "replace", "fsync")]
        with killed_after(moment, *system_calls, (Path, "unlink")) as killed:
            save_checkpoint(folder, state(3), names)
        if not killed():
            break  # it was never killed: all moments are done
        for name in names:
            assert steps(folder / name) in (2, 3)
            assert steps(previous(folder / name)) in (1, 2)
        with monkeypatch.context() as m, contextlib.suppress(Killed):  # again, half written
            m.setattr(torch, "save", half)
            save_checkpoint(folder, state(4), names)
        assert all(steps(folder / name) in (2, 3) for name in names)
        remove_unfinished(folder)  # as the next start does
        save_checkpoint(folder, state(4), names)
        expected = ["ckpt.prev.pt", "ckpt.pt", "last.prev.pt", "last.pt"]
        assert sorted(p.name for p in folder.iterdir()) == expected
        assert [steps(folder / name) for name in names] == [4, 4]
        # the one before the last is another checkpoint, not another name of the same one
        assert all(steps(previous(folder / name)) in (2, 3) for name in names)
    else:
        raise AssertionError("a save made more calls than were tried")
    assert moment > 10


def test_without_hard_links(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step), ("ckpt.pt", "last.pt"))
    assert steps(tmp_path / "last.pt") == 2 and steps(tmp_path / "last.prev.pt") == 1


def test_space_is_asked_for_where_it_lacks(tmp_path):
    (tmp_path / "last.pt").mkdir()  # a folder in its place
    with pytest.raises(UserError) as error:
        save_checkpoint(tmp_path, {"model": {}, "iter_num": 1}, ("last.pt",))
    assert "set another out_dir; no checkpoint is there now" in str(error.value)
    assert "free some space" not in str(error.value)
