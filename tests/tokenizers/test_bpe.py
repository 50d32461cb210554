"""BPE trained and applied here: against a naive recount, against rustbpe and against tiktoken."""

import json
import random
import subprocess
import sys
import sysconfig
import time
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from helpers.shared_data import ROOT, need_vocabulary, shared, shared_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from bonsai.system.errors import UserError
from bonsai.tokenizers import EOT_TEXT, BPETokenizer, from_dict, get, patterns
from bonsai.tokenizers.bpe import (
    count_chunks,
    learn_merges,
    merge,
    rust_tokens,
    tokens_of,
)
from bonsai.tokenizers.patterns import (
    GPT2,
    GPT4,
    LONG_BLANK,
    checked_pattern,
    named_pattern,
    runs_in_rust,
    splitter,
)
from bonsai.tokenizers.ranks import gpt2_alphabet, read_ranks, read_vocab_bpe, write_ranks

VOCAB_BPE = "tiktoken_cache/6d1cbeee0f20b3d9449abfede4726ed8212e3aee"
PATTERNS = [("gpt2", "gpt2", GPT2), ("gpt4", "cl100k_base", GPT4)]


def library_source(count: int) -> list[str]:
    """The first files of the running Python's library."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:count]
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


# ---- training ----


def recount_merges(chunks: dict[bytes, int], n: int) -> list[tuple[int, int]]:
    """What learn_merges computes, by counting everything again for every merge."""
    words, merges = [(list(chunk), count) for chunk, count in chunks.items()], []
    while len(merges) < n:
        counts = Counter()
        for ids, count in words:
            for pair in pairwise(ids):
                counts[pair] += count
        if not counts:
            break
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        for ids, _ in words:
            i = 0
            while i < len(ids) - 1:
                if (ids[i], ids[i + 1]) == pair:
                    ids[i : i + 2] = [256 + len(merges)]
                i += 1
        merges.append(pair)
    return merges


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


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", r"\w+|\W"])
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


def strange_characters() -> list[str]:
    """Some of every plane, with emoji, marks and joiners between them."""
    characters = [chr(i) for i in range(0, 0x110000, 101) if not 0xD800 <= i < 0xE000]
    marks = [chr(i) for i in range(0x300, 0x370)] + ["\u200d", "\ufe0f", "\u20e3"]
    emoji = [chr(i) for i in range(0x1F300, 0x1F650)] + ["👩‍👩‍👧‍👦", "🏳️‍🌈", "1️⃣", "🇬🇧"]
    ascii_ = [chr(i) for i in range(128)] * 8
    return characters + marks + emoji + ascii_


def difficult_texts() -> list[str]:
    rng = random.Random(0)
    characters = strange_characters()
    return [
        *("".join(rng.choices(characters, k=300)) for _ in range(100)),
        "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000),
        unicodedata.normalize("NFD", "naïve Ångström, tiếng Việt, हिन्दी ") * 20,
        "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈👍🏽 in a row" * 20,
        "lone \ud83d and \udc00, turned round \udc00\ud83d, and a pair \ud83d\ude00",
        "x" * 100_000,
        "".join(rng.choices("abcdefgh", k=100_000)),
        " " * 5000 + "word" + "\n" * 5000 + "\t \r\n",
        f"{EOT_TEXT}<|endoftext|<|fim_prefix|><|im_start|>user<|endofprompt|>[INST]</s>",
        "I'LL we'll DON'T 'S 's ſ 'ſ it'ſ K 1234567 12 345,678.90 \x1c\x1d\x85\xa0\u2028",
    ]


@pytest.fixture(params=PATTERNS, ids=["gpt2", "gpt4"])
def pair(request):
    """tiktoken's encoding, and ours with its ranks (GPT-2's from vocab.bpe, if it is at hand)."""
    name, encoding, pattern = request.param
    need_vocabulary(name)
    import tiktoken

    theirs = tiktoken.get_encoding(encoding)
    file = shared_folder() / VOCAB_BPE
    if name == "gpt2" and file.exists():
        tokens = read_vocab_bpe(file)
    else:
        tokens = [None] * (1 + max(theirs._mergeable_ranks.values()))
        for token, i in theirs._mergeable_ranks.items():
            tokens[i] = token
    return theirs, BPETokenizer(tokens, pattern, {EOT_TEXT: theirs.eot_token}, fast=False)


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


def test_gpt2_and_gpt4_equal_tiktoken_on_plays_source_and_difficult_texts(pair):
    theirs, own = pair
    ours = get("gpt2" if own.pattern == GPT2 else "gpt4")
    plays = shared("data/tinyshakespeare.txt").read_text("utf-8")
    texts = [plays, *library_source(60), *difficult_texts()]
    assert ours.encode_batch(texts) == theirs.encode_ordinary_batch(texts)


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


# ---- patterns ----


@pytest.mark.parametrize("kind", [r"\p{L}", r"\p{N}", r"\s", r"(?i:[sdmt]|ll|ve|re)"])
def test_every_character_is_what_it_is_for_tiktoken(kind):
    """Letter, digit, space: for all of Unicode, whatever version the regex module has."""
    import tiktoken

    everything = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    ranks = {bytes([i]): i for i in range(256)}
    engine = tiktoken.Encoding("one kind", pat_str=kind, mergeable_ranks=ranks, special_tokens={})
    found = engine.decode(engine.encode_ordinary(everything))  # other characters are dropped
    assert set(found) == set("".join(splitter(kind)(everything)))


def test_chunks():
    assert splitter(GPT2)("I've 1234 cats") == ["I", "'ve", " 1234", " cats"]
    assert splitter(GPT4)("I'VE 1234 cats") == ["I", "'VE", " ", "123", "4", " cats"]
    assert splitter(GPT2)("I'VE") == ["I", "'", "VE"]
    assert splitter(GPT2)("if x:\n    y") == ["if", " x", ":", "\n   ", " y"]
    assert splitter(GPT4)("if x:\n    y") == ["if", " x", ":\n", "   ", " y"]
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


def test_special_tokens_need_ids_of_their_own():
    tokens = tokens_of([])
    for wrong in ({"a": 5}, {"a": 256, "b": 256}, {"": 256}, {"a": -1}):
        with pytest.raises(UserError, match="special token"):
            BPETokenizer(tokens, GPT4, wrong)


# ---- files ----


def test_rank_files_come_back(tmp_path):
    tokenizer = BPETokenizer.train(library_source(3), 600)
    tokens = [*tokenizer.tokens, None, b"behind a hole"]
    write_ranks(tmp_path / "own.tiktoken", tokens)
    assert read_ranks(tmp_path / "own.tiktoken") == tokens
    again = BPETokenizer(tokens, GPT4, {EOT_TEXT: 599})
    assert again.vocab_size == len(tokens)
    state = json.loads(json.dumps(again.to_dict()))
    assert from_dict(state).tokens == tokens


def test_rank_files_are_read_by_tiktoken_and_its_files_here(tmp_path, pair):
    theirs, own = pair
    from tiktoken.load import load_tiktoken_bpe

    write_ranks(tmp_path / "own.tiktoken", own.tokens)
    assert load_tiktoken_bpe(str(tmp_path / "own.tiktoken")) == theirs._mergeable_ranks
    assert read_ranks(tmp_path / "own.tiktoken") == own.tokens


def test_the_alphabet_of_vocab_bpe():
    alphabet = gpt2_alphabet()
    assert len(alphabet) == len(set(alphabet.values())) == 256
    assert alphabet["Ġ"] == 0x20 and alphabet["Ċ"] == 0x0A and alphabet["!"] == 0x21
    assert list(alphabet.values())[:2] == [0x21, 0x22]


@pytest.mark.parametrize(
    "content", ["IQ==", "IQ== 0 1", "IQ== x", "?? 0", "IQ== 0\nIg== 0", "IQ== 99999999999"]
)
def test_damaged_rank_files_name_the_line(tmp_path, content):
    file = tmp_path / "bad.tiktoken"
    file.write_text(content)
    with pytest.raises(UserError, match=r"bad\.tiktoken line \d"):
        read_ranks(file)


def test_files_that_are_no_vocabulary(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nĠ t\nh\n")
    (tmp_path / "few.tiktoken").write_text("IQ== 0\n")
    for read in (read_ranks, read_vocab_bpe):
        for name in ("binary", "none"):
            with pytest.raises(UserError):
                read(tmp_path / name)
    with pytest.raises(UserError, match="line 3"):
        read_vocab_bpe(tmp_path / "vocab.bpe")
    with pytest.raises(UserError, match="255 are missing"):
        BPETokenizer(read_ranks(tmp_path / "few.tiktoken"))
    with pytest.raises(UserError, match="differ"):
        BPETokenizer([*tokens_of([]), b"ab", b"ab"])


def test_heavy_libraries_are_imported_where_they_are_used():
    """Opening a data set with a byte tokenizer costs no import of these."""
    heavy = ["torch", "tiktoken", "rustbpe", "regex", "sentencepiece", "numpy"]
    code = (
        "import sys; from bonsai.tokenizers import get; get('byte').encode('a'); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
