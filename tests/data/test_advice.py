"""bonsai/data/advice.py: what a prepare recommends can be run, on this machine, in this folder."""

import json
import os
import re
import shlex
import sys

import numpy as np
import pytest
from helpers.programs import ROOT
from helpers.settings import settings

from bonsai.data import advice
from bonsai.data.advice import context_for, describe_prepared, has_gpu, training_command
from bonsai.data.dataset import Mixture
from bonsai.data.writer import Writer
from bonsai.tokenizers import ByteTokenizer
from bonsai.tokenizers.chat import TEMPLATES


@pytest.fixture
def at_home(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(advice.shutil, "which", lambda name: sys.executable)


def prepared(folder, tokens=5000, **options) -> dict:
    ids = np.arange(tokens) % 256
    with Writer(folder, ByteTokenizer(), **options) as writer:
        writer.add("train", ids)
        writer.add("val", ids[: options.get("row_length") or max(tokens // 10, 2)])
        return writer.finish()


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize(
    ("name", "tokens", "options"),
    [
        ("mine", 50_000, {}),
        ("a: b, c", 900, {}),
        ("tiny", 30, {}),
        ("r", 80, {"row_length": 8}),
        ("long", 5000, {"row_length": 1000}),
    ],
)
def test_the_command_runs_on_what_was_prepared(tmp_path, at_home, gpu, name, tokens, options):
    """Its settings are accepted, the folder is found, and the windows fit the data."""
    folder = tmp_path / name
    meta = prepared(folder, tokens, **options)
    words = shlex.split(training_command(str(folder), meta, gpu))
    assert words[:2] == ["python", "train.py"]
    config = settings("train.py", words[2:])
    assert config["out_dir"] == f"out-{name}" and config["max_iters"] <= 5000
    assert config["n_layer"] * config["n_embd"] < 3000  # no GPT-2 of twelve layers of 768
    Mixture.open(config["dataset"]).check(config["block_size"], 257)
    assert config["block_size"] <= (options.get("row_length") or tokens) - 1
    if tokens == 50_000:
        assert "--block_size" not in " ".join(words)


@pytest.mark.parametrize("config", ["quickstart.py", "train_shakespeare_char_cpu.py"])
def test_a_config_files_own_data_need_no_settings(at_home, config):
    text = (ROOT / "config" / config).read_text()
    name = re.search(r'^dataset = "(\w+)"', text, re.M)[1]
    meta = {"splits": {"train": {"tokens": 10**7}, "val": {"tokens": 10**6}}}
    assert training_command(name, meta, False) == f"python train.py config/{config}"


def test_much_data_on_a_gpu_are_for_a_large_model(at_home):
    meta = {"splits": {"train": {"tokens": 10**10}, "val": {"tokens": 10**6}}}
    assert "config/fast_gpt2.py" in training_command("web", meta, True)
    assert "config/quickstart.py" in training_command("web", meta, False)


@pytest.mark.parametrize(("tokens", "block"), [(10**6, None), (300, 299)])
def test_conversations_in_gpt2s_tokens_are_for_gpt2(tmp_path, at_home, tokens, block):
    splits = {"train": {"tokens": 10**7}, "val": {"tokens": tokens}}
    chat = TEMPLATES["plain"].to_dict()
    meta = {"splits": splits, "tokenizer": {"type": "gpt2"}, "chat_template": chat}
    words = shlex.split(training_command("chat", meta, False))
    assert words[2:] == ["config/finetune_chat.py", *([f"--block_size={block}"] if block else [])]
    assert settings("train.py", words[2:])["block_size"] == (block or 1024)


@pytest.mark.parametrize("row", [65, 1025])
@pytest.mark.parametrize("init_from", ["", "a model"])
def test_rows_of_conversations_need_no_block_size(at_home, row, init_from):
    """The config file has none, and train.py takes it from the rows."""
    splits = {name: {"tokens": 10 * row} for name in ("train", "val")}
    tokenizer = {"type": "bpe" if init_from else "gpt2"}
    meta = {"splits": splits, "tokenizer": tokenizer, "chat_template": {}, "row_length": row}
    words = shlex.split(training_command("chat", meta, False, init_from))
    more = [f"--init_from={init_from}"] if init_from else []
    assert words[2:] == ["config/finetune_chat.py", *more]


@pytest.mark.parametrize(
    ("config", "context"),
    [({}, 1024), ({"n_positions": 64}, 64), ({"max_position_embeddings": 8192}, 1024)],
)
def test_the_context_for_conversations(tmp_path, config, context):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_for("bpe", str(tmp_path)) == context
    assert context_for("gpt2") == settings("train.py", ["config/finetune_chat.py"])["block_size"]
    assert context_for("bpe") == settings("train.py", ["config/quickstart.py"])["block_size"]


OWN = ["--batch_size=4", "--gradient_accumulation_steps=1", "--learning_rate=5e-4"]


def run_of(folder, dataset: str, **changed) -> None:
    folder.mkdir(parents=True)
    (folder / "ckpt.pt").touch()
    settings = {"dataset": dataset, "n_embd": 128, "block_size": 256, **changed}
    (folder / "config.json").write_text(json.dumps(settings))


@pytest.fixture
def own(tmp_path, monkeypatch) -> dict:
    """The meta of conversations in a vocabulary of one's own; data/mine has it, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(advice, "ROOT", tmp_path)
    (tmp_path / "config").symlink_to(ROOT / "config")
    prepared(tmp_path / "data" / "mine")
    splits = {"train": {"tokens": 10**6}, "val": {"tokens": 10**5}}
    chat = TEMPLATES["plain"].to_dict()
    return {"splits": splits, "tokenizer": ByteTokenizer().to_dict(), "chat_template": chat}


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ({}, ["--init_from=out-mine", *OWN]),
        ({"out-a": {}}, ["--init_from=out-a", *OWN]),
        ({"out-a": {}, "out b": {}}, ["--init_from=out b", *OWN]),  # the newest
        ({"out-a": {}, "out-b": {"dataset": "other"}}, ["--init_from=out-a", *OWN]),
        ({"out-a": {}, "out-b": {"dataset": "talks"}}, ["--init_from=out-a", *OWN]),
        ({"out-a": {}, "out-b": {"dataset": "../x"}}, ["--init_from=out-a", *OWN]),
        ({"out-a": {"dataset": "mine:0.7,other:0.3"}}, ["--init_from=out-a", *OWN]),
        ({"out-a": {"n_embd": 768}}, ["--init_from=out-a"]),
    ],
)
def test_conversations_in_a_vocabulary_of_ones_own_are_for_its_model(own, tmp_path, runs, expected):
    """It is trained further at the rate that data/chat/readme.md advises for small models."""
    prepared(tmp_path / "data" / "talks", chat_template=own["chat_template"])
    for age, (name, changed) in enumerate(reversed(runs.items())):
        run_of(tmp_path / name, **{"dataset": "mine", **changed})
        os.utime(tmp_path / name / "ckpt.pt", (10**9 - age, 10**9 - age))
    words = shlex.split(training_command("chat", own, False))
    assert words[2:] == ["config/finetune_chat.py", *expected]
    assert settings("train.py", words[2:])["out_dir"] == "out-chat"


def test_what_is_advised_for_small_models_is_what_the_readme_has(own):
    readme = (ROOT / "data" / "chat" / "readme.md").read_text()
    advised = shlex.join(shlex.split(training_command("chat", own, False))[2:])
    assert f"train.py {advised}\n" in readme


def test_a_run_that_cannot_be_read_is_passed_over(own, tmp_path):
    run_of(tmp_path / "out-a", "mine")
    (tmp_path / "out-a" / "config.json").write_text("[")
    assert f"--init_from={advice.PLACEHOLDER} " in training_command("chat", own, False)


def test_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(advice.shutil, "which", lambda name: None)
    command = shlex.split(training_command(str(tmp_path / "d"), prepared(tmp_path / "d"), False))
    assert command[:2] == [sys.executable, str(ROOT / "train.py")]


def test_a_prepare_ends_with_it(tmp_path):
    said = describe_prepared(prepared(tmp_path / "d"), tmp_path / "d", 1.0).splitlines()[-1]
    config = "train_shakespeare_char.py" if has_gpu() else "quickstart.py"
    assert said.startswith("next: ") and f"config/{config} " in said


@pytest.mark.parametrize("train, val, said", [(9, 10, True), (10, 9, False)])
def test_a_validation_split_larger_than_the_training_split_is_said(tmp_path, train, val, said):
    splits = {
        name: {"tokens": n, "bytes": n, "documents": 1, "files": [f"{name}.bin"]}
        for name, n in (("train", train), ("val", val))
    }
    meta = {"splits": splits, "vocab_size": 5}
    assert ("val is larger than train" in describe_prepared(meta, tmp_path, 1.0)) is said
