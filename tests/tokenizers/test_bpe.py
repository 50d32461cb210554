"""bonsai/tokenizers/bpe.py: against a naive recount, against rustbpe and against tiktoken."""

import base64
import random
from collections import Counter

import pytest
from helpers.hostile_texts import difficult_texts, library_source, strange_characters
from helpers.shared_data import need_vocabulary, shared
from hypothesis import given, settings
from hypothesis import strategies as st

from bonsai.data.encoders import fast_encoder
from bonsai.system.errors import UserError
from bonsai.tokenizers import EOT_TEXT, BPETokenizer, get
from bonsai.tokenizers.bpe import (
    BYTES,
    LONGEST_NAMES,
    RARE,
    count_chunks,
    learn_merges,
    merge,
    recount_merges,
    rust_tokens,
    tokens_of,
)
from bonsai.tokenizers.patterns import GPT2, GPT4, LONG_BLANK, named_pattern

# ---- training ----


words_of_few_letters = st.dictionaries(
    st.lists(st.sampled_from(b"aab"), max_size=14).map(bytes), st.integers(1, 4), max_size=12
)


@settings(max_examples=200, deadline=None)
@given(words_of_few_letters, st.integers(0, 30))
def test_merges_are_those_of_a_full_recount(chunks, n):
    assert learn_merges(chunks, n) == recount_merges(chunks, n)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("aab c\n1."), max_size=6), st.integers(0, 60))
def test_merges_are_those_of_rustbpe(texts, n):
    ours = tokens_of(learn_merges(count_chunks(texts, GPT4), n))
    assert rust_tokens(texts, n, GPT4) == ours


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", "digits", r"\w+|\W"])
def test_merges_are_those_of_rustbpe_on_source_text(pattern):
    texts = library_source(25)
    fast, plain = (
        BPETokenizer.train(texts, 5000, named_pattern(pattern), fast=fast) for fast in (True, False)
    )
    assert fast.tokens == plain.tokens and fast.vocab_size == 5000


def test_merges_are_those_of_rustbpe_on_any_characters():
    texts = ["".join(random.Random(i).choices(strange_characters(), k=2000)) for i in range(3)]
    fast, plain = (BPETokenizer.train(texts, 600, GPT4, fast=fast) for fast in (True, False))
    assert fast.tokens == plain.tokens


def test_equal_counts_go_by_the_smaller_ids():
    assert learn_merges({b"cd": 1, b"ab": 1, b"ac": 1}, 3) == [(97, 98), (97, 99), (99, 100)]


def test_overlapping_pairs_are_merged_from_the_left():
    assert learn_merges({b"aaaaa": 1}, 9) == [(97, 97), (256, 97), (256, 257)]


@pytest.mark.parametrize("fast", [True, False])
def test_training_stops_when_no_pairs_are_left(fast):
    tokenizer = BPETokenizer.train(["one one one"], 1000, fast=fast)
    assert b"one" in tokenizer.tokens and b" one" in tokenizer.tokens
    assert tokenizer.vocab_size == len(tokenizer.tokens) + 1 < 270
    assert tokenizer.decode(tokenizer.encode("one more")) == "one more"
    for nothing in ([], [""]):
        assert BPETokenizer.train(nothing, 1000, fast=fast).vocab_size == 257


def test_a_vocabulary_has_room_for_the_bytes():
    for size, names in ((256, [EOT_TEXT]), (255, []), (-1, []), (257, ["a", "b"])):
        with pytest.raises(UserError, match="vocab_size"):
            BPETokenizer.train(["text"], size, special_tokens=names)
    assert BPETokenizer.train(["text"], 256, special_tokens=[]).vocab_size == 256


def test_bytes_that_no_text_has_may_be_missing():
    """Then a text with one of them is an error, however it is encoded; all else is as before."""
    whole = BPETokenizer.train(["to be\n 12"], 270, GPT2)
    tokens = [None if len(t) == 1 and t[0] in RARE else t for t in whole.tokens]
    lacking = BPETokenizer.from_dict({**whole.to_dict(), "tokens": _in_base64(tokens)})
    plain = BPETokenizer(tokens, GPT2, whole.special_tokens, fast=False)
    assert lacking.fast and {*lacking.lacking} == RARE
    text = "to be 😀 ü\n\t\r 12 \U00030000 \U000e0001 \U0010fffd \x85 \ud83d"
    for tokenizer in (lacking, plain):
        assert tokenizer.encode(text) == whole.encode(text)
        for odd in ("be \x00 12", "\x7f", "to \U00050000"):
            for encode in (tokenizer.encode, lambda text, t=tokenizer: t.encode_batch(["a", text])):
                with pytest.raises(UserError, match=r"the text has the byte 0x.., for which"):
                    encode(odd)
    with pytest.raises(UserError, match="gigatoken takes byte-pair encodings of all bytes only"):
        fast_encoder(lacking, name="gigatoken")
    for byte in b"a\n\xc3\xf0":
        without = [None if t == bytes([byte]) else t for t in tokens]
        with pytest.raises(UserError, match="holds all 256 bytes"):
            BPETokenizer(without, GPT2, whole.special_tokens)


def _in_base64(tokens: list[bytes | None]) -> list[str | None]:
    return [None if t is None else base64.b64encode(t).decode() for t in tokens]


def test_progress_is_told():
    seen = []
    learn_merges({b"abcdefgh": 1}, 5, seen.append)
    assert seen == [1, 2, 3, 4, 5]
    seen.clear()
    BPETokenizer.train(["abcdefgh"], 262, progress=seen.append)
    assert seen and seen == sorted(seen) and seen[-1] == 5


