"""bonsai/training/inherited.py: what a checkpoint says, and what a command says."""

import json

import pytest
import torch
from helpers.programs import load
from helpers.train_in_process import MODELS, SMALL

from bonsai.models.loading import load_model
from bonsai.system.errors import UserError


@pytest.mark.parametrize("name", MODELS)
def test_what_a_command_leaves_out_is_the_checkpoints(train, tmp_path, name):
    out, tuned = tmp_path / "run", tmp_path / "tuned"
    assert train(out, SMALL, MODELS[name], max_iters=2) == 0
    before = load(out / "last.pt")
    assert train(out, init_from="resume", max_iters=4) == 0
    assert train(tuned, init_from=str(out / "ckpt.pt"), max_iters=1, batch_size=2) == 0
    for folder, steps in ((out, 4), (tuned, 1)):
        loaded = load_model("resume", folder)
        assert loaded.checkpoint["iter_num"] == steps
        assert loaded.name == before["model_name"] == loaded.config["model"]
        assert loaded.checkpoint["model_config"] == before["model_config"]
        fields = {k: loaded.config[k] for k in before["model_config"]}
        assert fields == before["model_config"]  # config.json says so too
    again = load(out / "last.pt")["config"]
    changed = {k for k in again if again[k] != before["config"][k]}
    assert changed <= {"max_iters"}  # lr_decay_iters was given, apart from max_iters; and what the
    assert load(tuned / "last.pt")["config"]["init_from"] == str(out / "ckpt.pt")  # run began from
    assert train(tuned, init_from="resume", max_iters=2) == 0
    kept = json.loads((tuned / "config.json").read_text())
    assert kept["init_from"] == load(tuned / "last.pt")["config"]["init_from"]
    assert kept["init_from"] == str(out / "ckpt.pt")


def test_a_setting_of_which_an_older_run_knows_nothing_has_changed_if_it_is_given(
    train, tmp_path, capsys
):
    """Say one that a config file has got since then."""
    out, new = tmp_path / "run", dict(table_decay=0.002, batch_order="epoch", bfloat16_stream=True)
    says = ["table_decay 0.0 -> 0.002", "random -> epoch", "bfloat16_stream False -> True"]
    assert train(out, SMALL, MODELS["muon"], max_iters=1) == 0
    state = load(out / "last.pt")
    for name in new:
        del state["config"][name]
    del state["model_config"]["bfloat16_stream"]  # of the model, but no matter of its weights
    for number, given in enumerate(({}, new)):
        older = tmp_path / f"older{number}"  # with no other checkpoint
        older.mkdir()
        torch.save(state, older / "last.pt")
        capsys.readouterr()
        given = {**SMALL, **MODELS["muon"], **given}
        assert train(older, given, init_from="resume", max_iters=2) == 0
        line = next(x for x in capsys.readouterr().out.splitlines() if "weights from" in x)
        assert "step 1" in line and [w in line for w in ("changed", *says)] == 4 * [number == 1]


def test_only_what_could_have_been_meant_is_said_to_be_left_out(train, tmp_path, capsys):
    """The vocabulary is the data's, so a command that repeats a run's settings leaves out none."""
    out, others = tmp_path / "run", {k: v for k, v in SMALL.items() if k != "batch_size"}
    assert train(out, SMALL, max_iters=1) == 0
    capsys.readouterr()
    for settings, listed in ((SMALL, []), (others, [f"batch_size={SMALL['batch_size']}"])):
        assert train(out, settings, init_from="resume", max_iters=1) == 0
        lines = capsys.readouterr().out.splitlines()
        said = [line for line in lines if "left out" in line]
        assert said == [f"settings that were left out: {word}" for word in listed]
    assert train(tmp_path / "wide", SMALL, max_iters=1, vocab_size=40) == 0
    capsys.readouterr()
    assert train(tmp_path / "wide", SMALL, init_from="resume", max_iters=1) == 0
    assert "left out: vocab_size=40\n" in capsys.readouterr().out  # not the data's


@pytest.mark.parametrize("how", ["resume", "ckpt.pt"])
@pytest.mark.parametrize(
    "given, hints",
    [
        (dict(n_layer=4), ["has n_layer=1", "n_layer=4 cannot be"]),
        (dict(n_embd=32, n_head=2), ["has n_embd=16"]),
        (dict(block_size=64), ["a context of 16", "block_size=64"]),
        (dict(bias=True), ["has bias=False"]),
        (dict(position="rope"), ["has position=learned"]),
        (dict(vocab_size=50304), ["has vocab_size=30"]),
        (dict(model="megabyte"), ["is a gpt, not a megabyte"]),
    ],
)
def test_given_and_impossible_is_an_error(train, finished, tmp_path, how, given, hints):
    init_from = how if how == "resume" else str(finished / how)
    before = (finished / "last.pt").read_bytes()
    with pytest.raises(UserError) as e:
        train(finished if how == "resume" else tmp_path, init_from=init_from, max_iters=2, **given)
    for hint in hints:
        assert hint in str(e.value)
    assert (finished / "last.pt").read_bytes() == before


def test_the_other_optimizer_is_an_error(train, finished):
    with pytest.raises(UserError, match="other optimizer, adamw: leave optimizer=muon"):
        train(finished, init_from="resume", max_iters=2, optimizer="muon")


def test_a_mean_that_the_optimizer_has_not_kept_is_an_error(train, tmp_path):
    assert train(tmp_path, SMALL, optimizer="muon", max_iters=1) == 0
    with pytest.raises(UserError, match="was trained without neuron_beta: set neuron_beta=0, or"):
        train(tmp_path, init_from="resume", max_iters=2, neuron_beta=0.9)
    assert train(tmp_path, init_from="resume", max_iters=2, neuron_beta=0.0) == 0


def test_a_shorter_context_crops_and_the_default_does_not(train, finished, tmp_path):
    for given, expected in ((dict(block_size=8), 8), ({}, 16)):
        out = tmp_path / str(expected)
        assert train(out, init_from=str(finished), max_iters=1, batch_size=2, **given) == 0
        assert load(out / "last.pt")["model_config"]["block_size"] == expected


@pytest.mark.parametrize("position", ["rope", "sinusoidal", "none"])
@pytest.mark.parametrize("how", ["resume", "ckpt.pt"])
def test_a_context_without_a_table_of_positions_can_be_made_longer(train, tmp_path, position, how):
    out = tmp_path / "run"
    assert train(out, SMALL, position=position, max_iters=1) == 0
    source, again = (how, out) if how == "resume" else (str(out / how), tmp_path / "longer")
    assert train(again, init_from=source, block_size=40, batch_size=2, max_iters=2) == 0
    longer = load_model(str(again)).model
    assert longer.config.block_size == 40
    ids = torch.arange(80).view(2, 40) % 30
    with torch.no_grad():
        assert longer(ids, ids)[1].isfinite()


def test_dropout_is_the_checkpoints_unless_given(train, tmp_path):
    assert train(tmp_path, SMALL, dropout=0.25, max_iters=1) == 0
    assert train(tmp_path, init_from="resume", max_iters=2) == 0
    assert load(tmp_path / "last.pt")["model_config"]["dropout"] == 0.25
    assert train(tmp_path, init_from="resume", max_iters=3, dropout=0.5) == 0
    assert load(tmp_path / "last.pt")["model_config"]["dropout"] == 0.5
