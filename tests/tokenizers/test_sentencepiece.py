"""bonsai/tokenizers/sentencepiece.py: what is particular to it; the shared tests have the rest."""

import functools
import io

import pytest

from bonsai.system.errors import UserError
from bonsai.tokenizers import EOT_TEXT, SentencePieceTokenizer, get

sentencepiece = pytest.importorskip("sentencepiece")
TEXT = "The old gardener waters the small trees every morning before the sun is high.\n" * 9


@functools.cache
def of_others() -> SentencePieceTokenizer:
    """As other people train one: a space before every text, no bytes, no end symbol."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n")), model_writer=model, vocab_size=40,
        hard_vocab_limit=False, eos_id=-1, minloglevel=2,
    )  # fmt: skip
    return SentencePieceTokenizer(model.getvalue())


def test_a_model_of_others_tidies_up(tmp_path):
    tokenizer = of_others()
    assert tokenizer.eot is None and tokenizer.encode("") == []
    ids = tokenizer.encode("the  sun")
    assert tokenizer.decode(ids) == "the sun"  # its normalisation leaves one space
    assert tokenizer.encode_batch(["the  sun"]) == [ids]
    assert "\ufffd" in tokenizer.decode(tokenizer.encode("中"))  # it has no bytes for it
    (tmp_path / "a.model").write_bytes(tokenizer.model)
    assert get(tmp_path / "a.model").to_dict() == tokenizer.to_dict()


def test_the_mark_for_a_space_is_a_character_too():
    """U+2581 in a text, which the library writes as a space, comes back."""
    tokenizer = SentencePieceTokenizer.train([TEXT], 300)
    text = "a\u2581b \u2581\u2581 c"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and tokenizer.encode_batch([text, "a"])[0] == ids


def test_the_end_of_a_text_is_its_own_symbol():
    tokenizer = SentencePieceTokenizer.train([TEXT], 300)
    ids = tokenizer.encode(f"the{EOT_TEXT}{EOT_TEXT}sun", allow_special=True)
    assert ids.count(tokenizer.eot) == 2 and tokenizer.decode_bytes([tokenizer.eot]) == (
        EOT_TEXT.encode()
    )


@pytest.mark.parametrize(
    "texts, size, kind, words",
    [
        ([TEXT], 300, "words", "no sentencepiece model 'words': known are unigram, bpe"),
        ([TEXT], 257, "unigram", "258 or more"),
        ([TEXT], 5000, "bpe", "choose vocab_size="),
        (["\n\0\n"], 300, "unigram", "no text to train"),
    ],
)
def test_what_cannot_be_trained_is_one_line(texts, size, kind, words):
    with pytest.raises(UserError, match=words) as e:
        SentencePieceTokenizer.train(texts, size, kind)
    assert "\n" not in str(e.value)


def test_a_damaged_file_is_named(tmp_path):
    for content in (b"", b"nothing of the kind", of_others().model[:50]):
        (tmp_path / "a.model").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.model: "):
            SentencePieceTokenizer.from_file(tmp_path / "a.model")