def test_a_smaller_vocabulary_is_the_beginning_of_a_larger_one():
    texts = library_source(10)
    large, small = (BPETokenizer.train(texts, size) for size in (3000, 700))
    first = large.first(700)
    assert first.to_dict() == small.to_dict()


def test_merges_as_learnt():
    chunks = count_chunks(library_source(5), GPT4)
    merges = learn_merges(chunks, 300)
    tokens = tokens_of(merges)
    assert BPETokenizer(tokens).merges() == [(tokens[a], tokens[b]) for a, b in merges]


def test_encoding_the_training_text_gives_the_tokens_training_ended_with():
    texts = library_source(10)
    tokenizer = BPETokenizer.train(texts, 2000)
    counts = Counter(i for text in texts for i in tokenizer.encode(text))
    assert sum(n * len(tokenizer.tokens[i]) for i, n in counts.items()) == sum(
        len(text.encode()) for text in texts
    )
    assert len(counts) > 1500


# ---- encoding ----


def test_merge_takes_the_lowest_rank_and_then_the_leftmost():
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"aa": 5}
    assert merge(b"abc", ranks) == [b"a", b"bc"]
    assert merge(b"aaa", ranks) == [b"aa", b"a"]
    assert merge(b"", ranks) == []
    assert merge(b"abab", ranks, limit=4) == [b"a", b"b", b"a", b"b"]


def test_own_encoder_equals_tiktoken_on_difficult_texts(pair):
    theirs, own = pair
    for text in difficult_texts():
        expected = theirs.encode_ordinary(text)
        assert own.encode(text) == expected
        assert own.decode(expected) == theirs.decode(expected)
    own.fast = True
    assert own.encode_batch(difficult_texts()) == theirs.encode_ordinary_batch(difficult_texts())
    text = f"one{EOT_TEXT}two"
    assert own.encode(text, allow_special=True) == theirs.encode(text, allowed_special="all")


def test_own_encoder_equals_tiktoken_on_plays_and_source(pair):
    theirs, own = pair
    for text in (shared("data/tinyshakespeare.txt").read_text("utf-8"), *library_source(60)):
        assert own.encode(text) == theirs.encode_ordinary(text)


@pytest.mark.parametrize("pattern", [GPT2, GPT4, None, r"[a-z]+|\d", r"\p{Han}|[^\p{Han}]+"])
def test_own_encoder_equals_tiktoken_for_any_text(pattern):
    fast = BPETokenizer.train(library_source(3) + difficult_texts()[:20], 700, pattern)
    plain = BPETokenizer(fast.tokens, pattern, fast.special_tokens, fast=False)

    @settings(max_examples=150, deadline=None)
    @given(st.text() | st.text("ab '\n\tIVE15.é的"))
    def check(text):
        assert fast.encode(text) == plain.encode(text)
        assert fast.decode(plain.encode(text)) == text

    check()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_come_back(data):
    tokens = tokens_of(learn_merges({b"\xff\xfe\xff\xfe": 3, b"\x80\x80": 5}, 3))
    own = BPETokenizer(tokens, None)
    ids = [own.ranks[part] for part in merge(data, own.ranks)]
    assert own.decode_bytes(ids) == data
    assert own.decode(ids) == data.decode("utf-8", errors="replace")


def test_a_million_blanks_which_tiktoken_cannot_split():
    need_vocabulary("gpt2")
    text = "a" + " " * (LONG_BLANK + 200_000) + "b"
    for tokenizer in (get("gpt2"), BPETokenizer.train(["text"], 300)):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode_batch([text]) == [tokenizer.encode(text)]
    with pytest.raises(UserError, match="blanks"):
        BPETokenizer.train([text], 300)


# ---- special tokens ----


def test_special_tokens_are_text_unless_allowed():
    names = ["<|a|>", "<|a|>b", EOT_TEXT]
    tokenizer = BPETokenizer.train(["some text"], 300, special_tokens=names)
    first = len(tokenizer.tokens)
    assert tokenizer.special_tokens == {"<|a|>": first, "<|a|>b": first + 1, EOT_TEXT: first + 2}
    assert tokenizer.eot == first + 2 and tokenizer.vocab_size == first + 3
    text = f"x<|a|>b<|a|>{EOT_TEXT}<|a|"
    plain, allowed = tokenizer.encode(text), tokenizer.encode(text, allow_special=True)
    assert max(plain) < first
    assert [i for i in allowed if i >= first] == [first + 1, first, first + 2]
    assert tokenizer.decode(plain) == tokenizer.decode(allowed) == text
    assert BPETokenizer.train(["text"], 300, special_tokens=[]).eot is None


def test_special_tokens_have_bounds():
    """They are one regular expression, which takes 100 times as much memory."""
    state = BPETokenizer(BYTES, None).to_dict()
    many = {f"{i:08}": 300 + i for i in range(LONGEST_NAMES // 8 + 1)}
    for special in ({"a" * (LONGEST_NAMES + 1): 300}, many):
        with pytest.raises(UserError, match="special tokens have more than"):
            BPETokenizer.from_dict({**state, "special_tokens": special})
    with pytest.raises(UserError, match="a bpe tokenizer needs"):
        BPETokenizer.from_dict({**state, "special_tokens": {5: 300}})


def test_special_tokens_need_ids_of_their_own():
    tokens = tokens_of([])
    for wrong in ({"a": 5}, {"a": 256, "b": 256}, {"": 256}, {"a": -1}):
        with pytest.raises(UserError, match="special token"):
            BPETokenizer(tokens, GPT4, wrong)
