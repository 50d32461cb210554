"""bonsai/checkpoint.py: a file is whole or not there, and nothing in it is executed."""

import contextlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, differences, environment

from bonsai import checkpoint
from bonsai.checkpoint import (
    crop_moments,
    load_checkpoint,
    previous,
    run_checkpoint,
    save_checkpoint,
    set_aside,
)
from bonsai.errors import UserError


def state(step: int = 1) -> dict:
    weights = torch.arange(3000, dtype=torch.float32) + step
    return {"model": {"w": weights}, "model_args": {"n_layer": 1}, "iter_num": step}


def steps(path: Path) -> int:
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["model"]["w"], state(loaded["iter_num"])["model"]["w"])
    return loaded["iter_num"]


def one_line(e) -> str:
    text = str(e.value)
    assert "\n" not in text
    return text


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
    found = {p.name: steps(p) for p in tmp_path.iterdir()}
    expected = {"ckpt.pt": 2, "last.pt": 2, "best.pt": 1, "ckpt.prev.pt": 1, "last.prev.pt": 1}
    assert found == expected


def test_keep_last(tmp_path):
    for step in range(1, 12):
        save_checkpoint(tmp_path, state(step), ("last.pt", f"step_{step:07d}.pt"), keep_last=3)
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
from bonsai.checkpoint import save_checkpoint
from bonsai.errors import UserError
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

    class Killed(BaseException):
        pass

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
        calls = 0

        def counted(call, moment=moment):
            def step(*args, **options):
                nonlocal calls
                calls += 1
                if calls > moment:  # this one and all that would follow: the process is gone
                    raise Killed
                return call(*args, **options)

            return step

        with monkeypatch.context() as m:
            for name in ("link", "replace", "fsync"):
                m.setattr(os, name, counted(getattr(os, name)))
            m.setattr(Path, "unlink", counted(Path.unlink))
            with contextlib.suppress(Killed):
                save_checkpoint(folder, state(3), names)
        if calls <= moment:
            break  # it was never killed: all moments are done
        for name in names:
            assert steps(folder / name) in (2, 3)
            assert steps(previous(folder / name)) in (1, 2)
        with monkeypatch.context() as m, contextlib.suppress(Killed):  # again, half written
            m.setattr(torch, "save", half)
            save_checkpoint(folder, state(4), names)
        assert all(steps(folder / name) in (2, 3) for name in names)
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


# ---- reading ----


def test_a_flipped_byte_is_found_wherever_it_matters(tmp_path):
    """Flips all over the file: each is named as damage, or changes nothing that is read."""
    save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, state(2))
    path = tmp_path / "ckpt.pt"
    whole, expected = path.read_bytes(), load_checkpoint(path)
    middle = len(whole) // 2
    places = np.linspace(0, len(whole) - 1, 120).astype(int).tolist()
    found = 0
    for place in [middle, *places]:
        content = bytearray(whole)
        content[place] ^= 0x10
        path.write_bytes(content)
        try:
            assert differences(load_checkpoint(path), expected) == []
        except UserError as e:
            found += 1
            assert str(path) in str(e), e
        assert place != middle or found, "a byte in the middle of the weights"
    assert found > 60
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(UserError) as e:
        load_checkpoint(path)
    assert "damaged" in one_line(e) and f"mv {previous(path)} {path}" in one_line(e)


@pytest.mark.parametrize("keep", [0, 1, 3, 100, 2000, -4000, -1])
def test_a_file_cut_short_is_damaged(tmp_path, keep):
    save_checkpoint(tmp_path, state(1))
    path = tmp_path / "ckpt.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError) as e:
        load_checkpoint(path)
    assert "damaged" in one_line(e) and str(path) in one_line(e) and "prev" not in one_line(e)


