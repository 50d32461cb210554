"""bonsai/evaluation/choices.py: scores by brute force, three ways to choose, files of questions."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers.evaluated import BLOCK, questions, runtime, score_one, tiny
from helpers.tiny_data import CHARS

from bonsai.evaluation.choices import (
    Question,
    encode_endings,
    multiple_choice,
    read_questions,
)
from bonsai.system.errors import UserError
from bonsai.tokenizers import ByteTokenizer, CharTokenizer


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


def test_texts_that_a_vocabulary_drops():
    """Blanks and the like are no tokens for SentencePiece's models that tidy texts up."""
    dropped = "\N{ZERO WIDTH SPACE}"
    drops = SimpleNamespace(encode=lambda text: [*text.replace(dropped, "").strip().encode()])
    for context, endings, hint in (
        (" ", ["b", "c"], "f:3: ctx is no token"),
        (dropped, ["b", "c"], "f:3: ctx is no token"),
        ("a", ["b", dropped], "f:3: an ending is no token"),
    ):
        with pytest.raises(UserError, match=hint):
            encode_endings(Question(context, endings, 0, "f:3"), drops, 4)
    assert encode_endings(Question("a", ["b", "c"], 0, ""), drops, 4)[0] == ([97, 98], 1)


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
        scores = multiple_choice(model, coder, [Question("x", endings, label, "")], runtime(), 8)
        return scores["accuracy"], scores["accuracy_per_token"], scores["accuracy_per_byte"]

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
    sums = [tensor for tensor in sums if len(tensor) == 4]  # others count the batches
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
        ("[" * 5000, "is not JSON"),
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
        (GOOD.replace('"2"', f'"{"9" * 5000}"'), "label is"),  # Python reads no such number
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
