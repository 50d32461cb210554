"""bonsai/tokenizers/patterns.py: chunks as tiktoken cuts; no stranger's pattern hangs."""

import re
import time

import pytest

from bonsai.system.errors import UserError
from bonsai.tokenizers import BPETokenizer, patterns
from bonsai.tokenizers.patterns import (
    DIGITS,
    GPT2,
    GPT4,
    checked_pattern,
    named_pattern,
    runs_in_rust,
    splitter,
)


@pytest.mark.parametrize("kind", [r"\p{L}", r"\p{N}", r"\s", r"(?i:[sdmt]|ll|ve|re)"])
def test_every_character_is_what_it_is_for_tiktoken(kind):
    """Letter, digit, space: for all of Unicode, whatever version the regex module has."""
    import tiktoken

    everything = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    ranks = {bytes([i]): i for i in range(256)}
    engine = tiktoken.Encoding("one kind", pat_str=kind, mergeable_ranks=ranks, special_tokens={})
    known = engine.decode(engine.encode_ordinary(everything))  # other characters are dropped
    assert set(known) == set("".join(splitter(kind)(everything)))


def test_chunks():
    assert splitter(GPT2)("I've 1234 cats") == ["I", "'ve", " 1234", " cats"]
    assert splitter(GPT4)("I'VE 1234 cats") == ["I", "'VE", " ", "123", "4", " cats"]
    assert splitter(GPT2)("I'VE") == ["I", "'", "VE"]
    assert splitter(GPT2)("if x:\n    y") == ["if", " x", ":", "\n   ", " y"]
    assert splitter(GPT4)("if x:\n    y") == ["if", " x", ":\n", "   ", " y"]
    assert splitter(DIGITS)("it's 12  3\n4") == ["it", "'s", " ", "1", "2", "  ", "3", "\n", "4"]
    assert splitter(DIGITS)("if x:\n    y") == ["if", " x", ":", "\n   ", " y"]
    assert splitter(None)("any text") == ["any text"] and splitter(None)("") == []


def test_own_patterns_lose_nothing():
    assert splitter(checked_pattern("[a-z]+"))("ab, c\n1") == ["ab", ",", " ", "c", "\n", "1"]
    assert checked_pattern(checked_pattern("[a-z]+")) == checked_pattern("[a-z]+")
    for wrong in ("(", "(a)|b", "a*", "", "|a"):
        with pytest.raises(UserError, match="pattern"):
            checked_pattern(wrong)


HOSTILE_PATTERNS = {  # what is wrong with it: a pattern
    "exponential": r"(?:a|aa)+b",
    "twice the same": r"(?:\w|[a-z])+!!",
    "nested repetitions": r"(?:a+)+b",
    "nested stars": r"(?:\w*\d*)*x",
    "overlapping": r"(?:[a-z]|\w|.)+!!",
    "too long": r"\w" * 3000,
    "too deep": "(?:a|" * 900 + "b" + ")" * 900,
    "from right to left": r"(?r)\w+",
    "a word's border": r"\b|\w+",
    "a look ahead": r"(?=a)|\w+",
    "no property": r"\p{Nonsense}",
    "many stars": "(?:a*)" * 30 + "b+",
    "itself": r"(?:a|b(?R)?c)+(?:b(?R))+x",
}


@pytest.mark.parametrize("pattern", HOSTILE_PATTERNS.values(), ids=HOSTILE_PATTERNS.keys())
def test_a_hostile_pattern_is_refused_in_time_or_harmless(pattern):
    """In a file of a stranger's: no panic of Rust, no hang, one line; or every text comes back."""
    state = BPETokenizer.train(["text"], 256, special_tokens=()).to_dict()
    start = time.monotonic()
    try:
        tokenizer = BPETokenizer.from_dict({**state, "pattern": pattern})
        for text in ("a" * 30 + "!", "abab " * 50, "x\n\n y", "\U000323b0 a"):
            assert tokenizer.decode(tokenizer.encode(text)) == text
    except UserError as e:
        assert "pattern" in str(e) and len(str(e)) < 300
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("name", ["exponential", "twice the same", "too long", "too deep"])
def test_the_worst_patterns_are_refused(name):
    with pytest.raises(UserError, match="the pattern"):
        checked_pattern(HOSTILE_PATTERNS[name])


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("", "no pattern is called ''"),
        ("gpt5", "no pattern is called 'gpt5': use gpt2, gpt4"),
        ("[a-z", "'[a-z' is not a regular expression: unterminated character set at position 4"),
        ("a(((", "is not a regular expression: missing ) at position 4"),
        ("a*", "matches empty text: use + instead"),
        ("(a)", "has a group: write (?:...) instead"),
    ],
)
def test_what_is_no_pattern(pattern, says):
    with pytest.raises(UserError, match=re.escape(says)):
        named_pattern(pattern)


def test_a_text_has_so_much_time(monkeypatch):
    """A pattern that the probes do not find out is stopped where it is slow."""
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    tokenizer = BPETokenizer.train(["text"], 300, r"(?:zq|zqzq)+!|(?:zq)++")
    with pytest.raises(UserError, match=r"takes more than 0\.2 s to split 102 characters"):
        tokenizer.encode("zq" * 50 + "?!")


def test_a_long_text_is_tried_before_rust_takes_it(monkeypatch):
    """A match that fails at every place takes quadratic time, and tiktoken cannot be stopped."""
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    tokenizer = BPETokenizer.train(["text"], 300, r"[a-y]+z|\w")
    assert tokenizer.fast
    text = "a" * 60_000 + "!z"
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(UserError, match=r"takes more than 0\.8 s"):
            encode(text)


@pytest.mark.parametrize(
    ("pattern", "rust"),
    [
        (GPT2, True),
        (GPT4, True),
        (DIGITS, True),
        (None, True),
        (r"\p{N}{1,3}|[^\r\n\p{L}]?\p{L}+(?i:'s|'t)?|\s+(?!\S)|\s+|(?s:.)", True),
        (r"(?i)[a-z]+|[^a-z]", True),
        (r"(?:\s+(?!\S)|a)+", False),
        (r"\w+\b", False),
        (r"^\w+", False),
        (r"(?<=a)b", False),
        (r"a++", False),
        (r"(?>a+)b", False),
        (r"[a-z&&[^b]]", False),
        (r"(?:abc){e<=2}", False),
    ],
)
def test_what_is_left_to_rust_takes_linear_time_there(pattern, rust):
    assert runs_in_rust(pattern) == rust
    texts = ["some text a b c\n\n 123 it's abbc" * 20]
    trained = BPETokenizer.train(texts, 280, pattern)
    plain = BPETokenizer.train(texts, 280, pattern, fast=False)
    assert trained.tokens == plain.tokens and trained.encode(texts[0]) == plain.encode(texts[0])
