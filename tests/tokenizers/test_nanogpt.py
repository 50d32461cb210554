"""bonsai/tokenizers/nanogpt.py: whatever nanoGPT's sample.py can index is a tokenizer here."""

import collections
import pickle
import shlex
import subprocess
import sys

import numpy as np
import pytest
from helpers.errors import one_line

from bonsai import tokenizers
from bonsai.system.errors import UserError
from bonsai.tokenizers.nanogpt import read_meta_pickle, read_nanogpt_meta, shown

CHARS = list("\n !ab")
WITH_END = [*CHARS, "<END>"]
WORDS = ["the", " ", "sea", ".", "\n", "then"]


def meta_of(tokens: list, **changed) -> dict:
    """As nanoGPT's prepare.py makes it; a field that is changed to None is left out."""
    itos = dict(enumerate(tokens))
    meta = {"vocab_size": len(tokens), "itos": itos, "stoi": {t: i for i, t in itos.items()}}
    return {name: value for name, value in {**meta, **changed}.items() if value is not None}


def written(tmp_path, meta: object):
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps(meta))
    return path


# what nanoGPT's sample.py does with each of them is what we do
READ = {
    "characters": meta_of(CHARS),
    "characters and an end": meta_of(WITH_END),
    "words": meta_of(WORDS),
    "a list": meta_of(CHARS, itos=CHARS),
    "a list of words": meta_of(WORDS, itos=WORDS),
    "a tuple": meta_of(CHARS, itos=tuple(CHARS)),
    "one text": meta_of(CHARS, itos="".join(CHARS)),
    "an OrderedDict": meta_of(CHARS, itos=collections.OrderedDict(enumerate(CHARS))),
    "a vocabulary with room": meta_of(CHARS, vocab_size=64),
    "more fields": meta_of(CHARS, text=["a"], made=1.5, by=None, name="mine"),
    "NumPy's size": meta_of(CHARS, vocab_size=np.int64(5)),
    "NumPy's ids": meta_of(
        CHARS,
        itos={np.int64(i): c for i, c in enumerate(CHARS)},
        stoi={c: np.int32(i) for i, c in enumerate(CHARS)},
    ),
    "NumPy's texts": meta_of([np.str_(c) for c in CHARS]),
    "ids from 1": meta_of(CHARS, vocab_size=6, itos=dict(enumerate(CHARS, 1)),
                          stoi={c: i for i, c in enumerate(CHARS, 1)}),
    "a hole": meta_of(CHARS, vocab_size=9, itos={**dict(enumerate(CHARS)), 8: "c"},
                      stoi={**{c: i for i, c in enumerate(CHARS)}, "c": 8}),
    "capitals are small letters": meta_of(CHARS, stoi={**meta_of(CHARS)["stoi"], "A": 3}),
    "one text of two ids": meta_of([*CHARS, "a"]),
    "a padding of None": meta_of([*CHARS, None]),
    "an empty text": meta_of([*CHARS, ""]),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_ids_and_texts_are_those_of_nanogpts_sample(name, tmp_path):
    theirs = READ[name]
    read = read_nanogpt_meta(written(tmp_path, theirs))
    assert read["vocab_size"] == theirs["vocab_size"] and read["note"] == ""
    ours = tokenizers.from_dict(read["tokenizer"])
    assert ours.vocab_size <= theirs["vocab_size"]
    stoi, itos = theirs["stoi"], theirs["itos"]
    text = "".join(t for t in stoi if t and len(t) == 1) * 2
    ids = [stoi[c] for c in text]
    assert ours.encode(text) == ids
    assert ours.decode(ids) == "".join(itos[i] for i in ids)
    for token, i in stoi.items():
        if token:
            assert ours.encode(token) == [i] and ours.decode([i]) == itos[i]


def test_a_table_of_characters_is_a_char_tokenizer(tmp_path):
    """As it has always been, so that runs from before go on."""
    same = {"type": "char", "chars": CHARS}
    for name in ("characters", "a list", "one text", "a vocabulary with room", "NumPy's ids"):
        assert read_nanogpt_meta(written(tmp_path, READ[name]))["tokenizer"] == same
    for meta in (meta_of(CHARS, itos=None), meta_of(CHARS, stoi=None)):
        assert read_nanogpt_meta(written(tmp_path, meta))["tokenizer"] == same


@pytest.mark.parametrize("tokens", [WITH_END, WORDS])
def test_one_of_both_tables_is_enough(tokens, tmp_path):
    for meta in (meta_of(tokens), meta_of(tokens, itos=None), meta_of(tokens, stoi=None)):
        read = read_nanogpt_meta(written(tmp_path, meta))
        assert read["tokenizer"] == {"type": "table", "tokens": tokens}


def test_every_form_is_found_by_the_name_of_the_folder(tmp_path):
    for meta in READ.values():
        path = written(tmp_path, meta)
        state = read_nanogpt_meta(path)["tokenizer"]
        assert tokenizers.get(path).to_dict() == tokenizers.get(tmp_path).to_dict() == state


def test_what_tokenizers_write_is_read_again(tmp_path):
    for meta in READ.values():
        ours = tokenizers.from_dict(read_nanogpt_meta(written(tmp_path, meta))["tokenizer"])
        again = read_nanogpt_meta(written(tmp_path, ours.nanogpt_meta()))
        assert again["tokenizer"] == ours.to_dict()


@pytest.mark.parametrize(
    "meta, words",
    [
        ({"vocab_size": 5}, "it has vocab_size, but neither itos nor stoi"),
        ({"vocab_size": 5, "merges": {}}, "it has merges, vocab_size, but neither"),
        ({"vocab_size": 60_000, "itos": {}}, "no text for an id below 60,000"),
        ({"vocab_size": 5, "itos": 7, "stoi": 7}, "its itos is 7, no table"),
        ({"vocab_size": 5, "itos": {0: "a", 1: 5}}, "its itos has 5 for the id 1"),
        ({"vocab_size": 5, "itos": {0: b"a"}}, "its itos has b'a' for the id 0"),
        ({"vocab_size": 5, "itos": {0: ["a"]}}, "its itos has a list for the id 0"),
        ({"vocab_size": 5, "itos": {"0": "a"}}, "its itos has '0' where an id belongs"),
        ({"vocab_size": 5, "itos": {1.0: "a"}}, r"its itos has 1\.0 where an id belongs"),
        ({"vocab_size": 5, "itos": {True: "a"}}, "its itos has True where an id belongs"),
        ({"vocab_size": 5, "itos": {9: "a", -1: "b"}}, "no text for an id below 5"),
        ({"vocab_size": 5, "itos": {10**300: "a"}}, "no text for an id below 5"),
        ({"vocab_size": 5, "itos": [None, None]}, "no text for an id below 5"),
        ({"vocab_size": 5, "itos": {0: ""}}, "neither itos nor stoi with texts"),
        ({"vocab_size": 5, "stoi": {"a": "0", 3: 4, "b": 7, "c": -1}}, "neither itos nor stoi"),
        ({"vocab_size": 5, "stoi": ["a"]}, "neither itos nor stoi"),
    ],
)
def test_what_is_no_table_is_named(meta, words, tmp_path):
    path = written(tmp_path, meta)
    read = read_nanogpt_meta(path)
    assert read["tokenizer"] is None and read["note"].startswith(f"{path} makes no text of ids: ")
    assert len(read["note"]) < 400
    with pytest.raises(UserError, match=words) as e:
        tokenizers.get(path)
    assert "itos there, id -> text" in one_line(e)


def test_a_table_that_is_half_wrong_is_replaced_by_the_other(tmp_path):
    for wrong in ({"itos": {0: 5}}, {"itos": 7}, {"stoi": {"a": "x"}}, {"stoi": 7}):
        read = read_nanogpt_meta(written(tmp_path, {**meta_of(CHARS), **wrong}))
        assert read["tokenizer"] == {"type": "char", "chars": CHARS}, wrong


def test_a_size_alone_may_be_gpt2s(tmp_path):
    read = read_nanogpt_meta(written(tmp_path, {"vocab_size": 50304}))
    assert read == {"vocab_size": 50304, "tokenizer": None, "note": ""}


@pytest.mark.parametrize("size", [None, 0, -1, 2**16 + 1, 10**300, 5.0, True, "5", [5], {5: 5}])
def test_the_size_is_needed(size, tmp_path):
    with pytest.raises(UserError, match=r"has no vocab_size from 1 to 65,536 but") as e:
        read_nanogpt_meta(written(tmp_path, {**meta_of(CHARS), "vocab_size": size}))
    assert len(one_line(e)) < 300


@pytest.mark.parametrize(
    "changed",
    [
        {"itos": np.array(CHARS)},
        {"merges": {("a", "b"): 5}},
        {"seen": set(CHARS)},
        {"counts": collections.Counter(CHARS)},
        {"vocab_size": np.array(5), "stoi": {np.str_(c): np.int16(i) for i, c in enumerate(CHARS)}},
    ],
)
def test_what_is_refused_comes_with_a_command_that_makes_it_plain(changed, tmp_path):
    path = written(tmp_path, {**meta_of(CHARS), **changed})
    with pytest.raises(UserError, match=r"refused to load .*; if you trust it") as e:
        read_nanogpt_meta(path)
    _, code = shlex.split(one_line(e).split(": python ")[1])
    subprocess.run([sys.executable, "-c", code], check=True)
    assert read_nanogpt_meta(path)["tokenizer"] == {"type": "char", "chars": CHARS}
    assert pickle.loads(path.read_bytes()) == meta_of(CHARS)


def test_what_is_no_dict_or_damaged(tmp_path):
    with pytest.raises(UserError, match=r"meta\.pkl holds a list, not a dict"):
        read_meta_pickle(written(tmp_path, [1]))
    path = tmp_path / "meta.pkl"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"meta\.pkl is damaged .*: prepare the data again"):
        read_meta_pickle(path)
    path.write_bytes(b"N" * (5 << 20))
    with pytest.raises(UserError, match="more than 4 MB"):
        read_meta_pickle(path)


def test_values_are_shown_in_a_few_words():
    """A list that holds another twice, at each of many levels, would have no end."""
    deep: list = []
    for _ in range(100):
        deep = [deep, deep]
    assert shown(deep) == "a list" and shown("x" * 99) == "'" + "x" * 39