@pytest.mark.parametrize("content", ["text", "tensor", "list", "weights alone", "pickle"])
def test_what_is_not_a_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "ckpt.pt"
    if content == "text":
        path.write_text("to be, or not to be\n" * 100)
    elif content == "pickle":
        path.write_bytes(pickle.dumps({"model": 1}))
    else:
        objects = {"tensor": torch.zeros(3), "list": [1], "weights alone": state()["model"]}
        torch.save(objects[content], path)
    with pytest.raises(UserError) as e:
        load_checkpoint(path)
    assert str(path) in one_line(e)
    assert "execute" not in one_line(e)  # it is no attack, only the wrong file


def test_a_missing_file_and_a_newer_one(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        load_checkpoint(tmp_path / "ckpt.pt")
    torch.save({**state(), "format": checkpoint.FORMAT + 1}, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="newer version"):
        load_checkpoint(tmp_path / "ckpt.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "folder.pt")


class Payload:
    """A pickle that would make a folder when it is loaded."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_payload_is_refused_and_not_executed(tmp_path, form):
    path, marker = tmp_path / "ckpt.pt", tmp_path / "executed"
    content = {**state(), "config": Payload(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content["config"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError) as e:
        load_checkpoint(path)
    assert str(path) in one_line(e)
    if form == "zip":  # the others are not read at all
        assert "refused" in one_line(e)
    assert not marker.exists()
    if form != "pickle":
        torch.load(path, weights_only=False)
        assert marker.exists()  # the payload is a real one


def test_the_prefix_of_compiled_models_goes(tmp_path):
    content = state()
    content["model"] = {"_orig_mod.w": content["model"]["w"]}
    torch.save(content, tmp_path / "ckpt.pt")
    assert list(load_checkpoint(tmp_path / "ckpt.pt")["model"]) == ["w"]


def test_which_checkpoint_of_a_run(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        run_checkpoint(tmp_path)
    save_checkpoint(tmp_path, state(5), ("last.pt",))
    assert run_checkpoint(tmp_path).name == "last.pt"
    save_checkpoint(tmp_path, state(3), ("ckpt.pt",))
    assert run_checkpoint(tmp_path).name == "ckpt.pt"  # to sample from: the better one
    assert run_checkpoint(tmp_path, newest=True).name == "last.pt"  # to go on: more steps
    save_checkpoint(tmp_path, state(7), ("ckpt.pt",))
    assert run_checkpoint(tmp_path, newest=True).name == "ckpt.pt"
    for name in ("ckpt.pt", "last.pt"):
        (tmp_path / name).unlink()
    assert run_checkpoint(tmp_path).name == "ckpt.prev.pt"


def test_set_aside(tmp_path, capsys):
    set_aside(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "mine.txt").write_text("not a run's file")
    (tmp_path / "log.txt").write_text("no checkpoint: not a run")
    set_aside(tmp_path)
    assert not (tmp_path / "earlier").exists()
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step), ("ckpt.pt", "last.pt", "step_0000001.pt"))
    set_aside(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["earlier", "mine.txt"]
    assert {p.name for p in (tmp_path / "earlier").iterdir()} >= {"ckpt.pt", "last.pt", "log.txt"}
    assert str(tmp_path / "earlier") in capsys.readouterr().out
    save_checkpoint(tmp_path, state(9))
    set_aside(tmp_path)
    assert steps(tmp_path / "earlier" / "ckpt.pt") == 9


def test_crop_moments():
    """Of a parameter that became shorter; the others, and the step counters, stay."""
    short, same = torch.zeros(4, 6), torch.zeros(5)
    moments = torch.arange(48.0).view(8, 6)
    found = {
        "state": {
            0: {"step": torch.tensor(3.0), "exp_avg": moments, "exp_avg_sq": moments * 2},
            1: {"step": torch.tensor(3.0), "exp_avg": torch.ones(5), "exp_avg_sq": torch.ones(5)},
        }
    }
    crop_moments(found, [short, same, torch.zeros(2)])  # the last one has no state yet
    assert torch.equal(found["state"][0]["exp_avg"], moments[:4])
    assert torch.equal(found["state"][0]["exp_avg_sq"], moments[:4] * 2)
    assert found["state"][0]["step"] == 3 and found["state"][1]["exp_avg"].shape == (5,)
