"""Texts from files of every format, and which split a document goes to."""

import errno
import functools
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
from bonsai.data.readers import Options, Seen, read_pieces, safe_cut
from bonsai.system.errors import UserError
from bonsai.system.values import unescape
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


def test_a_byte_order_mark_before_json(tmp_path):
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
    assert [piece.data for piece in read_pieces([path])] == [b"a"]


def test_nulls_and_empty_texts_are_left_out(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": ""}\n\n{"text": null}\n{"text": "a\\ud83d"}\n')
    texts = [piece.data.decode() for piece in read_pieces([path], keep_empty=True)]
    assert texts == ["", "", "a\ufffd"]
    assert [piece.data.decode() for piece in read_pieces([path])] == ["a\ufffd"]


# ---- what is left out, and said ----


def read(folder, spec="in", **options) -> tuple[list[str], list[str]]:
    """The documents of files below a folder, and what is said of them."""
    chosen, seen = Options(**options), Seen()
    pieces = functools.partial(read_pieces, find_files(spec, (folder,)), chosen, seen=seen)
    list(pieces(heads=True))  # as a prepare does: what was seen then counts once
    texts = [data.decode() for data in whole_documents(pieces())]
    return texts, seen.lines(chosen)


def test_empty_files_are_left_out_and_said(tmp_path):
    for name, text in (("a.txt", ""), ("b.txt", "b"), ("c.jsonl", ""), ("d.txt", "d")):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text(text)
    assert read(tmp_path) == (["b", "d"], ["left out 2 empty files"])
    for name in ("b.txt", "d.txt"):
        (tmp_path / "in" / name).write_text("")
    with pytest.raises(UserError, match="4 files are empty"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"a\.txt is empty"):
        read(tmp_path, "in/a.txt")


BAD = {  # a file each; in those of rows the second of three is bad
    "latin.txt": b"good line\n" * 40_000 + "caf\xe9".encode("latin-1"),
    "utf16.txt": "text".encode("utf-16"),
    "latin.txt.gz": gzip.compress("caf\xe9".encode("latin-1")),
    "cut.txt.gz": gzip.compress(b"good line\n" * 9)[:-12],
    "no.txt.xz": b"no xz",
    "cut.txt.xz": lzma.compress(b"good line\n" * 9)[:-12],
    "no.txt.zst": b"no zstd",
    "no.parquet": b"PAR1",
    "latin.jsonl": b'{"text": "one"}\n{"text": "\xe9"}\n{"text": "two"}\n',
    "broken.jsonl": b'{"text": "one"}\n{"text": \n{"text": "two"}\n',
    "other.jsonl": b'{"text": "one"}\n{"body": ""}\n{"text": "two"}\n',
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_stops_or_is_left_out(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(BAD[name])
    (tmp_path / "in" / "z.txt").write_text("good")
    with pytest.raises(UserError, match=name.split(".")[0]):
        read(tmp_path)
    texts, (said,) = read(tmp_path, on_error="skip")
    rows = ["one", "two"] if "jsonl" in name else []
    assert texts == [*rows, "good"]
    assert said.startswith("left out 1 row" if rows else "left out 1 file") and name in said
    (tmp_path / "in" / "z.txt").unlink()
    if not rows:
        with pytest.raises(UserError, match="nothing in the input can be read"):
            read(tmp_path, on_error="skip")
    with pytest.raises(UserError, match="on_error is 'go'"):
        read(tmp_path, on_error="go")


@pytest.mark.parametrize(
    ("text", "split_on", "count", "said"),
    [
        ("a\n\nb\n\nc", r"\n\n", 3, None),
        ("a\r\n\r\nb\r\n\r\nc", r"\n\n", 3, None),
        ("a\r\n\r\nb\r\n\r\nc", r"\r\n\r\n", 3, None),
        ("a\tb", r"\t", 2, None),
        (r"a\nb", r"\\n", 2, None),
        ("a\n\nb", "\n\n", 2, None),
        ("a\nb", r"\n\n", 1, "occurs nowhere: each text file is one document"),
        ("a<|endoftext|>b", "", 1, "--split_on='<|endoftext|>'"),
        ("a<|endoftext|>b", "<|endoftext|>", 2, None),
        ("a", "", 1, None),
    ],
)
def test_what_stands_between_documents(tmp_path, text, split_on, count, said):
    (tmp_path / "a.txt").write_bytes(text.encode())
    texts, lines = read(tmp_path, "a.txt", split_on=unescape(split_on))
    assert len(texts) == count and len(lines) == (said is not None)
    assert said is None or said in lines[0]


def test_a_border_without_text_files_is_said(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a<|endoftext|>b"}\n')
    assert read(tmp_path, "a.jsonl") == (["a<|endoftext|>b"], [])
    _, (said,) = read(tmp_path, "a.jsonl", split_on="x")
    assert "no text file" in said


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
    assert read(tmp_path, name)[0] == ["é\n"]


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
