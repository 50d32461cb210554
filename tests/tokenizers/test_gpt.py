"""bonsai/tokenizers/gpt.py: the ids are tiktoken's, whatever the text."""

import pytest
from helpers.hostile_texts import HOSTILE, difficult_texts, library_source
from helpers.shared_data import need_vocabulary, shared

from bonsai.tokenizers import EOT_TEXT, get
from bonsai.tokenizers.patterns import GPT2


@pytest.mark.parametrize(("name", "encoding"), [("gpt2", "gpt2"), ("gpt4", "cl100k_base")])
def test_ids_are_those_of_tiktoken(name, encoding):
    need_vocabulary(name)
    import tiktoken

    theirs, ours = tiktoken.get_encoding(encoding), get(name)
    assert (ours.vocab_size, ours.eot) == (theirs.n_vocab, theirs.eot_token)
    texts = [*HOSTILE, "a" * 100_000, "".join(map(chr, range(32, 0xD800, 7)))]
    assert ours.encode_batch(texts) == [theirs.encode_ordinary(text) for text in texts]


def test_known_ids():
    need_vocabulary("gpt2")
    need_vocabulary("gpt4")
    assert get("gpt2").encode("hello world") == [31373, 995]
    assert get("gpt2").encode(EOT_TEXT, allow_special=True) == [50256]
    assert get("gpt4").encode("hello world") == [15339, 1917]


def test_gpt2_and_gpt4_equal_tiktoken_on_plays_source_and_difficult_texts(pair):
    theirs, own = pair
    ours = get("gpt2" if own.pattern == GPT2 else "gpt4")
    plays = shared("data/tinyshakespeare.txt").read_text("utf-8")
    texts = [plays, *library_source(60), *difficult_texts()]
    assert ours.encode_batch(texts) == theirs.encode_ordinary_batch(texts)
