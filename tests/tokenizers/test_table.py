"""bonsai/tokenizers/table.py: the longest token that fits, else nanoGPT's ids."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bonsai.system.errors import UserError
from bonsai.tokenizers import TableTokenizer, UnknownText, from_dict
from bonsai.tokenizers.table import LONGEST

TEXT = "First Citizen: Before we proceed any further, hear me speak.\n\nAll: Speak, speak.\n"


def test_characters_and_one_that_ends_a_text():
    tokens = [*sorted({*TEXT}), "<END>"]
    tokenizer = TableTokenizer(tokens)
    assert tokenizer.encode("we <END>") == [*map(tokens.index, "we "), len(tokens) - 1]
    assert tokenizer.decode([len(tokens) - 1, 0]) == "<END>\n"
    # nanoGPT's sample.py: [stoi[c] for c in s]
    assert tokenizer.encode(TEXT) == [tokens.index(c) for c in TEXT]
    with pytest.raises(UnknownText, match=r"beginning of '<EN', at position 3"):
        tokenizer.encode("we <EN")


def test_words_punctuation_and_blanks():
    words = re.findall(r"\w+|\W", TEXT)
    tokenizer = TableTokenizer(sorted({*words}))
    assert [tokenizer.tokens[i] for i in tokenizer.encode(TEXT)] == words
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_the_longest_token_is_taken():
    tokenizer = TableTokenizer(["a", "aa", "aaa", "ab", "b"])
    assert tokenizer.encode("aaaaa") == [2, 1]
    assert tokenizer.encode("aab") == [1, 4]


def test_ids_without_a_text_and_texts_without_an_id_of_their_own():
    tokenizer = TableTokenizer([None, "a", "", "b"], {"a": 1, "A": 1, "b": 3})
    assert tokenizer.vocab_size == 4 and tokenizer.encode("aAb") == [1, 1, 3]
    assert tokenizer.decode([0, 1, 2, 3, 4]) == "\ufffdab\ufffd"
    again = from_dict(tokenizer.to_dict())
    assert again.to_dict() == tokenizer.to_dict() and again.encode("aAb") == [1, 1, 3]


def test_of_two_ids_with_one_text_the_first_is_taken_unless_the_table_says_otherwise():
    assert TableTokenizer(["a", "b", "a"]).encode("ab") == [0, 1]
    assert TableTokenizer(["a", "b", "a"], {"a": 2, "b": 1}).encode("ab") == [2, 1]


def test_tokens_of_any_length_are_decoded_and_those_of_a_bounded_one_looked_for():
    long, longer = "x" * LONGEST, "x" * (LONGEST + 1)
    tokenizer = TableTokenizer(["x", long, longer])
    assert tokenizer.decode([2]) == longer
    assert tokenizer.encode(longer) == [1, 0]


@given(st.lists(st.text("ab<E>", min_size=1, max_size=4), min_size=1), st.text("ab<E>"))
def test_what_is_encoded_is_decoded(tokens, text):
    tokenizer = TableTokenizer([*"ab<E>", *tokens])
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "state, words",
    [
        ({}, "list of texts"),
        ({"tokens": "ab"}, "list of texts"),
        ({"tokens": []}, "at least one"),
        ({"tokens": [None, ""]}, "at least one"),
        ({"tokens": ["a", 3]}, "list of texts"),
        ({"tokens": ["a"], "ids": ["a"]}, "list of texts"),
        ({"tokens": ["a"], "ids": {"a": 1}}, "ids from 0 to 0"),
        ({"tokens": ["a"], "ids": {"a": -1}}, "ids from 0 to 0"),
        ({"tokens": ["a"], "ids": {"a": True}}, "ids from 0 to 0"),
        ({"tokens": ["a"], "ids": {"a": 1e99}}, "ids from 0 to 0"),
    ],
)
def test_what_is_no_table(state, words):
    with pytest.raises(UserError, match=words):
        from_dict({"type": "table", **state})
