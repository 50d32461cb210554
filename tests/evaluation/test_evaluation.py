"""bonsai/evaluation/loss.py against brute force, and eval.py as its users run it."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.programs import ROOT, assert_one_line_error, run_command, run_program
from helpers.tiny_data import CHARS
from torch.nn import functional as F

from bonsai.data.dataset import Mixture, open_dataset
from bonsai.evaluation.choices import (
    Question,
    encode_endings,
    ending_scores,
    multiple_choice,
    read_questions,
)
from bonsai.evaluation.loss import bits_per_byte, mixture_loss, split_loss
from bonsai.files.jsonfile import write_json
from bonsai.models.table import describe_model
from bonsai.runs.checkpoint import save_checkpoint
from bonsai.system.errors import UserError
from bonsai.system.runtime import Runtime
from bonsai.system.tables import spread, table
from bonsai.tokenizers import ByteTokenizer, CharTokenizer
from model import GPT, GPTConfig

BLOCK = 16


def runtime(rank: int = 0, world_size: int = 1, compile: bool = False) -> Runtime:
    return Runtime(torch.device("cpu"), "float32", compile, "gloo", rank, rank, world_size, "")


def tiny(vocab_size: int = len(CHARS), seed: int = 0) -> GPT:
    """A small model whose losses differ a lot from token to token; in training mode."""
    torch.manual_seed(seed)
    shape = dict(n_layer=2, n_head=2, n_embd=32, block_size=BLOCK)
    model = GPT(GPTConfig(vocab_size=vocab_size, dropout=0.5, **shape))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5 if p.dim() >= 2 else 1)
    return model


@pytest.fixture(scope="module")
def data(workplace):
    return lambda kind: open_dataset(str(workplace / "data" / kind))


# ---- split_loss ----


@torch.no_grad()
def brute_force(model, ids, keep, starts, T) -> tuple[float, int]:
    """Mean loss over the kept targets of windows, one token at a time."""
    model.eval()
    total, count = 0.0, 0
    for start in starts:
        for end in range(start + 1, min(start + T + 1, len(ids))):
            if keep[end]:
                logits, _ = model(torch.tensor(ids[None, start:end]))
                total -= F.log_softmax(logits[0, -1].double(), dim=-1)[ids[end]].item()
                count += 1
    model.train()
    return total / count, count


@pytest.mark.parametrize("kind", ["meta", "llmc", "rows"])
@pytest.mark.parametrize("T", [16, 7])
def test_split_loss_is_that_of_brute_force(data, kind, T):
    split, model = data(kind).split("val"), tiny()
    ids = split.read(0, len(split)).astype(np.int64)
    keep = split.read(0, len(split), masks=True) if split.mask_files else np.ones(len(ids))
    stride = split.row_length or T
    starts = range(0, len(ids) - 1, stride)
    want, count = brute_force(model, ids, keep, starts, T)
    if kind != "rows":
        assert count == len(ids) - 1  # every token but the first, the short window's too
    for batch_size in (5, 1000):
        loss, tokens = split_loss(model, split, runtime(), T, batch_size)
        assert tokens == count
        assert loss == pytest.approx(want, abs=1e-5)
    assert model.training  # as it was


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_windows(data, world_size):
    split, model = data("meta").split("val"), tiny()
    whole = split_loss(model, split, runtime(), BLOCK, 5)
    sums = []
    for rank in range(world_size):
        part = runtime(rank, world_size)
        part.sum = lambda tensor: sums.append(tensor.clone()) or tensor
        split_loss(model, split, part, BLOCK, 5)
    loss, count = sum(sums).tolist()
    assert (loss / count, count) == (pytest.approx(whole[0], abs=1e-6), whole[1])


def test_a_compiled_model_sees_one_shape(data):
    split, model, shapes = data("meta").split("val"), tiny(), set()
    model.register_forward_pre_hook(lambda _, args: shapes.add(tuple(args[0].shape)))
    plain = split_loss(model, split, runtime(), BLOCK, 7)
    assert len(shapes) == 2  # the last batch is smaller
    shapes.clear()
    padded = split_loss(model, split, runtime(compile=True), BLOCK, 7)
    assert shapes == {(7, BLOCK)}
    assert padded == (pytest.approx(plain[0], abs=1e-6), plain[1])


def test_some_windows_are_always_the_same_ones(data):
    split, model = data("meta").split("val"), tiny()
    some = split_loss(model, split, runtime(), BLOCK, 5, windows=4)
    again = split_loss(model, split, runtime(), BLOCK, 2, windows=4)
    assert again == (pytest.approx(some[0], abs=1e-6), some[1])
    assert 3 * BLOCK < some[1] <= 4 * BLOCK
    many = split_loss(model, split, runtime(), BLOCK, 5, windows=10**6)
    assert many == split_loss(model, split, runtime(), BLOCK, 5)


def test_ids_that_no_meta_states_are_checked(data):
    with pytest.raises(UserError, match=r"val\.bin holds the id .* vocabulary ends at 9"):
        split_loss(tiny(vocab_size=10), data("nanogpt").split("val"), runtime(), BLOCK, 5)


def test_a_mixture_is_the_mean_by_weight(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    mixture, model = Mixture.open("meta:3,more:1"), tiny()
    args = (runtime(), BLOCK, 5)
    a, b = (split_loss(model, part.split("val"), *args)[0] for part in mixture.parts)
    assert mixture_loss(model, mixture, "val", *args) == pytest.approx(0.75 * a + 0.25 * b)


def test_bits_per_byte():
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8)
    assert bits_per_byte(math.log(16), 4.0) == pytest.approx(1)
    assert bits_per_byte(1.0, None) is None


# ---- multiple choice ----


@torch.no_grad()
def score_one(model, ids: list[int], n: int) -> float:
    """Log-likelihood of the last n ids, token by token."""
    total = 0.0
    for end in range(len(ids) - n, len(ids)):
        logits, _ = model(torch.tensor([ids[:end]]))
        total += F.log_softmax(logits[0, -1].double(), dim=-1)[ids[end]].item()
    return total


def questions(count: int, seed: int = 0) -> list[Question]:
    rng = np.random.default_rng(seed)

    def text(longest: int) -> str:
        return "".join(rng.choice(list(CHARS[2:]), rng.integers(1, longest)))

    return [
        Question(text(30), [text(14) for _ in range(4)], int(rng.integers(4)), f"q:{i + 1}")
        for i in range(count)
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_scores_are_those_of_brute_force(batch_size):
    model, coder = tiny().eval(), CharTokenizer(CHARS)
    rows = [row for q in questions(6) for row in encode_endings(q, coder, BLOCK)]
    assert max(len(ids) for ids, _ in rows) == BLOCK + 1  # contexts are cut
    want = [score_one(model, ids, n) for ids, n in rows]
    assert ending_scores(model, rows, runtime(), batch_size) == pytest.approx(want, abs=1e-4)


def test_long_contexts_are_cut_at_the_left():
    coder = CharTokenizer(CHARS)
    ids, n = encode_endings(Question("a" * 20 + "b", ["cd", "e"], 0, ""), coder, 4)[0]
    assert (coder.decode(ids), n) == ("ab cd", 3)  # 4 inputs and the last target
    short = encode_endings(Question("a", [" cd", "e"], 0, ""), coder, 9)
    assert [coder.decode(ids) for ids, _ in short] == ["a cd", "a e"]  # one space, not two
    with pytest.raises(UserError, match="f:3: an ending has 5 tokens, the model's context holds 4"):
        encode_endings(Question("a", ["bcde", "e"], 0, "f:3"), coder, 4)
    with pytest.raises(UserError, match=r"f:3: character '\?'"):
        encode_endings(Question("a?", ["b", "e"], 0, "f:3"), coder, 4)


class Unigram(torch.nn.Module):
    """Gives every byte the same chance wherever it stands: `chances`, the rest shared by others."""

    def __init__(self, chances: dict[str, float]):
        super().__init__()
        self.config = SimpleNamespace(block_size=64, vocab_size=257)
        rest = (1 - sum(chances.values())) / (257 - len(chances))
        self.probs = torch.full((257,), rest)
        for c, p in chances.items():
            self.probs[ord(c)] = p

    def forward(self, idx, targets=None):
        return self.probs.log().expand(*idx.shape, -1), None


def test_three_ways_to_choose():
    model, coder = Unigram({" ": 0.2, "a": 0.4, "b": 0.1, "é"[0]: 0.0001}), ByteTokenizer()

    def right(label: int, *endings: str) -> tuple[float, float, float]:
        found = multiple_choice(model, coder, [Question("x", endings, label, "")], runtime(), 8)
        return found["accuracy"], found["accuracy_per_token"], found["accuracy_per_byte"]

    # log-likelihoods with the space: "b" -3.9, "aaaa" -5.3; per token -1.96 and -1.06
    assert right(0, "b", "aaaa") == (1, 0, 0)
    assert right(1, "b", "aaaa") == (0, 1, 1)
    assert right(0, "a", "b") == (1, 1, 1)
    # "b" -3.91 in 2 tokens and 1 byte; "bb" -6.21 in 3 tokens and 2 bytes
    assert right(0, "b", "bb") == (1, 1, 0)


def test_accuracy_chance_and_error_over_processes():
    model, coder = tiny().eval(), CharTokenizer(CHARS)
    asked = questions(7, seed=3)
    whole = multiple_choice(model, coder, asked, runtime(), 5)
    scores = [[score_one(model, *row) for row in encode_endings(q, coder, BLOCK)] for q in asked]
    hits = [max(range(4), key=s.__getitem__) == q.label for s, q in zip(scores, asked)]
    p = sum(hits) / 7
    assert (whole["questions"], whole["accuracy"], whole["chance"]) == (7, pytest.approx(p), 0.25)
    assert whole["error"] == pytest.approx(math.sqrt(p * (1 - p) / 7))
    sums = []
    for rank in range(2):
        part = runtime(rank, 2)
        part.sum = lambda tensor: sums.append(tensor.clone()) or tensor
        multiple_choice(model, coder, asked, part, 5)
    names = ("accuracy", "accuracy_per_token", "accuracy_per_byte", "chance")
    assert sum(sums).div(7).tolist() == pytest.approx([whole[name] for name in names])


GOOD = '{"ctx": "a b", "endings": ["c", "d", "e", "f"], "label": "2", "ind": 7}'


def test_questions_are_read(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(f"{GOOD}\n\n{GOOD}\n", encoding="utf-8")
    first, second = read_questions(path)
    assert first == Question("a b", ["c", "d", "e", "f"], 2, f"{path}:1")
    assert second.where == f"{path}:3"


@pytest.mark.parametrize(
    "line, hint",
    [
        ("{", "is not JSON"),
        ("[1]", "not a JSON object"),
        (GOOD.replace("ctx", "context"), "no 'ctx'"),
        (GOOD.replace('"a b"', "7"), "ctx is not a text"),
        (GOOD.replace('"a b"', '""'), "ctx is not a text of at least"),
        (GOOD.replace('["c", "d", "e", "f"]', '["c"]'), "at least two"),
        (GOOD.replace('"d"', "4"), "an ending is not a text"),
        (GOOD.replace('"d"', '" "'), "an ending is not a text, or is empty"),
        (GOOD.replace('"2"', "4"), "label is 4, not the number of an ending (0 to 3)"),
        (GOOD.replace('"2"', "true"), "label is True"),
        (GOOD.replace('"2"', "null"), "label is None"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, hint):
    path = tmp_path / "q.jsonl"
    path.write_text(f"{GOOD}\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError) as e:
        read_questions(path)
    assert f"{path}:2" in str(e.value) and hint in str(e.value)
    assert "\n" not in str(e.value)


def test_question_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "latin").write_bytes(b"\xff\n")
    for name, hint in (("none", "cannot read"), ("empty", "no questions"), ("latin", "not UTF-8")):
        with pytest.raises(UserError, match=hint):
            read_questions(tmp_path / name)


# ---- tables and JSON ----


def test_table_and_json(tmp_path, capsys):
    text = table([{"a": "x", "b": 1234.5}, {"a": "long one"}], [("A", "a", ""), ("B", "b", ",.1f")])
    assert text.splitlines() == [
        "| A        |       B |",
        "| :------- | ------: |",
        "| x        | 1,234.5 |",
        "| long one |     n/a |",
    ]
    assert spread([3, 1, 2]) == {"median": 2, "low": 1, "high": 3, "n": 3}
    write_json(tmp_path / "new" / "r.json", {"a": [float("nan"), 1.5]})
    assert json.loads((tmp_path / "new" / "r.json").read_text()) == {"a": [None, 1.5]}
    write_json("-", {"b": math.inf})
    assert capsys.readouterr().out == '{"b": null}\n'
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the results"):
        write_json(tmp_path / "file" / "r.json", {})


# ---- the program ----


@pytest.fixture(scope="module")
def runs(workplace):
    """Two runs of character models in the workplace: eval-a, eval-b; their models."""
    models = {"eval-a": tiny(seed=1), "eval-b": tiny(seed=2)}
    for name, model in models.items():
        (workplace / name).mkdir()
        state = {
            "model": model.state_dict(),
            **describe_model(model, "gpt"),
            "iter_num": 12,
            "best_val_loss": torch.tensor(1.0),
            "config": {"dataset": "meta:0.7,more:0.3"},
            "tokenizer": {"type": "char", "chars": list(CHARS)},
        }
        save_checkpoint(workplace / name, state)
    lines = [json.dumps(vars(q) | {"ctx": q.context}) for q in questions(9)]
    (workplace / "questions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return models


def test_checkpoints_side_by_side_alone_and_with_two_processes(runs, workplace, tmp_path, data):
    options = ["--out_dir=eval-a,eval-b", "--dataset=meta,more", "--choices=questions.jsonl"]
    options += ["--device=cpu", "--batch_size=9"]
    done = run_program([*options, "--json=-"], workplace, program="eval.py")
    assert done.rc == 0 and not done.stderr, done
    found = json.loads(done.stdout.splitlines()[-1])
    assert "eval.py --out_dir=eval-a,eval-b" in found["command"]
    where = [(row["checkpoint"], row["dataset"]) for row in found["losses"]]
    assert where == [(f"{a}/ckpt.pt", b) for a in ("eval-a", "eval-b") for b in ("meta", "more")]
    for row in found["losses"]:
        model = runs[row["checkpoint"].split("/")[0]]
        split = data(row["dataset"]).split("val")
        loss, tokens = split_loss(model, split, runtime(), BLOCK, 9)
        assert row["loss"] == pytest.approx(loss, abs=1e-6)
        assert (row["tokens"], row["step"], row["block_size"]) == (tokens, 12, BLOCK)
        assert row["perplexity"] == pytest.approx(math.exp(loss))
        assert row["bits_per_byte"] == pytest.approx(loss / math.log(2))  # one byte each
        assert f"{loss:.4f} | {math.exp(loss):10,.2f} | {loss / math.log(2):13.4f} |" in done.stdout
    coder = CharTokenizer(CHARS)
    for row, model in zip(found["choices"], runs.values()):
        asked = read_questions(workplace / "questions.jsonl")
        want = multiple_choice(model, coder, asked, runtime(), 9)
        assert {k: row[k] for k in want} == pytest.approx(want)
        assert f"{want['accuracy']:.2%}" in done.stdout

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    target = tmp_path / "two.json"
    two = run_command([*command, str(ROOT / "eval.py"), *options, f"--json={target}"], workplace)
    assert two.rc == 0, two
    both = json.loads(target.read_text())
    for key in ("losses", "choices"):
        for one, other in zip(found[key], both[key]):
            assert one == pytest.approx(other, abs=1e-4)


def test_a_mixture_has_a_row_of_its_own(runs, workplace):
    options = ["--init_from=eval-a/ckpt.pt", "--windows=3", "--block_size=8", "--json=-"]
    done = run_program([*options, "--device=cpu"], workplace, program="eval.py")
    assert done.rc == 0, done
    a, b, both = json.loads(done.stdout.splitlines()[-1])["losses"]
    assert both["dataset"] == "meta:0.7,more:0.3"  # what the run was trained on
    assert both["loss"] == pytest.approx(0.7 * a["loss"] + 0.3 * b["loss"])
    assert 16 < a["tokens"] <= 24 and both["tokens"] == a["tokens"] + b["tokens"]
    assert both["block_size"] == 8


ERRORS = {
    "another tokenizer": (["--dataset=bare"], "(char, 30 characters)", "(gpt2)"),
    "too long": (["--dataset=meta", "--block_size=17"], "block_size=17", "16 tokens"),
    "questions": (["--choices=data/meta/meta.json"], "meta.json:1 has no 'ctx'"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_mistakes_end_in_one_line(runs, workplace, case):
    options, *hints = ERRORS[case]
    options = ["--out_dir=eval-a", "--device=cpu", *options]
    assert_one_line_error(run_program(options, workplace, program="eval.py"), *hints)
