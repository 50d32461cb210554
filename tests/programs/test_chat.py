"""From conversations to a model that answers: data/chat/prepare.py, train.py, sample.py --chat."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.made_model import knowing, save
from helpers.prepared import read
from helpers.programs import (
    ROOT,
    assert_one_line_error,
    losses,
    run_as_several,
    run_command,
    run_program,
)
from helpers.tiny_model import tiny

from bonsai.data.batches import Batches
from bonsai.data.dataset import Mixture
from bonsai.models.export import export_hugging_face
from bonsai.models.loading import Loaded, load_model
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
    special = ("<|endoftext|>", *ROLES, "<|im_start|>", "<|im_end|>")
    tokenizer = BPETokenizer.train(texts, 280, special_tokens=special)
    (tmp_path / "my.json").write_text(json.dumps(tokenizer.to_dict()))
    return tmp_path / "my.json"


def sample(folder: Path, *arguments: str, stdin: str = ""):
    command = [sys.executable, str(ROOT / "sample.py"), "--chat", "--device=cpu", *arguments]
    return run_command(command, folder, input=stdin)


def test_data_of_conversations(chats):
    options = ("--tokenizer=byte", "--val_fraction=0.2", "--block_size=255")
    result = prepare(chats, "--input=chats.jsonl", *options)
    assert result.rc == 0, result
    assert "16 conversations of" in result.stdout and "and have a loss" in result.stdout
    assert "they fill 5 rows of 256 tokens, " in result.stdout  # four to a row; one of val
    assert "kept what the old meta.json" not in result.stdout
    meta, ids = read(chats / "data")
    assert ChatTemplate.from_dict(meta["chat_template"]) == TEMPLATES["plain"]
    assert {name: split["documents"] for name, split in meta["splits"].items()} == {
        "train": 13,
        "val": 3,
    }
    assert meta["row_length"] == 256
    rows = [ByteTokenizer().decode(row) for row in ids["train"].reshape(-1, 256).tolist()]
    assert all(row.startswith("<|endoftext|>User:\n") for row in rows)
    assert all(row.endswith("<|endoftext|>") for row in rows)
    assert sum(row.count("Assistant:\n") for row in rows) == 26
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
        (
            '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}',
            ["--block_size=20"],
            ("no conversation has an answer within block_size=20", "context of your model"),
        ),
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


@pytest.mark.parametrize("shard_tokens", [1, 130, 200])
def test_files_hold_whole_rows(chats, shard_tokens):
    """As many as they may have tokens for, and at least one."""
    options = ("--tokenizer=byte", "--block_size=63", f"--shard_tokens={shard_tokens}")
    assert prepare(chats, "--input=chats.jsonl", "--val_fraction=0.1", *options).rc == 0
    meta = json.loads((chats / "data" / "meta.json").read_text())
    files = meta["splits"]["train"]["files"]
    sizes = [(chats / "data" / name).stat().st_size // 2 for name in files]
    assert set(sizes[:-1]) == {max(shard_tokens // 64, 1) * 64} and 0 < sizes[-1] <= sizes[0]


@pytest.mark.parametrize("count", [4, 200])
def test_training_takes_rows_as_they_are(chats, count):
    """Each window begins with a conversation and has answers; an evaluation has each answer once.
    4: a split is far too short for a window, and still has a row."""
    said = [talk(*list(ANSWERS)[: i % 3 + 1]) for i in range(count)]
    for i, messages in enumerate(said):
        messages[0]["content"] += f" {i}"  # each is another
    rows = [json.dumps({"messages": messages}) + "\n" for messages in said]
    (chats / "many.jsonl").write_text("".join(rows))
    assert prepare(chats, "--input=many.jsonl", "--tokenizer=byte", "--block_size=200").rc == 0
    data = Mixture.open(str(chats / "data"))
    for order in ("random", "epoch"):
        x, y = Batches(data, 200, 50, 0, order).rows_of(0, np.arange(50))
        assert (x[:, 0] == ByteTokenizer.eot).all() and (y >= 0).any(axis=1).all()
    val = data.parts[0].split("val")
    learnt = int(val.read(0, len(val), masks=True).sum())
    assert val.targets(val.eval_starts(200), 200) == learnt

    run = [f"--dataset={chats / 'data'}", "--n_layer=1", "--n_head=2", "--n_embd=16"]
    run += ["--batch_size=2", "--gradient_accumulation_steps=2", "--batch_order=epoch"]
    run += ["--warmup_iters=0", "--lr_decay_iters=6", "--eval_interval=3", "--eval_iters=0"]
    run += ["--device=cpu", "--dtype=float32"]
    whole = run_program([*run, "--out_dir=whole", "--max_iters=6"], chats)
    assert "block_size = 200, as the data have rows of 201 tokens" in whole.stdout, whole
    for more in ("--max_iters=3", "--max_iters=6 --init_from=resume"):
        assert run_program([*run, "--out_dir=parts", *more.split()], chats).rc == 0
    assert losses(chats / "whole") == losses(chats / "parts")
    assert all(loss > 4 for _, loss in losses(chats / "whole"))  # that of a step without answers: 0
    assert run_as_several([*run, "--out_dir=two", "--max_iters=6"], chats).rc == 0
    for (_, one), (_, other) in zip(losses(chats / "whole"), losses(chats / "two"), strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    report = ["--out_dir=whole", "--device=cpu", "--json=-"]
    done = run_program(report, chats, program="eval.py")
    assert json.loads(done.stdout.splitlines()[-1])["losses"][0]["tokens"] == learnt


MODEL = ["--n_layer=2", "--n_head=2", "--n_embd=64", "--block_size=64"]
MODEL += ["--position=rope", "--norm=rmsnorm", "--activation=swiglu"]  # Llama's shape
STEPS = ["--max_iters=250", "--lr_decay_iters=250", "--warmup_iters=10", "--batch_size=16"]
STEPS += ["--gradient_accumulation_steps=1", "--learning_rate=3e-3", "--eval_interval=250"]
CPU = ["--eval_iters=1", "--device=cpu", "--dtype=float32"]


@pytest.mark.parametrize("template", ["plain", "chatml"])
def test_a_trained_model_answers(chats, vocabulary, template):
    """The whole way, with weights that were trained: what each animal says, and where to stop. The
    same from a folder for transformers and a file for llama.cpp, and training goes on from there.
    """
    for library in ("gguf", "transformers"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    coder = {"plain": "byte", "chatml": vocabulary}[template]
    options = ["--input=chats.jsonl", "--val_fraction=0.1", "--block_size=64"]
    assert prepare(chats, *options, f"--tokenizer={coder}", f"--template={template}").rc == 0
    data = f"--dataset={chats / 'data'}"
    result = run_program([*MODEL, *STEPS, *CPU, "--out_dir=out", data], chats)
    assert result.rc == 0, result
    for to, name in (("hf", "folder"), ("gguf", "a.gguf")):
        options = ["--out_dir=out", f"--to={to}", f"--out={name}"]
        assert run_program(options, chats, program="export.py").rc == 0
    for source in ("out", "folder", "a.gguf"):
        options = [f"--init_from={source}", "--temperature=0", "--max_new_tokens=20"]
        done = sample(chats, *options, stdin="owl\ncat\ndog\ncow\n")
        assert done.rc == 0 and done.stdout.split() == ["hoo", "meow", "woof", "moo"], done
        loaded = load_model(str(chats / source))
        assert (
            loaded.chat == TEMPLATES[template]
            and loaded.tokenizer == read(chats / "data")[0]["tokenizer"]
        )

    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(chats / "folder"), from_dict(loaded.tokenizer)
    said = talk("owl", "cat")[:3]
    ids = TEMPLATES[template].encode(ours, [(m["role"], m["content"]) for m in said])
    options = {"add_generation_prompt": True, "return_dict": False}
    assert theirs.apply_chat_template(said, **options) == ids

    # whose template and context are the default
    options = ["--input=chats.jsonl", "--tokenizer=folder"]
    assert prepare(chats, *options, "--out=again").rc == 0
    meta = read(chats / "again")[0]
    assert ChatTemplate.from_dict(meta["chat_template"]) == TEMPLATES[template]
    assert meta["row_length"] == 64 + 1
    start = [str(ROOT / "config" / "finetune_chat.py"), "--init_from=folder"]
    run = ["--max_iters=2", "--batch_size=2", "--gradient_accumulation_steps=1", "--out_dir=more"]
    result = run_program([*start, *run, *CPU, f"--dataset={chats / 'again'}"], chats)
    assert result.rc == 0 and "chat template" not in result.stdout, result
    assert load_model(str(chats / "more")).chat == TEMPLATES[template]


def test_a_template_of_a_folder_that_is_not_read(chats, vocabulary):
    """One line says what is not supported, and what to do."""
    coder = from_dict(json.loads(vocabulary.read_text()))
    model = tiny(vocab_size=coder.vocab_size)
    loaded = Loaded(model, "gpt", coder.to_dict(), {}, "it")
    export_hugging_face(loaded, coder, chats / "folder", "float32")
    (chats / "folder" / "chat_template.jinja").write_text("{% if tools %}{{ tools }}{% endif %}")
    options = ["--init_from=folder", "--max_new_tokens=3"]
    refused = sample(chats, *options, stdin="cat\n")
    said = refused.stderr.strip().splitlines()[-1]
    assert refused.rc == 1 and said.startswith(
        "error: the chat template of folder is not supported"
    )
    assert "{{ tools }}" in said and "--template=" in said, refused
    for template in ("plain", "tokens", "chatml"):
        done = sample(chats, *options, f"--template={template}", stdin="cat\n")
        assert done.rc == 0, done


@pytest.mark.parametrize("name", TEMPLATES)
def test_talking(chats, vocabulary, name):
    """Answers end where the template says, and turns that were before are in the prompt."""
    tokenizer = (
        ByteTokenizer() if name == "plain" else from_dict(json.loads(vocabulary.read_text()))
    )
    rows = [[(m["role"], m["content"]) for m in talk(a, b)] for a in ANSWERS for b in ANSWERS]
    texts = [TEMPLATES[name].encode_conversation(tokenizer, row)[0] for row in rows]
    model = knowing(texts, tokenizer.vocab_size, block_size=160, lags=16)
    template = TEMPLATES[name].to_dict()
    save(chats / "out", model, tokenizer, chat_template=template)
    done = sample(chats, "--top_k=1", "--max_new_tokens=50", stdin="cow\n\nowl\n" + "cat\n" * 20)
    assert done.rc == 0 and done.stdout.split() == ["moo", "hoo", *["meow"] * 20], done
    assert "say something" in done.stderr
