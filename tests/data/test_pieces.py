"""What was left out of a corpus, and what may not have been meant, is said once."""

import functools
import gzip
import lzma

import pytest

from bonsai.data.corpus import whole_documents
from bonsai.data.finding import find_files
from bonsai.data.pieces import Options, Seen
from bonsai.data.readers import read_pieces
from bonsai.system.errors import UserError
from bonsai.system.values import unescape


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
