"""The table of tokenizers: each passes the shared tests, and is made again of its description."""

import argparse
import decimal
import functools
import inspect
import json
import re
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable

import pytest
from helpers.hostile_texts import HOSTILE
from helpers.programs import ROOT, TINY, run_command
from helpers.shared_data import need_vocabulary
from helpers.tiny_data import tiny_text
from helpers.toy_tokenizer import ToyTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

import train_tokenizer
from bonsai import tokenizers
from bonsai.system.errors import UserError
from bonsai.tokenizers import (
    EOT_TEXT,
    TOKENIZERS,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    from_dict,
    get,
    names,
)

PROSE = [inspect.getdoc(module) for module in (argparse, decimal, inspect, json, typing)]

# One entry per tokenizer, and per way in which one works.
MAKE: dict[str, Callable[[], Tokenizer]] = {
    **{
        name: functools.partial(lambda kind: kind.from_texts(PROSE + HOSTILE, 500), kind)
        for name, kind in [*TOKENIZERS.items(), ("toy", ToyTokenizer)]
    },
    "bpe by itself": lambda: slow(BPETokenizer.train(PROSE, 500)),
    "bpe without pattern": lambda: BPETokenizer.train(PROSE, 400, None),
    "bpe with own pattern": lambda: BPETokenizer.train(PROSE, 400, r"[a-z]+|\d"),
    "sentencepiece bpe": lambda: SentencePieceTokenizer.train(PROSE, 350, "bpe"),
}
made = functools.cache(lambda name: MAKE[name]())


def slow(tokenizer: BPETokenizer) -> BPETokenizer:
    tokenizer.fast = False
    return tokenizer


@pytest.fixture(params=sorted(MAKE))
def tokenizer(request, monkeypatch):
    if request.param in ("gpt2", "gpt4"):
        need_vocabulary(request.param)
    monkeypatch.setitem(TOKENIZERS, "toy", ToyTokenizer)
    return made(request.param)


