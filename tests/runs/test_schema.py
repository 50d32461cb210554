"""bonsai/runs/schema.py: values of the wrong kind in a good container."""

import json
import math
from dataclasses import fields as dataclass_fields
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import replaced, tiny
from helpers.programs import assert_one_line_error, run_program, train

from bonsai.engine.text import find_tokenizer
from bonsai.models.loading import load_model
from bonsai.runs.restore import crop_moments
from bonsai.runs.schema import check_fields, is_number, is_whole
from bonsai.system.errors import UserError
from bonsai.tokenizers.chat import ChatTemplate
from bonsai.training.optimizers import load_optimizer_state
from model import CLASSIC_KEYS, GPTConfig

WRONG = ["word", ["a", "list"], float("nan"), None, 1e12, 10**12, -1, -0.5, 2**2000, True, {}, ()]
WRONG.append(torch.zeros(2))


FIELDS = [
    *("model", "optimizer", "model_args", "model_name", "model_config", "iter_num", "format"),
    *("best_val_loss", "config", "tokenizer", "chat_template", "progress", "scaler", "wandb_id"),
    "data",
    *(f"model_config.{f.name}" for f in dataclass_fields(GPTConfig)),
    *(f"model_args.{name}" for name in CLASSIC_KEYS),
    *("progress.evaluated", "progress.bad_evals", "progress.seconds", "progress.best_val_loss"),
    *("optimizer.state", "optimizer.param_groups", "optimizer.state.0", "optimizer.state.0.step"),
    *("optimizer.state.0.exp_avg", "optimizer.param_groups.0", "optimizer.param_groups.0.params"),
    *("model.lm_head.weight", "model.transformer.h.1.ln_1.weight", "config.dataset"),
    *("tokenizer.type", "tokenizer.chars"),
]  # fmt: skip


def resume_as_train_does(folder: Path) -> None:
    """What is made of a checkpoint before the first step."""
    loaded = load_model("resume", folder)
    find_tokenizer(loaded)
    if loaded.checkpoint.get("chat_template") is not None:
        ChatTemplate.from_dict(loaded.checkpoint["chat_template"])
    optimizer = loaded.model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    crop_moments(
        loaded.checkpoint["optimizer"], [p for g in optimizer.param_groups for p in g["params"]]
    )
    load_optimizer_state(optimizer, loaded.checkpoint["optimizer"])
    idx = torch.zeros(1, min(4, loaded.model.config.block_size), dtype=torch.int64)
    loaded.model(idx, idx)[1].backward()
    optimizer.step()
    float(loaded.checkpoint["best_val_loss"]) + loaded.checkpoint["iter_num"]
    json.dumps(loaded.config, default=str)


@pytest.mark.parametrize("field", FIELDS)
def test_a_value_of_the_wrong_kind_is_one_line(tmp_path, field):
    """Or does no harm: the model takes a step and stays of the size that it was."""
    _, state = tiny()
    refused = 0
    for wrong in WRONG:
        changed = replaced(state, field.split("."), wrong)
        if field.startswith("model_args"):  # as nanoGPT's, which has no model_config
            changed.pop("model_config")
        torch.save(changed, tmp_path / "ckpt.pt")
        try:
            resume_as_train_does(tmp_path)
        except UserError as e:
            refused += 1
            assert "\n" not in str(e) and len(str(e)) < 500, e
    assert refused or field == "config.dataset", "nothing of this was refused"


def test_what_a_resume_needs_fits_the_model_and_is_there(tmp_path):
    _, state = tiny()
    moment = state["optimizer"]["state"][0]["exp_avg"]
    for field, wrong in {
        "optimizer.param_groups": state["optimizer"]["param_groups"][:1],
        "optimizer.param_groups.0.params": [0],
        "optimizer.param_groups.0.params.0": 1,
        "optimizer.state.0.exp_avg": moment[:-1],
        "optimizer.state.0.exp_avg_sq": moment[None],
        "optimizer.state.1.exp_avg": torch.tensor(0.0),
        "optimizer.state.0": {"exp_avg": moment},
        "optimizer.state": {99: state["optimizer"]["state"][0]},
        "config": {"dataset": ["meta"]},
        "config.learning_rate": [moment],
        "model_config.rope_base": -1.0,
        "model_config.new_field": 1,
    }.items():
        torch.save(replaced(state, field.split("."), wrong), tmp_path / "ckpt.pt")
        with pytest.raises(UserError) as e:
            resume_as_train_does(tmp_path)
        assert "\n" not in str(e.value), field


SHAPE = ["--n_embd=16", "--block_size=8", "--vocab_size=30", "--dropout=0.0"]  # of tiny()


def test_a_run_needs_more_than_weights_to_go_on(workplace, tmp_path):
    _, state = tiny()
    (tmp_path / "out").mkdir()
    for missing in ("optimizer", "iter_num", "best_val_loss"):
        torch.save({k: v for k, v in state.items() if k != missing}, tmp_path / "out" / "ckpt.pt")
        assert load_model("best", tmp_path / "out").model.config.n_layer == 2  # to sample from
    result = train(workplace, tmp_path / "out", "--init_from=resume", *SHAPE)
    assert_one_line_error(result, "has no best_val_loss")


def test_settings_of_a_run_that_goes_on_are_in_their_ranges(workplace, tmp_path):
    """They come from the file: they are checked as those of a command are."""
    _, state = tiny()
    (tmp_path / "out").mkdir()
    state["config"] = {"dataset": "meta", "batch_size": 0}
    torch.save(state, tmp_path / "out" / "ckpt.pt")
    options = ["--init_from=resume", f"--out_dir={tmp_path / 'out'}", "--device=cpu"]
    assert_one_line_error(run_program(options, workplace), "batch_size=0", "at least 1")


def test_numbers_that_are_none():
    assert is_whole(0) and is_whole(5, 5, 5) and not is_whole(True) and not is_whole(1.0)
    assert not is_whole(-1) and not is_whole(10**11)
    assert is_number(math.inf) and is_number(-1) and not is_number(math.nan)
    assert not is_number(1e300) and not is_number(-1, 0) and not is_number("1")


def test_a_field_of_no_model_is_named(tmp_path):
    check_fields(GPTConfig, {"n_layer": 2, "dropout": 0}, tmp_path)  # a whole number is a float
    for field, words in {
        "new_field": "new_field=3, which this version does not know",
        "bias": "bias=3, where bool should be",
        "norm": "norm=3, where str should be",
    }.items():
        with pytest.raises(UserError, match=words):
            check_fields(GPTConfig, {field: 3}, tmp_path)
    for value in (True, 2.0, 2**31 + 1, None):
        with pytest.raises(UserError, match="n_layer="):
            check_fields(GPTConfig, {"n_layer": value}, tmp_path)
