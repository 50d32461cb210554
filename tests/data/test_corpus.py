"""bonsai/data/corpus.py: which split a document goes to, and what is written of it."""

import functools
import gzip
import json
import time

import numpy as np
import pytest
from helpers.inputs import split_of
from helpers.toy_tokenizer import ToyTokenizer

from bonsai.data.corpus import (
    Encoded,
    char_tokenizer,
    split_documents,
    split_text,
    write_documents,
    write_encoded,
)
from bonsai.data.pieces import Piece
from bonsai.data.readers import PIECE, read_pieces
from bonsai.data.writer import Writer
from bonsai.system.errors import UserError
from bonsai.tokenizers import ByteTokenizer

SIZES = (100, 1000, 250_000, 300_000, 1_115_394, 1_400_000, 2_000_000, 3_333_333, 9_000_000)


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
    text = "".join(f"line {i} é\n" for i in range(1000))
    for pieces in ([text], [text[:7000], text[7000:]], [text[:100], text[100:9000], text[9000:]]):
        stream = [
            Piece(text.encode(), i == 0, i == len(pieces) - 1, 0) for i, text in enumerate(pieces)
        ]
        parts = list(split_documents(lambda s=stream, **_: s, 0.2))
        train = b"".join(data for split, data, _ in parts if split == "train").decode()
        val = b"".join(data for split, data, _ in parts if split == "val").decode()
        assert train + val == text and train.endswith("\n")
        assert 0.19 < len(val.encode()) / len(text.encode()) < 0.2
        assert [split for split, _, ends in parts if ends] == ["train", "val"]


@pytest.mark.parametrize("length", [10, 2 * PIECE + 77])
def test_a_text_is_cut_as_nanogpt_cuts_it(length):
    """By characters, not bytes; a long one comes in pieces that together are the text."""
    text = "né, und\n" * (length // 8) + "x" * (length % 8)
    parts = list(split_text(text))
    joined = {s: b"".join(d for of, d, _ in parts if of == s).decode() for s in ("train", "val")}
    assert joined == {"train": text[: int(length * 0.9)], "val": text[int(length * 0.9) :]}
    assert [of for of, _, last in parts if last] == ["train", "val"]
    assert (len(parts) > 2) == (length > PIECE)


def test_characters_of_documents_and_what_ends_them():
    one, two = Piece("né".encode(), True, True, 0), Piece(b"a", True, True, 0)
    tokenizer, end = char_tokenizer([one])
    assert (tokenizer.chars, end) == (["n", "é"], "")
    tokenizer, end = char_tokenizer([one, two])
    assert (tokenizer.chars, end) == (["\n", "a", "n", "é"], "\n")
    with pytest.raises(UserError, match="no text in the input"):
        char_tokenizer([])


def test_documents_are_written_in_their_order_and_ended(out):
    tokenizer = ByteTokenizer()
    parts = [("train", b"a", True), ("val", b"b", True), ("train", b"c", False)]
    parts += [("train", b"d\n", True)]
    with Writer(out, tokenizer) as writer:
        write_documents(writer, parts, tokenizer, terminator="\n", workers=2)
        meta = writer.finish()
    eot = tokenizer.eot
    assert np.fromfile(out / "train.bin", "<u2").tolist() == [*b"a\n", eot, *b"cd\n", eot]
    assert np.fromfile(out / "val.bin", "<u2").tolist() == [*b"b\n", eot]
    assert meta["splits"]["train"]["documents"] == 2


def test_tokens_that_lose_text_have_no_bits_per_byte(out, capsys):
    """A word that became <unk> is easily guessed."""

    class Unknown(ToyTokenizer):
        def encode(self, text, allow_special=False):
            return super().encode(text.replace("x", "?"))

    parts = [(split, b"a%cc" % letter, True) for split in ("train", "val") for letter in b"bx"]
    for these, count in ((parts[::2], 3), (parts, 0)):
        with Writer(out, Unknown()) as writer:
            write_documents(writer, these, Unknown())
            meta = writer.finish()
        assert meta["splits"]["train"]["bytes"] == meta["splits"]["val"]["bytes"] == count
        assert ("no bits per byte" in capsys.readouterr().out) == (count == 0)


def test_what_is_asked_for_is_in_range(out):
    with pytest.raises(UserError, match="workers is -1"):
        write_documents(None, [], ByteTokenizer(), workers=-1)
    for fraction in (0, 1, float("nan")):
        with pytest.raises(UserError, match="val_fraction is"):
            next(split_documents(lambda **_: [], fraction))
    same = [Piece(b"a", True, True, 0)] * 3
    with pytest.raises(UserError, match="all 3 documents are the same"):
        next(split_documents(lambda **_: same, 0.1))


def test_few_large_batches_wait_at_once(monkeypatch):
    """Text that can be cut nowhere comes in pieces of megabytes; a machine may have many cores."""
    monkeypatch.setattr("bonsai.data.corpus.BATCH", 10)
    written, ahead = [], []

    class Written:
        def add(self, split, ids, **counts):
            written.append(len(ids))

    def parts(sizes):
        for number, size in enumerate(sizes):
            ahead.append(number - len(written))  # batches that are encoded or wait
            yield "train", b"x" * size, True

    def encode(batch):
        time.sleep(0.02)
        data = b"".join(data for data, _ in batch)
        return Encoded(np.frombuffer(data, np.uint8), len(data))

    write_encoded(Written(), parts([400] * 6), encode, workers=4)
    assert written == [400] * 6 and max(ahead) == 1