def test_a_tokenizer_is_one_file_its_import_and_a_line_in_the_table(tmp_path):
    """In a copy of the repository, from text to a sample; the toy is in the shared tests too."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    ignored = shutil.ignore_patterns("__pycache__", "*.bin", "meta.json*", "meta.pkl")
    for part in ("bonsai", "config", "data/custom"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=ignored)
    shutil.copy(
        ROOT / "tests" / "helpers" / "toy_tokenizer.py",
        tmp_path / "bonsai" / "tokenizers" / "toy.py",
    )
    table = tmp_path / "bonsai" / "tokenizers" / "__init__.py"
    code = table.read_text()
    for line, before in (
        ("from bonsai.tokenizers.toy import ToyTokenizer\n", "\n__all__ = ["),
        ('    "toy": ToyTokenizer,\n', '    "byte": ByteTokenizer,'),
    ):
        assert code.count(before) == 1
        code = code.replace(before, line + before)
    table.write_text(code)
    (tmp_path / "a.txt").write_text(tiny_text(3000))
    small = [*TINY, "--max_iters=4", "--sample_interval=2", "--dataset=by", "--out_dir=out"]
    for command in (
        ["data/custom/prepare.py", "--input=a.txt", "--name=by", "--tokenizer=toy"],
        ["train.py", *small],
    ):
        result = run_command([sys.executable, *command], tmp_path)
        assert result.rc == 0, result
    assert "-" * 15 in result.stdout  # after a sample
    meta = json.loads((tmp_path / "data" / "by" / "meta.json").read_text())
    assert meta["tokenizer"] == {"type": "toy"} and meta["vocab_size"] == 257
    assert meta["splits"]["train"]["bytes"] > 0


# ---- every tokenizer ----


@pytest.mark.parametrize("text", HOSTILE)
def test_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode("utf-8")
    assert all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids)


def test_batch_is_the_same_as_one_by_one(tokenizer):
    assert tokenizer.encode_batch(HOSTILE) == [tokenizer.encode(text) for text in HOSTILE]
    assert tokenizer.encode_batch([]) == []


def test_empty_input(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == "" and tokenizer.decode_bytes([]) == b""


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    state = json.loads(json.dumps(tokenizer.to_dict()))
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    (tmp_path / "meta.json").write_text(json.dumps({"vocab_size": 1, "tokenizer": state}))
    text = "".join(HOSTILE)
    copies = from_dict(state), get(tmp_path / "tokenizer.json"), get(tmp_path / "meta.json")
    for copy in copies:
        assert type(copy) is type(tokenizer) and copy.to_dict() == tokenizer.to_dict()
        assert (copy.vocab_size, copy.eot) == (tokenizer.vocab_size, tokenizer.eot)
        assert copy.encode(text) == tokenizer.encode(text)


def test_end_of_text_is_text_unless_allowed(tokenizer):
    text = f"one{EOT_TEXT}two{EOT_TEXT}"
    plain = tokenizer.encode(text)
    allowed = tokenizer.encode(text, allow_special=True)
    if tokenizer.eot is None:
        assert allowed == plain
    else:
        assert tokenizer.eot not in plain
        assert allowed == [
            *tokenizer.encode("one"),
            tokenizer.eot,
            *tokenizer.encode("two"),
            tokenizer.eot,
        ]
        assert 0 <= tokenizer.eot < tokenizer.vocab_size
    assert tokenizer.decode(plain) == tokenizer.decode(allowed) == text


def test_ids_outside_the_vocabulary_decode_to_a_replacement(tokenizer):
    known = tokenizer.encode("h")[0]
    for wrong in (tokenizer.vocab_size, tokenizer.vocab_size + 1000, -1):
        assert tokenizer.decode([known, wrong, known]) == "h\ufffdh"


def test_lone_surrogates_count_as_the_replacement_character(tokenizer):
    if tokenizer.eot is None:
        with pytest.raises(UserError):  # not a character of any text
            tokenizer.encode("a\ud83db")
    else:
        assert tokenizer.encode("a\ud83db") == tokenizer.encode("a\ufffdb")
        assert tokenizer.encode_batch(["\udc00"]) == [tokenizer.encode("\ufffd")]


def test_any_text_comes_back(tokenizer):
    @settings(max_examples=100, deadline=None)
    @given(st.text())
    def check(text):
        same = CharTokenizer.from_text(text + "x") if tokenizer.eot is None else tokenizer
        ids = same.encode(text)
        assert same.decode(ids) == text and same.decode_bytes(ids) == text.encode("utf-8")

    check()


def test_the_bytes_of_ids_are_those_of_each(tokenizer):
    ids = [i for text in HOSTILE for i in tokenizer.encode(text)]
    one = tokenizer.encode("a")
    alone = [tokenizer.decode_bytes([*one, i]).removeprefix(b"a") for i in ids]
    assert b"".join(alone) == tokenizer.decode_bytes(ids)


def test_the_complete_ones_go_by_their_name(tokenizer):
    kind = tokenizer.to_dict()["type"]
    if type(tokenizer).complete:
        assert kind in names() and get(kind).to_dict() == tokenizer.to_dict()
    else:
        assert kind not in names()
        with pytest.raises(UserError, match="made from a text") as e:
            get(kind)
        told = re.search("--type=([^ ]+)", str(e.value))[1]
        assert told in train_tokenizer.TYPES  # which is a way to make one


def test_any_ids_give_some_text(tokenizer):
    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.integers(-1, tokenizer.vocab_size)))
    def check(ids):
        assert isinstance(tokenizer.decode(ids), str)

    check()


# ---- descriptions ----


@pytest.mark.parametrize(
    "state",
    [
        {},
        None,
        [],
        {"type": "words"},
        {"type": ["char"]},
        {"type": "char"},
        {"type": "char", "chars": "abc"},
        {"type": "char", "chars": []},
        {"type": "char", "chars": ["a", "a"]},
        {"type": "char", "chars": ["ab", 3]},
        {"type": "bpe"},
        {"type": "bpe", "tokens": ["YQ=="], "pattern": None, "special_tokens": {}},
        {"type": "bpe", "tokens": ["?"], "pattern": None, "special_tokens": {}},
        {"type": "bpe", "tokens": [1], "pattern": None, "special_tokens": {}},
        {"type": "sentencepiece"},
        {"type": "sentencepiece", "model": ""},
        {"type": "sentencepiece", "model": "bm90aGluZw=="},
        {"type": "sentencepiece", "model": "é"},
    ],
)
def test_what_is_no_tokenizer_is_one_line(state):
    with pytest.raises(UserError) as e:
        from_dict(state)
    assert "\n" not in str(e.value)


WRONG = ("text", "", [1], [], {"a": 1}, {}, float("nan"), None, 1e12, 10**12, -1, True, ["\ud83d"])


@pytest.mark.parametrize("kind", ["char", "table", "bpe", "sentencepiece", "gpt2", "byte"])
def test_every_field_of_a_tokenizer_may_be_wrong(kind):
    """One line, or a tokenizer that works and whose vocabulary a model can have."""
    if kind == "gpt2":
        need_vocabulary(kind)
    good = json.loads(json.dumps(made(kind).to_dict()))
    for field in good:
        for value in WRONG:
            for state in (
                {**good, field: value},
                {**good, field: [*good[field], value] if isinstance(good[field], list) else value},
                {**good, field: {"a": value}},
                {name: v for name, v in good.items() if name != field},
            ):
                try:
                    tokenizer = from_dict(state)
                    assert 0 < tokenizer.vocab_size <= 10_000_000
                    assert tokenizer.decode(tokenizer.encode("a")) == "a"
                except UserError as e:
                    assert "\n" not in str(e) and len(str(e)) < 400, e


def test_getting_what_is_not_there(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    (tmp_path / "broken.model").write_bytes(b"broken")
    files = ("none.json", "broken.json", "none.model", "broken.model", "some.tiktoken")
    for name in (
        "gpt5",
        "char",
        "table",
        "bpe",
        "sentencepiece",
        *(str(tmp_path / file) for file in files),
    ):
        with pytest.raises(UserError) as e:
            get(name)
        assert "\n" not in str(e.value)


def test_heavy_libraries_are_imported_where_they_are_used():
    """Opening a data set with a byte tokenizer costs no import of these."""
    heavy = ["torch", "tiktoken", "rustbpe", "regex", "sentencepiece", "numpy"]
    code = (
        "import sys; from bonsai.tokenizers import get; get('byte').encode('a'); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_a_tokenizer_is_where_it_is_said_to_be(tmp_path):
    (tmp_path / "config.json").write_text('{"n_layer": 1}')
    with pytest.raises(UserError, match=r"config.json holds no tokenizer"):
        tokenizers.get(tmp_path / "config.json")
    for content in ("[]", '{"type": "words"}', '{"type": "bpe"}', '{"tokenizer": {"type": 3}}'):
        (tmp_path / "own.json").write_text(content)
        with pytest.raises(UserError, match=f"^{tmp_path}/own.json: "):
            tokenizers.get(tmp_path / "own.json")
    (tmp_path / "meta.json").write_text('{"tokenizer": {"type": "byte"}}')
    of_data = tokenizers.get(tmp_path)  # a data set's folder
    assert isinstance(of_data, ByteTokenizer)
    with pytest.raises(UserError, match="a data set's folder"):
        tokenizers.get("char")
