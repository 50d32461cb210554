"""From conversations to a model that answers: data/chat/prepare.py, train.py, sample.py --chat."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.made_model import knowing, save
from helpers.prepared import read
from helpers.programs import ROOT, assert_one_line_error, run_command, run_program

from bonsai.data.conversations import ConversationEncoder
from bonsai.runs.restore import load_checkpoint
from bonsai.tokenizers import BPETokenizer, ByteTokenizer, from_dict
from bonsai.tokenizers.chat import TEMPLATES, ChatTemplate

ANSWERS = {"cat": "meow", "dog": "woof", "cow": "moo", "owl": "hoo"}
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")


def talk(*questions: str) -> list[dict]:
    pairs = ((("user", q), ("assistant", ANSWERS[q])) for q in questions)
    return [{"role": role, "content": text} for pair in pairs for role, text in pair]


def prepare(folder: Path, *arguments: str):
    script = str(ROOT / "data" / "chat" / "prepare.py")
    return run_command([sys.executable, script, "--out=data", *arguments], folder)


@pytest.fixture
def chats(tmp_path) -> Path:
    rows = [{"messages": talk(a, b)} for a in ANSWERS for b in ANSWERS]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def vocabulary(tmp_path) -> Path:
    texts = [" ".join([*ANSWERS, *ANSWERS.values()]) * 9]
    special = ("<|endoftext|>", *ROLES)
    tokenizer = BPETokenizer.train(texts, 280, special_tokens=special)
    (tmp_path / "my.json").write_text(json.dumps(tokenizer.to_dict()))
    return tmp_path / "my.json"


def sample(folder: Path, *arguments: str, stdin: str = ""):
    command = [sys.executable, str(ROOT / "sample.py"), "--chat", "--device=cpu", *arguments]
    return run_command(command, folder, input=stdin)


def test_data_of_conversations(chats):
    result = prepare(chats, "--input=chats.jsonl", "--tokenizer=byte", "--val_fraction=0.2")
    assert result.rc == 0, result
    assert "16 conversations of" in result.stdout and "and have a loss" in result.stdout
    assert "kept what the old meta.json" not in result.stdout
    meta, ids = read(chats / "data")
    assert ChatTemplate.from_dict(meta["chat_template"]) == TEMPLATES["plain"]
    assert {name: split["documents"] for name, split in meta["splits"].items()} == {
        "train": 13,
        "val": 3,
    }
    text = ByteTokenizer().decode(ids["train"].tolist())
    assert text.startswith("<|endoftext|>User:\n") and text.endswith("<|endoftext|>")
    assert text.count("Assistant:\n") == 26
    masks = {s: np.fromfile(chats / "data" / f"{s}.mask.bin", np.uint8) for s in ids}
    learnt = ByteTokenizer().decode(ids["val"][masks["val"] == 1].tolist()).split("<|endoftext|>")
    assert len(learnt) == 2 * 3 + 1 and set(learnt[:-1]) <= set(ANSWERS.values())


def test_roles_are_tokens_where_the_vocabulary_has_them(chats, vocabulary):
    result = prepare(chats, "--input=chats.jsonl", f"--tokenizer={vocabulary}")
    assert result.rc == 0, result
    meta, ids = read(chats / "data")
    assert ChatTemplate.from_dict(meta["chat_template"]) == TEMPLATES["tokens"]
    names = from_dict(meta["tokenizer"]).special_tokens
    assert [(ids["train"] == names[role]).sum() for role in ROLES] == [0, 30, 30, 60]


def test_a_template_of_ones_own(chats):
    own = {"roles": {"user": ["Q: ", "\n"], "assistant": ["A: ", "\n"]}}
    (chats / "own.json").write_text(json.dumps(own))
    options = ("--input=chats.jsonl", "--tokenizer=byte", "--template=own.json")
    assert prepare(chats, *options).rc == 0
    meta, _ = read(chats / "data")
    assert meta["chat_template"] == {"start": "", **own}
    (chats / "data" / "meta.json").write_text(json.dumps({**meta, "license": "mine"}))
    again = prepare(chats, "--input=chats.jsonl", "--tokenizer=byte")  # replaces the template
    assert "kept what the old meta.json had besides: license\n" in again.stdout
    assert again.rc == 0 and read(chats / "data")[0]["chat_template"]["start"] == "<|endoftext|>"


@pytest.mark.parametrize(
    ("rows", "arguments", "words"),
    [
        ('{"text": "a"}', [], ("a.jsonl line 1", "fields messages", "'text'")),
        ('{"messages": [{"role": "tool", "content": "a"}]}', [], ("line 1", "no role 'tool'")),
        ('{"prompt": "a", "completion": "b"}', [], ("one document", "several")),
        ("", [], ("a.jsonl is empty",)),
        ('{"prompt": "a", "completion": "b"}', ["--template=gone.json"], ("gone.json",)),
        ('{"prompt": "a", "completion": "b"}', ["--template=a.jsonl"], ("chat_template",)),
        ('{"prompt": "a", "completion": "b"}', ["--template=open.json"], ("ends no answer",)),
        ('{"prompt": "a", "completion": "b"}', ["--template=tokens"], ("<|", "--special_tokens")),
        ('{"prompt": "a", "completion": "b"}', ["--hub=a/b"], ("--input= or --hub=",)),
        ('{"prompt": "a", "completion": "b"}', ["--input=b.txt"], ("b.txt", "not in rows")),
    ],
)
def test_a_mistake_is_one_line(tmp_path, rows, arguments, words):
    (tmp_path / "a.jsonl").write_text(rows)
    (tmp_path / "b.txt").write_text("text")
    endless = {"roles": {"user": ["Q", ""], "assistant": ["A", ""]}}
    (tmp_path / "open.json").write_text(json.dumps(endless))
    result = prepare(tmp_path, "--tokenizer=byte", "--input=a.jsonl", *arguments)
    assert_one_line_error(result, *words)
    assert not (tmp_path / "data").exists()


def test_what_is_no_conversation_can_be_left_out(chats):
    with open(chats / "chats.jsonl", "a") as file:
        file.write('{"messages": [{"role": "tool", "content": "a"}]}\n')
    result = prepare(chats, "--input=chats.jsonl", "--tokenizer=byte", "--on_error=skip")
    assert result.rc == 0 and "left out 1 row: chats.jsonl line 17" in result.stdout


def test_a_trained_model_answers(chats):
    """The whole way, with weights that were trained: what each animal says, and where to stop."""
    assert prepare(chats, "--input=chats.jsonl", "--tokenizer=byte", "--val_fraction=0.1").rc == 0
    model = ["--n_layer=2", "--n_head=2", "--n_embd=64", "--block_size=64", "--position=rope"]
    steps = ["--max_iters=150", "--lr_decay_iters=150", "--warmup_iters=10", "--batch_size=16"]
    run = ["--gradient_accumulation_steps=1", "--learning_rate=3e-3", "--eval_interval=150"]
    more = ["--eval_iters=1", "--device=cpu", "--dtype=float32", "--out_dir=out"]
    result = run_program([*model, *steps, *run, *more, f"--dataset={chats / 'data'}"], chats)
    assert result.rc == 0, result
    assert load_checkpoint(chats / "out" / "ckpt.pt")["chat_template"]["roles"]
    done = sample(chats, "--temperature=0", "--max_new_tokens=20", stdin="owl\ncat\ndog\ncow\n")
    assert done.rc == 0 and done.stdout.split() == ["hoo", "meow", "woof", "moo"], done


@pytest.mark.parametrize("name", TEMPLATES)
def test_talking(chats, vocabulary, name):
    """Answers end where the template says, and turns that were before are in the prompt."""
    tokenizer = (
        ByteTokenizer() if name == "plain" else from_dict(json.loads(vocabulary.read_text()))
    )
    encode = ConversationEncoder(tokenizer, TEMPLATES[name])
    rows = [[(m["role"], m["content"]) for m in talk(a, b)] for a in ANSWERS for b in ANSWERS]
    texts = [encode([(json.dumps(row).encode(), True)]).ids.tolist() for row in rows]
    model = knowing(texts, tokenizer.vocab_size, block_size=160, lags=16)
    template = TEMPLATES[name].to_dict()
    save(chats / "out", model, tokenizer, chat_template=template)
    done = sample(chats, "--top_k=1", "--max_new_tokens=50", stdin="cow\n\nowl\n" + "cat\n" * 20)
    assert done.rc == 0 and done.stdout.split() == ["moo", "hoo", *["meow"] * 20], done
    assert "say something" in done.stderr
