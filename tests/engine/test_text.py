"""bonsai/engine/text.py: whose tokenizer a model gets, and how its samples begin."""

import json

import pytest
from helpers.shared_data import need_vocabulary
from helpers.tiny_data import CHARS, make_dataset
from helpers.tiny_model import VOCAB, tiny

from bonsai.engine.text import find_tokenizer, sample_text, start_tokens
from bonsai.models.loading import Loaded
from bonsai.system.errors import UserError
from bonsai.system.runtime import setup
from bonsai.tokenizers import ByteTokenizer, CharTokenizer, MissingLibrary, TableTokenizer

CHAR = {"type": "char", "chars": list(CHARS)}


def loaded(tokenizer: dict | None = None, vocab_size: int = VOCAB, **more) -> Loaded:
    model = tiny(vocab_size=vocab_size)
    config = {"dataset": more.pop("dataset")} if "dataset" in more else {}
    return Loaded(model, "gpt", tokenizer, config, "a checkpoint", **more)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_checkpoints_own_comes_first(here):
    make_dataset(here / "data" / "mine", "meta")
    tokenizer, where = find_tokenizer(loaded({"type": "char", "chars": ["a"]}, dataset="mine"))
    assert tokenizer.chars == ["a"] and where == "a checkpoint"


@pytest.mark.parametrize("kind", ["meta", "nanogpt"])
def test_without_one_that_of_its_data(here, kind):
    make_dataset(here / "data" / "mine", kind)
    tokenizer, where = find_tokenizer(loaded(dataset="mine"))
    assert tokenizer.chars == list(CHARS)
    assert where == f"data/mine/{'meta.json' if kind == 'meta' else 'meta.pkl'}"


@pytest.mark.parametrize("name", ["../mine", "a/b", "", 5, None])
def test_a_name_that_is_a_path_is_not_followed(here, name):
    """It comes from a file: GPT-2's is assumed, which this model is too small for."""
    need_vocabulary("gpt2")
    make_dataset(here / "mine", "meta")
    with pytest.raises(UserError, match=r"has 31 tokens, but its gpt2 .* 50257: it carries none"):
        find_tokenizer(loaded(dataset=name))


def test_weights_alone_carry_none(here):
    need_vocabulary("gpt2")
    with pytest.raises(UserError, match=r"has 50257: it carries none; train\.py .* --dataset$"):
        find_tokenizer(loaded())


def test_numbers_are_no_text(here):
    """A data set that names no tokenizer, of fewer ids than GPT-2's."""
    make_dataset(here / "data" / "mine", "meta")
    file = here / "data" / "mine" / "meta.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tokenizer": None}))
    with pytest.raises(UserError, match=r"numbers that are no text: data/mine/meta\.json names no"):
        find_tokenizer(loaded(dataset="mine"))
    body, line = sample_text(tiny(), None, setup("cpu", "float32", False), tokens=9).split("\n")
    assert line == "-" * 15 and len(body.split()) == 9
    assert all(0 <= int(word) < VOCAB for word in body.split())


def test_what_is_known_to_be_missing_is_said(here):
    with pytest.raises(UserError, match=r"^no tokenizer of its 31 tokens$"):
        find_tokenizer(loaded(tokenizer_note="no tokenizer of its 31 tokens"))


def test_a_tokenizer_larger_than_its_model(here):
    with pytest.raises(UserError, match=r"a checkpoint has 9 tokens, .*put the meta\.json"):
        find_tokenizer(loaded(CHAR, vocab_size=9, dataset="mine"))


def test_what_a_text_is_begun_with():
    assert start_tokens(ByteTokenizer()) == [256]
    assert start_tokens(CharTokenizer.from_text("a\n")) == [0]
    assert start_tokens(CharTokenizer.from_text("ba")) == [0]  # no line break either
    assert start_tokens(TableTokenizer(["ba", "a\n", "\n"])) == [2]


def test_a_vocabulary_that_cannot_be_loaded_is_no_lack_of_a_line_break(monkeypatch):
    def missing(text):
        raise MissingLibrary("pip install it")

    tokenizer = CharTokenizer.from_text("ba")
    monkeypatch.setattr(tokenizer, "encode", missing)
    with pytest.raises(MissingLibrary):
        start_tokens(tokenizer)


def test_a_sample_is_the_seeds_and_knows_the_tokenizers_end():
    """A vocabulary padded beyond its tokenizer never shows the padding."""
    model, runtime = tiny(vocab_size=64), setup("cpu", "float32", False)
    text = sample_text(model, CHAR, runtime, tokens=40, seed=1)
    body, line = text.rsplit("\n", 1)
    assert line == "-" * 15 and len(body) == 40 and set(body) <= set(CHARS)
    assert sample_text(model, CHAR, runtime, tokens=40, seed=1) == text
    assert sample_text(model, CHAR, runtime, tokens=40, seed=2) != text
