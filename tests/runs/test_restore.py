"""bonsai/runs/restore.py: damage is found and named, and nothing in a file is executed."""

import argparse
import errno
import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoints import state
from helpers.errors import one_line
from helpers.programs import Payload, differences

from bonsai.models.loading import load_model
from bonsai.runs import checkpoint, restore
from bonsai.runs.checkpoint import save_checkpoint
from bonsai.runs.names import previous
from bonsai.runs.restore import crop_moments, load_checkpoint, run_checkpoint, steps_done
from bonsai.runs.schema import MOMENTS
from bonsai.system.errors import UserError


def test_a_flipped_byte_is_found_wherever_it_matters(tmp_path):
    """Flips all over the file: each is named as damage, or changes nothing that is read."""
    save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, state(2))
    path = tmp_path / "ckpt.pt"
    whole, expected = path.read_bytes(), load_checkpoint(path)
    middle = len(whole) // 2
    places = np.linspace(0, len(whole) - 1, 120).astype(int).tolist()
    noticed = 0
    for place in [middle, *places]:
        content = bytearray(whole)
        content[place] ^= 0x10
        path.write_bytes(content)
        try:
            assert differences(load_checkpoint(path), expected) == []
        except UserError as e:
            noticed += 1
            assert str(path) in str(e), e
        assert place != middle or noticed, "a byte in the middle of the weights"
    assert noticed > 60
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(UserError) as e:
        load_checkpoint(path)
    assert "damaged" in one_line(e) and f"before it is {previous(path)}" in one_line(e)
    # what is advised overwrites nothing, and leads to the one before
    aside = tmp_path / "ckpt.pt.bad"
    assert one_line(e).endswith(f"mv {path} {aside}")
    aside.write_text("another one")
    with pytest.raises(UserError) as e:
        load_checkpoint(path)
    assert one_line(e).endswith(f"mv {path} {aside}1")
    path.rename(f"{aside}1")
    assert run_checkpoint(tmp_path) == previous(path)


@pytest.mark.parametrize(
    "damaged, others, advice",
    [
        ("last.prev.pt", ["ckpt.pt", "step_0000004.pt"], "also ckpt.pt, step_0000004.pt: one of"),
        ("step_0000006.pt", ["step_0000004.pt", "diverged.pt"], "also step_0000004.pt: it is used"),
        ("last.pt", ["last.prev.pt", "ckpt.pt"], "the one before it is "),
        ("last.pt", ["diverged.pt"], ""),
        ("mine.pt", ["ckpt.pt"], ""),
    ],
)
def test_a_damaged_one_names_what_else_the_run_has(tmp_path, damaged, others, advice):
    """And after what is advised a resume takes one of those."""
    for name in others:
        save_checkpoint(tmp_path, state(1), (name,))
    (tmp_path / damaged).write_bytes(b"")
    with pytest.raises(UserError) as e:
        load_checkpoint(tmp_path / damaged)
    assert advice in one_line(e) and ("mv" in one_line(e)) == bool(advice)
    if advice:
        (tmp_path / damaged).rename(one_line(e).split()[-1])
        assert run_checkpoint(tmp_path).name in others


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


def test_steps_of_a_file_without_reading_its_tensors(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, state(7))
    monkeypatch.setattr(torch, "empty", None)
    assert steps_done(tmp_path / "ckpt.pt") == 7
    monkeypatch.undo()
    for content in ([1], {"iter_num": "x"}, {**state(), "iter_num": "x"}):
        torch.save(content, tmp_path / "ckpt.pt")
        with pytest.raises(UserError):
            steps_done(tmp_path / "ckpt.pt")


