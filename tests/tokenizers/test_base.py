"""bonsai/tokenizers/base.py: what follows for a tokenizer that gives no more than it has to."""

import pytest
from helpers.toy_tokenizer import ToyTokenizer

from bonsai.tokenizers.base import Tokenizer, well_formed


@pytest.mark.parametrize(
    "text, same",
    [
        ("", ""),
        ("plain é \U0001f600", "plain é \U0001f600"),
        ("a\ud83db", "a\ufffdb"),
        ("\udc00\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),  # two halves that belong together are the character
    ],
)
def test_lone_surrogates_only_are_replaced(text, same):
    assert well_formed(text) == same
    well_formed(text).encode("utf-8")


def test_what_follows_from_encode_and_decode_bytes():
    toy = ToyTokenizer()
    assert toy.encode_batch(["ab", ""]) == [toy.encode("ab"), []]
    half = toy.encode("é")[:1]
    assert toy.decode_bytes(half) == b"\xc3" and toy.decode(half) == "\ufffd"
    assert isinstance(ToyTokenizer.from_dict({"type": "toy"}), ToyTokenizer)
    assert isinstance(ToyTokenizer.from_texts(["any"], 999), ToyTokenizer)
    assert toy.complete and Tokenizer.eot is None


def test_what_a_subclass_has_to_give():
    for method, value in (("encode", "a"), ("decode", [1]), ("decode_bytes", [1])):
        with pytest.raises(NotImplementedError):
            getattr(Tokenizer(), method)(value)
    with pytest.raises(NotImplementedError):
        Tokenizer().to_dict()
