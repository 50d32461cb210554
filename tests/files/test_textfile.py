"""bonsai/files/textfile.py: what editors and shells write is read as the text that was meant."""

import codecs
import json

import pytest

from bonsai import tokenizers
from bonsai.data.meta import open_meta
from bonsai.evaluation.choices import read_questions
from bonsai.files.textfile import (
    check_writable,
    decode_text,
    read_text,
    text_or_file,
    whole_text,
)
from bonsai.system.errors import UserError
from bonsai.tokenizers.ranks import read_vocab_bpe

TEXT = "Grüße\nzwei\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode("utf-8"),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
        TEXT.replace("\n", "\r").encode("utf-8"),
    ],
)
def test_marks_and_line_ends(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    assert read_text(tmp_path / "a.txt") == TEXT


def test_only_the_first_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 + "a\ufeffb".encode())
    assert read_text(tmp_path / "a.txt") == "a\ufeffb"


@pytest.mark.parametrize(
    "data, words",
    [
        ("eins\nGrüße".encode("latin-1"), "byte 7, in line 2, is not UTF-8: save the file as"),
        (codecs.BOM_UTF16_LE + b"a", "is not UTF-16"),
    ],
)
def test_other_encodings_are_one_line(tmp_path, data, words):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(UserError, match=words):
        read_text(tmp_path / "a.txt", "the prompts")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the key from .*nowhere: No such file"):
        read_text(tmp_path / "nowhere", "the key")
    with pytest.raises(UserError, match="a folder, not a file"):
        read_text(tmp_path)
    with pytest.raises(UserError, match="null"):
        read_text("a\0b")


def test_what_can_be_written_later(tmp_path):
    check_writable(tmp_path / "a" / "b" / "c.json", "the results")
    assert (tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a" / "b").iterdir())
    check_writable("-", "the results")
    (tmp_path / "file").write_text("")
    for name in ("a", "file/c.json"):
        with pytest.raises(UserError, match="cannot write the results to"):
            check_writable(tmp_path / name, "the results")


def test_what_is_read_is_not_written_over(tmp_path, monkeypatch):
    """By whatever name; what is no file, or is not there, is no source."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.jsonl").write_text("{}")
    (tmp_path / "link").symlink_to("q.jsonl")
    for name in ("q.jsonl", "./q.jsonl", tmp_path / "q.jsonl", "link"):
        with pytest.raises(UserError, match="it is an input; name another file"):
            check_writable(name, "the results", ["", "gpt2", "q.jsonl"])
    for sources in ([], ["", "gpt2", ".", "a\0b", "r.json"]):
        check_writable("q.jsonl", "the results", sources)
        check_writable("r.json", "the results", sources)


def test_what_people_edit_is_read_with_its_mark(tmp_path):
    """meta.json, a tokenizer, questions: Notepad saves them with a byte order mark."""
    meta = {"vocab_size": 257, "splits": {}, "dtype": "uint16", "tokenizer": {"type": "byte"}}
    for name in ("meta.json", "byte.json"):
        (tmp_path / name).write_text(json.dumps(meta), encoding="utf-8-sig")
    assert open_meta(tmp_path)[0] == meta
    assert tokenizers.get(tmp_path / "byte.json").vocab_size == 257
    question = '{"ctx": "1 + 1 is", "endings": ["2.", "3."], "label": 0}\n'
    (tmp_path / "q.jsonl").write_text(question, encoding="utf-8-sig")
    assert len(read_questions(tmp_path / "q.jsonl")) == 1
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nĠ t\n", encoding="utf-8-sig")
    assert read_vocab_bpe(tmp_path / "vocab.bpe")[256] == b" t"


def test_bytes_keep_their_line_ends():
    assert decode_text(codecs.BOM_UTF8 + b"a\r\n", "it") == "a\r\n"
    with pytest.raises(UserError, match="cannot read standard input: byte 1, in line 1"):
        decode_text(b"a\xff", "standard input")


def test_a_text_or_the_file_that_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("of the file")
    assert text_or_file("FILE is a word", "the start") == "FILE is a word"
    assert text_or_file(f"FILE:{tmp_path / 'a.txt'}", "the start") == "of the file"
    with pytest.raises(UserError, match="the start"):
        text_or_file(f"FILE:{tmp_path / 'b.txt'}", "the start")
    with pytest.raises(UserError, match="the start: FILE: must name a file"):
        text_or_file("FILE:", "the start")


def test_what_was_typed_in_other_bytes_than_utf8():
    """Python has halves of characters for them: b"caf\xe9" becomes "caf\udce9"."""
    assert whole_text("café 😀", "the start") == "café 😀"
    for read in (whole_text, text_or_file):
        with pytest.raises(UserError, match=r"the start is not UTF-8 from '\\udce9 au' on"):
            read("caf\udce9 au", "the start")
