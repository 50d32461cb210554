"""Encoders beside the tokenizers whose ids they make."""

import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers.shared_data import need_vocabulary, shared
from hypothesis import given, settings

from bonsai.data.encoders import Encoder, GigatokenEncoder, fast_encoder
from bonsai.system.errors import UserError
from bonsai.tokenizers import EOT_TEXT, BPETokenizer, CharTokenizer, get

PROSE = [
    "It's the 1234th line,\n\n  isn't it?\n",
    "größer 你好 😀👩‍👩‍👧 e\u0301\n",
    "\t\tif (a->b[0]) {\r\n",
]
HOSTILE = [EOT_TEXT, "<|endof", "text|>", "\u2028", "\x00", "\ufffd", "\U0010ffff", " " * 30, "'LL"]
texts = st.lists(st.sampled_from(PROSE + HOSTILE) | st.text(max_size=8), max_size=6).map("".join)
batches = st.lists(st.tuples(texts.map(str.encode), st.booleans()), max_size=5)


def tokenizer_called(name: str):
    if name == "bpe":
        return BPETokenizer.train(PROSE * 3, 330)
    if name == "char":
        return CharTokenizer.from_text(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    if name != "byte":
        need_vocabulary(name)
    return get(name)


def expected(tokenizer, batch, eot: bool) -> list[int]:
    """What the tokenizer itself says, document by document."""
    ids = []
    for data, ends in batch:
        ids += tokenizer.encode(data.decode())
        if ends and eot and tokenizer.eot is not None:
            ids.append(tokenizer.eot)
    return ids


@pytest.mark.parametrize("name", ["gpt2", "gpt4", "bpe", "byte", "char"])
@pytest.mark.parametrize("kind", ["auto", "tokenizer"])
@pytest.mark.parametrize("eot", [True, False])
def test_ids_are_the_tokenizers(name, kind, eot):
    tokenizer = tokenizer_called(name)
    encode = fast_encoder(tokenizer, eot, kind)

    @settings(max_examples=50, deadline=None)
    @given(batches)
    def check(batch):
        # Parts of a document meet at safe places only; so here each part but the last is whole.
        batch = [(data, ends or i < len(batch) - 1) for i, (data, ends) in enumerate(batch)]
        ids = encode(batch)
        assert ids.dtype == ("<u4" if tokenizer.vocab_size > 65535 else "<u2")
        assert ids.tolist() == expected(tokenizer, batch, eot)

    check()


@pytest.mark.parametrize("name", ["gpt2", "gpt4"])
def test_long_texts(name):
    need_vocabulary(name)
    tokenizer = get(name)
    encode = fast_encoder(tokenizer)
    shakespeare = shared("data/tinyshakespeare.txt").read_bytes()
    rng = np.random.default_rng(0)
    points = rng.integers(0, 0x110000, 50_000)
    planes = "".join(map(chr, points[(points < 0xD800) | (points > 0xDFFF)]))
    for data in (shakespeare, planes.encode(), b"a" * 100_000, ("é" * 50_000).encode()):
        assert encode([(data, False)]).tolist() == tokenizer.encode(data.decode())


@pytest.mark.parametrize(
    "text",
    ["some words", EOT_TEXT, "line\n" * 2000, "words in one line " * 2000, "你好" * 3000],
    ids=["short", "look-alike", "lines", "one line", "no spaces"],
)
def test_a_library_that_errs_is_found_out(monkeypatch, text):
    pytest.importorskip("gigatoken")
    tokenizer = tokenizer_called("bpe")
    encode = GigatokenEncoder(tokenizer)
    assert encode([(text.encode(), True)]).tolist() == expected(
        tokenizer, [(text.encode(), True)], eot=True
    )
    right = GigatokenEncoder._encode
    monkeypatch.setattr(GigatokenEncoder, "_encode", lambda *args: right(*args)[::-1])
    with pytest.raises(UserError, match="--encoder=tokenizer"):
        encode([(text.encode(), True)])


def test_what_gigatoken_cannot_do_is_left_to_the_tokenizer(monkeypatch):
    tokenizer = BPETokenizer.train(PROSE, 300, pattern=r"\w+|\W+")
    assert type(fast_encoder(tokenizer)) is Encoder
    with pytest.raises(UserError, match="patterns"):
        fast_encoder(tokenizer, name="gigatoken")
    monkeypatch.setitem(sys.modules, "gigatoken.gigatoken_rs", None)  # as if not there
    assert type(fast_encoder(tokenizer_called("bpe"))) is Encoder
    with pytest.raises(UserError, match="not installed"):
        fast_encoder(tokenizer_called("bpe"), name="gigatoken")


def test_an_unknown_character_is_named():
    with pytest.raises(UserError, match="'x'"):
        fast_encoder(CharTokenizer.from_text("ab"))([(b"abx", True)])
