"""Texts from files of every format, and which split a document goes to."""

import functools
import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from bonsai import readers
from bonsai.corpus import split_documents, whole_documents
from bonsai.errors import UserError
from bonsai.readers import Options, Piece, find_files, read_pieces

TEXTS = [f"document {i}: {'abc ' * (i % 7)}é😀\nend" for i in range(60)]


def write_inputs(folder: Path, texts: list[str], column: str = "text") -> dict[str, Path]:
    """The same documents in every format that has rows or folders."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps({"id": i, column: t}) + "\n" for i, t in enumerate(texts))
    (folder / "docs.jsonl").write_text(lines, encoding="utf-8")
    (folder / "docs.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "docs.jsonl.zst").write_bytes(pa.Codec("zstd").compress(lines.encode(), asbytes=True))
    table = pa.table({"id": list(range(len(texts))), column: texts})
    pq.write_table(table, folder / "docs.parquet", row_group_size=7)
    (folder / "txt").mkdir()
    for i, text in enumerate(texts):
        (folder / "txt" / f"{i:03d}.txt").write_bytes(text.encode())
    names = ("docs.jsonl", "docs.jsonl.gz", "docs.jsonl.zst", "docs.parquet", "txt")
    return {name: folder / name for name in names}


def test_every_format_gives_the_same_documents(tmp_path):
    for path in write_inputs(tmp_path / "in", TEXTS).values():
        told: list[int] = []
        files = find_files(str(path))
        found = whole_documents(read_pieces(files, progress=told.append))
        assert [data.decode() for data in found] == TEXTS
        assert sum(told) == sum(file.stat().st_size for file in files)


def test_find_files(tmp_path, monkeypatch):
    for name in ("b/2.txt", "b/1.jsonl", "b/deep/3.parquet", "b/.git/4.txt", "b/5.md", "a, b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)

    def found(spec):
        return [path.as_posix() for path in find_files(spec)]

    assert found("b") == ["b/1.jsonl", "b/2.txt", "b/deep/3.parquet"]
    assert found("b/*.txt, b") == ["b/2.txt", "b/1.jsonl", "b/deep/3.parquet"]
    assert found("b/**/*.parquet") == ["b/deep/3.parquet"]
    assert found("a, b.txt") == ["a, b.txt"]
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
    found = read_pieces([tmp_path / "all.txt"], Options(split_on="<|endoftext|>"))
    assert [data.decode() for data in whole_documents(found)] == texts


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
    found = [piece.data.decode() for piece in read_pieces([path], keep_empty=True)]
    assert found == ["", "", "a\ufffd"]
    assert [piece.data.decode() for piece in read_pieces([path])] == ["a\ufffd"]


def split_of(texts: list[str], fraction: float) -> dict[str, str]:
    pieces = [Piece(text.encode(), True, True, 0, 1) for text in texts]
    return {
        data.decode(): split for split, data, _ in split_documents(lambda **_: pieces, fraction)
    }


def test_the_split_depends_on_the_document_alone():
    many = [f"text {i}" for i in range(3000)]
    one = split_of(many, 0.1)
    assert 200 < list(one.values()).count("val") < 400
    assert split_of(many[::-1], 0.1) == one
    assert {t: one[t] for t in many[:2000]} == split_of(many[:2000], 0.1)


@pytest.mark.parametrize("count", [2, 3, 10, 100, 999])
def test_a_small_corpus_has_both_splits(count):
    splits = list(split_of([f"text {i}" for i in range(count)], 0.05).values())
    assert splits.count("val") == max(1, round(0.05 * count))


SIZES = (100, 1000, 250_000, 300_000, 1_115_394, 1_400_000, 2_000_000, 3_333_333, 9_000_000)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl", "a.parquet"])
def test_the_share_of_one_document_is_what_was_asked_for(tmp_path, name, size):
    """Whatever the size, the reader, and how well which part of the text packs."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    hard = np.random.default_rng(0).integers(97, 123, (size // 160 + 1, 39), np.uint8)  # letters
    hard = np.insert(hard, 39, 10, axis=1).tobytes()[: size // 4]
    data = (hard + b"To be, or not to be: that is the bug.\r\n" * (size // 39 + 1))[:size]
    path, text = tmp_path / name, data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if name == "a.jsonl":
        path.write_text(json.dumps({"text": text.decode()}))
    elif name == "a.parquet":
        pq.write_table(pa.table({"text": [text.decode()]}), path)
    elif name == "a.txt.zst":
        path.write_bytes(pa.Codec("zstd").compress(data, asbytes=True))
    else:
        path.write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
    for share in (0.05, 0.3):
        read = functools.partial(read_pieces, [path])
        parts = list(split_documents(read, share))
        assert b"".join(data for _, data, _ in parts) == text
        val = sum(len(data) for split, data, _ in parts if split == "val")
        assert 0.9 * share * len(text) - 2 <= val <= share * len(text) + 1
        assert [split for split, _, ends in parts if ends] == ["train", "val"]


def test_one_document_is_cut_near_the_end():
    text = whole = "".join(f"line {i} é\n" for i in range(1000))
    for pieces in ([text], [text[:7000], text[7000:]], [text[:100], text[100:9000], text[9000:]]):
        ends = itertools.accumulate(len(text.encode()) for text in pieces)
        stream = [
            Piece(text.encode(), i == 0, i == len(pieces) - 1, end, len(whole.encode()))
            for i, (text, end) in enumerate(zip(pieces, ends))
        ]
        parts = list(split_documents(lambda s=stream, **_: s, 0.2))
        train = b"".join(data for split, data, _ in parts if split == "train").decode()
        val = b"".join(data for split, data, _ in parts if split == "val").decode()
        assert train + val == text and train.endswith("\n")
        assert 0.19 < len(val.encode()) / len(text.encode()) < 0.2
        assert [split for split, _, ends in parts if ends] == ["train", "val"]
