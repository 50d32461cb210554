"""bonsai/tokenizers/ranks.py: files are read as tiktoken reads them, damage by its line."""

import json

import pytest
from helpers.hostile_texts import library_source

from bonsai.system.errors import UserError
from bonsai.tokenizers import EOT_TEXT, BPETokenizer, from_dict
from bonsai.tokenizers.bpe import tokens_of
from bonsai.tokenizers.patterns import GPT4
from bonsai.tokenizers.ranks import gpt2_alphabet, read_ranks, read_vocab_bpe, write_ranks


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
