"""Texts from files of every format, and which split a document goes to."""

import errno
import gzip
import lzma
import os
from pathlib import Path

import pytest
from helpers.inputs import TEXTS, write_inputs
from helpers.shared_data import need_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st

from bonsai.data import readers
from bonsai.data.corpus import whole_documents
from bonsai.data.finding import find_files
from bonsai.data.pieces import Options
from bonsai.data.readers import read_pieces, safe_cut
from bonsai.system.errors import UserError
from bonsai.tokenizers import get


def test_every_format_gives_the_same_documents(tmp_path):
    for path in write_inputs(tmp_path / "in", TEXTS).values():
        told: list[int] = []
        files = find_files(str(path))
        documents = whole_documents(read_pieces(files, progress=told.append))
        assert [data.decode() for data in documents] == TEXTS
        assert sum(told) == sum(file.stat().st_size for file in files)


def test_find_files(tmp_path, monkeypatch):
    for name in ("b/2.txt", "b/1.jsonl", "b/deep/3.parquet", "b/.git/4.txt", "b/5.md", "a, b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)

    def names(spec):
        return [path.as_posix() for path in find_files(spec)]

    assert names("b") == ["b/1.jsonl", "b/2.txt", "b/deep/3.parquet"]
    assert names("b/*.txt, b") == ["b/2.txt", "b/1.jsonl", "b/deep/3.parquet"]
    assert names("b/**/*.parquet") == ["b/deep/3.parquet"]
    assert names("a, b.txt") == ["a, b.txt"]
    assert find_files("2.txt", (Path(), tmp_path / "b")) == [tmp_path / "b" / "2.txt"]
    for spec in ("", "c", "c/*", "b/5.md", "b/*.md", "b/.git/x"):
        with pytest.raises(UserError):
            find_files(spec)


def test_text_files_are_cut_into_pieces_without_a_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE", 100)
    path = tmp_path / "long.txt"
    text = "".join(f"line {i} of é😀\n" + "\n" * (i % 3) for i in range(150_000))
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    pieces = list(read_pieces([path]))
    assert len(pieces) > 2 and b"".join(piece.data for piece in pieces).decode() == text
    assert [(p.first, p.last) for p in pieces[:1] + pieces[-1:]] == [(True, False), (False, True)]


def test_packed_text_files(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    monkeypatch.setattr(readers, "PIECE", 1000)
    data = "".join(f"line {i} é\n" for i in range(9000)).encode()
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(data))
    half = data.index(b"\n", len(data) // 2) + 1  # two streams, as of `cat a.xz b.xz`
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(data[:half]) + lzma.compress(data[half:]))
    (tmp_path / "a.txt.zst").write_bytes(pa.Codec("zstd").compress(data, asbytes=True))
    for path in find_files(str(tmp_path)):
        pieces = list(read_pieces([path]))
        assert b"".join(piece.data for piece in pieces) == data and len(pieces) > 1
        assert pieces[-1].position == path.stat().st_size


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_documents_of_one_file_behind_separators(tmp_path, monkeypatch, piece):
    """Whatever the lengths, borders are found across blocks and pieces."""
    monkeypatch.setattr(readers, "PIECE", piece)
    monkeypatch.setattr(readers, "BLOCK", 5)
    texts = [f"text {i}\nof é😀 " + "a b\nc" * (i % 5) for i in range(40)]
    (tmp_path / "all.txt").write_text("<|endoftext|>".join([*texts, ""]), encoding="utf-8")
    pieces = read_pieces([tmp_path / "all.txt"], Options(split_on="<|endoftext|>"))
    assert [data.decode() for data in whole_documents(pieces)] == texts


def test_only_the_beginnings(tmp_path):
    for name, text in (("a.txt", "a b\nc" * 10**6), ("b.txt", "d")):
        (tmp_path / name).write_text(text)
    told: list[int] = []
    pieces = list(read_pieces(find_files(str(tmp_path)), heads=True, progress=told.append))
    assert [(p.first, p.last) for p in pieces] == [(True, False), (True, True)]


def test_other_endings(tmp_path):
    for name in ("a.py", "b.md", "c.rst"):
        (tmp_path / name).write_text(name)
    files = find_files(str(tmp_path), endings=(".py", ".md"))
    assert [piece.data for piece in read_pieces(files)] == [b"a.py", b"b.md"]


def test_invalid_utf8_is_found_at_its_byte(tmp_path):
    path = tmp_path / "bad.txt"
    cut = readers.BLOCK  # where reading pauses: a character across it is whole all the same
    path.write_bytes(b"a" * (cut - 1) + "é".encode() + b"b" * 10 + b"\xff" + b"c" * 10)
    with pytest.raises(UserError, match=f"not UTF-8 at byte {cut + 11}"):
        list(read_pieces([path]))
    for content, offset in ((b"abc" + "😀".encode()[:2], 3), (b"\xef\xbb\xbfabc\xff", 6)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"not UTF-8 at byte {offset}:"):
            list(read_pieces([path]))


@pytest.mark.parametrize("kind", ["words", "no blanks", "blanks", "newlines", "digits"])
def test_text_without_line_ends_comes_in_pieces_too(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(readers, "PIECE", 10_000)
    monkeypatch.setattr(readers, "LONGEST", 400_000)
    line = {"words": "word of text ", "no blanks": "你é😀x", "blanks": " ", "newlines": "\n"}
    text = line.get(kind, "1 2 ") * 200_000
    (tmp_path / "a.txt").write_bytes(text.encode())
    pieces = list(read_pieces([tmp_path / "a.txt"]))
    assert b"".join(piece.data for piece in pieces).decode() == text
    assert all(piece.data.decode() for piece in pieces)  # whole characters
    assert (max(len(piece.data) for piece in pieces) < 1_400_000 and len(pieces) > 1) or (
        len(text.encode()) < 400_000
    )


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    data = "\ufeff" + ('{"text": "é\\n"}' if "jsonl" in name else "é\r\n")
    data = data.encode("utf-8")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert [piece.data.decode() for piece in read_pieces([tmp_path / name])] == ["é\n"]


def test_what_is_no_file_is_said(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "lost.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    for name, words in {
        "folder.txt": "a folder, not a file",
        "pipe.txt": "a pipe, not a file",
        "lost.txt": "No such file",
    }.items():
        with pytest.raises(UserError, match=f"cannot read .*{name}: .*{words}"):
            list(read_pieces([tmp_path / name]))


def test_too_many_open_files_are_not_the_files_fault(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")

    def refuse(*args, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UserError, match=r"a\.txt: Too many open files"):
        list(read_pieces([tmp_path / "a.txt"], Options(on_error="skip")))


@pytest.mark.parametrize("name", ["gpt2", "gpt4"])
def test_pieces_have_the_ids_of_the_whole(name):
    """Long files are cut where no token crosses: wherever `safe_cut` says so, for any text."""
    need_vocabulary(name)
    tokenizer = get(name)
    parts = st.sampled_from(
        ["\n", "\r\n", " ", "\t", "a", "B7", ".", "'ll", "'", "é", "\u2028", "的"]
    )

    @settings(max_examples=300, deadline=None)
    @given(st.lists(parts, max_size=40).map("".join))
    def check(text):
        cut = safe_cut(text)
        whole = tokenizer.encode(text)
        assert tokenizer.encode(text[:cut]) + tokenizer.encode(text[cut:]) == whole

    check()
