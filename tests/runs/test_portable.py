"""bonsai/runs/portable.py: a checkpoint in one file without pickle, through the same gates."""

import errno
import json
import math

import pytest
import torch
from helpers.checkpoints import tiny
from helpers.programs import differences

from bonsai.engine.text import find_tokenizer
from bonsai.files.safetensors import read_with_metadata, write_safetensors
from bonsai.models.loading import load_model
from bonsai.runs.portable import read_portable, write_portable
from bonsai.runs.restore import load_checkpoint
from bonsai.system.errors import UserError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def test_a_checkpoint_there_and_back(path):
    model, state = tiny(n_kv_head=1)
    write_portable(path, state)
    tensors, metadata = read_with_metadata(path)
    assert "lm_head.weight" not in tensors  # which is the embedding
    assert json.loads(metadata["bonsai"])["shared"] == {"lm_head.weight": "transformer.wte.weight"}
    again = load_checkpoint(path)
    assert differences(dict(again["model"]), dict(state["model"])) == []
    for key in ("model_args", "model_config", "model_name", "tokenizer", "config", "iter_num"):
        assert again[key] == state[key], key
    assert again["best_val_loss"] == 2.5 and "optimizer" not in again
    loaded = load_model(str(path))
    assert loaded.model.config == model.config and loaded.config["dataset"] == "meta"
    assert loaded.model.lm_head.weight is loaded.model.transformer.wte.weight
    assert find_tokenizer(loaded)[0].to_dict() == state["tokenizer"]


def test_an_untied_head_and_a_template(path):
    template = {"roles": {"user": ["Q", ""], "assistant": ["A", ""]}}
    _, state = tiny(tie_head=False)
    write_portable(path, state | {"chat_template": template, "best_val_loss": math.inf})
    again = load_checkpoint(path)
    assert json.loads(read_with_metadata(path)[1]["bonsai"])["shared"] == {}
    assert again["chat_template"] == template and again["best_val_loss"] == math.inf
    assert differences(dict(again["model"]), dict(state["model"])) == []


def changed(path, **keys) -> None:
    """Other values in the header; None: the key is gone."""
    tensors, metadata = read_with_metadata(path)
    words = {**json.loads(metadata["bonsai"]), **keys}
    words = {k: v for k, v in words.items() if v is not None}
    write_safetensors(path, tensors, {"bonsai": json.dumps(words)})


@pytest.mark.parametrize("keys, hint", [
    (dict(shared={"lm_head.weight": "nowhere"}), "tensors that are not there"),
    (dict(shared=[1]), "tensors that are not there"),
    (dict(shared={"lm_head.weight": [1]}), "tensors that are not there"),
    (dict(shared={}), "no lm_head.weight"),
    (dict(shared={"x": "lm_head.weight"}), "tensors that are not there"),
    (dict(model_args=None), "no model and model_args"),
    (dict(model_args=[1]), "its model_args is"),
    (dict(model_name="other"), "not one of"),
    (dict(iter_num=-1), "its iter_num is"),
    (dict(tokenizer="gpt2"), "its tokenizer is"),
    (dict(format=99), "newer version"),
    (dict(model_config={"n_layer": 10**9}), "n_layer"),
    (dict(model_config={"no_such": 1}), "no_such"),
], ids=str)  # fmt: skip
def test_a_header_that_does_not_fit_is_one_line(path, keys, hint):
    write_portable(path, tiny()[1])
    changed(path, **keys)
    with pytest.raises(UserError, match=hint) as e:
        load_model(str(path))
    assert "\n" not in str(e.value)


def test_what_others_wrote_is_no_model_by_itself(path):
    write_safetensors(path, {"a": torch.zeros(2)}, {"format": "pt"})
    with pytest.raises(UserError, match="does not say which model it holds"):
        read_portable(path)
    write_safetensors(path, {"a": torch.zeros(2)}, {"bonsai": "{"})
    with pytest.raises(UserError, match="not valid JSON"):
        load_model(str(path))


def test_keys_that_are_no_checkpoints_are_left_out(path):
    write_portable(path, tiny()[1])
    changed(path, optimizer={"state": {}}, model={"w": 1})
    again = load_checkpoint(path)
    assert "optimizer" not in again and "transformer.wte.weight" in again["model"]


def test_a_full_disk_leaves_nothing(path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        write_portable(path, tiny()[1])
    assert not list(path.parent.iterdir())