def test_a_missing_file_and_a_newer_one(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        load_checkpoint(tmp_path / "ckpt.pt")
    torch.save({**state(), "format": checkpoint.FORMAT + 1}, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="newer version"):
        load_checkpoint(tmp_path / "ckpt.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "folder.pt")


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


def test_numbers_of_numpys_are_plain(tmp_path):
    """As in the checkpoints of loops that take the mean of losses by NumPy."""
    content = {**state(3), "iter_num": np.int64(3), "best_val_loss": np.float64(2.5)}
    torch.save({**content, "config": {"learning_rate": np.float32(0.5)}}, tmp_path / "ckpt.pt")
    read = load_checkpoint(tmp_path / "ckpt.pt")
    assert (read["iter_num"], read["best_val_loss"], read["config"]) == (
        3,
        2.5,
        {"learning_rate": 0.5},
    )
    assert steps_done(tmp_path / "ckpt.pt") == 3


@pytest.mark.parametrize(
    "changed",
    [
        {"rng": np.random.get_state()},
        {"config": {"dataset": "mine", "out_dir": Path("out"), "n": 1}},
        {"args": argparse.Namespace(n_layer=1)},
    ],
)
def test_what_is_refused_comes_with_a_command_that_makes_it_plain(tmp_path, changed):
    """In the state of a random generator, of a loop that is not ours, and in settings."""
    path, content = tmp_path / "it's a run" / "ckpt.pt", state(3)
    path.parent.mkdir()
    content |= {"best_val_loss": 2.5, "config": {"dataset": "mine", "n": 1}}
    torch.save({**content, **changed}, path)
    with pytest.raises(UserError, match=r"refused to load .* writes ckpt\.plain\.pt with") as e:
        load_checkpoint(path)
    _, code = shlex.split(one_line(e).split(": python ")[1])
    subprocess.run([sys.executable, "-c", code], check=True)
    assert differences(load_checkpoint(path.with_name("ckpt.plain.pt")), content) == []
    with pytest.raises(UserError):  # which stays as it was
        load_checkpoint(path)


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


def test_moments_are_of_their_parameters_shape_and_in_one_piece():
    """Fused kernels take neither shapes nor strides into account, and write beyond the end."""
    weight, turned = torch.zeros(3, 3), torch.arange(9.0).view(3, 3).t()
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": turned}}}
    crop_moments(optimizer, [weight])
    assert optimizer["state"][0]["exp_avg"].is_contiguous()
    assert torch.equal(optimizer["state"][0]["exp_avg"], turned)
    for key in MOMENTS:
        for wrong in (torch.tensor(0.0), torch.zeros(0), torch.zeros(9), torch.zeros(3, 3, 1)):
            with pytest.raises(UserError, match="does not fit its model"):
                crop_moments({"state": {0: {key: wrong}}}, [weight])


def test_crop_moments():
    """Of a parameter that became shorter; the others, and the step counters, stay."""
    short, same = torch.zeros(4, 6), torch.zeros(5)
    moments = torch.arange(48.0).view(8, 6)
    optimizer = {
        "state": {
            0: {"step": torch.tensor(3.0), "exp_avg": moments, "exp_avg_sq": moments * 2},
            1: {"step": torch.tensor(3.0), "exp_avg": torch.ones(5), "exp_avg_sq": torch.ones(5)},
        }
    }
    crop_moments(optimizer, [short, same, torch.zeros(2)])  # the last one has no state yet
    assert torch.equal(optimizer["state"][0]["exp_avg"], moments[:4])
    assert torch.equal(optimizer["state"][0]["exp_avg_sq"], moments[:4] * 2)
    assert optimizer["state"][0]["step"] == 3 and optimizer["state"][1]["exp_avg"].shape == (5,)


def test_a_folder_without_a_run_names_those_that_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(restore, "ROOT", tmp_path / "repository")
    with pytest.raises(UserError, match="no checkpoint in out: set --out_dir to a run's folder"):
        run_checkpoint("out")
    for i, name in enumerate(["out-a/ckpt.pt", "my runs/last.pt", "out/one/ckpt.pt"]):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (i, i))
    said = "there are runs in out/one, 'my runs', out-a; choose one"
    with pytest.raises(UserError, match=f"no checkpoint in out: {said}"):
        run_checkpoint("out")
    for i, name in enumerate(["out/earlier/2/step_0000005.pt", "out-b/best.pt"]):  # of any kind
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (i + 10, i + 10))
    for name in ("out-c/diverged.pt", "out-d/optimizer.pt"):  # no run to use
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="runs in out-b, out/earlier/2, out/one, 'my runs', out-a;"):
        run_checkpoint("out")
    for i in range(9):
        (tmp_path / "repository" / f"r{i}").mkdir(parents=True)
        (tmp_path / "repository" / f"r{i}" / "last.pt").touch()
    with pytest.raises(UserError, match=r"r\d, .* and 7 more; choose"):
        run_checkpoint("nowhere")


# ---- what is wrong is said as what it is ----


def refuse_to_open(number: int):
    def fail(path, *args, **options):
        raise OSError(number, os.strerror(number), str(path))

    return fail


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ENFILE, errno.EIO])
def test_what_the_system_says_is_not_called_damage(tmp_path, monkeypatch, number):
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step))
    monkeypatch.setattr("builtins.open", refuse_to_open(number))
    with pytest.raises(UserError) as e:
        load_checkpoint(tmp_path / "ckpt.pt")
    monkeypatch.undo()
    text = one_line(e)
    assert os.strerror(number) in text and "damaged" not in text and "mv" not in text


def test_a_folder_that_must_not_be_looked_into(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "stat", refuse_to_open(errno.EACCES))
    for read in (load_checkpoint, lambda path: run_checkpoint(path.parent)):
        with pytest.raises(UserError, match="Permission denied"):
            read(tmp_path / "ckpt.pt")


def test_short_memory_is_not_called_damage(tmp_path, monkeypatch):
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step))

    def fail(*args, **options):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] can't allocate memory")

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(UserError) as e:
        load_checkpoint(tmp_path / "ckpt.pt")
    assert "memory does not suffice" in one_line(e) and "damaged" not in one_line(e)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_a_pipe_and_a_folder_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "ckpt.pt")
    (tmp_path / "last.pt").mkdir()
    for name, kind in {"ckpt.pt": "a pipe", "last.pt": "a folder"}.items():
        for read in (load_checkpoint, steps_done, lambda path: load_model(str(path), "")):
            if name == "last.pt" and read not in (load_checkpoint, steps_done):
                continue
            with pytest.raises(UserError, match=kind):
                read(tmp_path / name)
