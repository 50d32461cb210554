"""What the writer leaves in a folder: whole data sets, and nothing when it is broken off."""

import errno
import hashlib
import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.lost_signals import handled_as_in, in_a_bare_except
from helpers.prepared import leftovers, read
from helpers.programs import ROOT, run_command

from bonsai.data.advice import describe_prepared
from bonsai.data.dataset import open_dataset
from bonsai.data.meta import open_meta
from bonsai.data.writer import Writer
from bonsai.system import errors
from bonsai.system.errors import UserError, end_by_interrupt
from bonsai.tokenizers import TOKENIZERS, CharTokenizer


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65535, "uint16"), (65536, "uint32")])
def test_writer_counts_and_types(out, vocab_size, dtype):
    with Writer(out, vocab_size=vocab_size, name="numbers") as writer:
        writer.add("train", [1, 2, vocab_size - 1], text_bytes=10)
        writer.add("train", np.array([256], dtype=np.int64), text_bytes=1, documents=0)
        assert not (out / "meta.json").exists() and not (out / "train.bin").exists()
        writer.add("val", [7])
        writer.add("val", [])
        returned = writer.finish()
    meta, ids = read(out)
    assert meta == returned
    assert ids["train"].tolist() == [1, 2, vocab_size - 1, 256]
    little_endian = b"\x00\x01" if dtype == "uint16" else b"\x00\x01\x00\x00"
    assert (out / "train.bin").read_bytes().endswith(little_endian)
    train, val = meta["splits"]["train"], meta["splits"]["val"]
    assert (train["bytes"], train["documents"], val["documents"]) == (11, 1, 2)
    assert {k: meta[k] for k in ("format", "name", "dtype", "vocab_size", "eot", "tokenizer")} == {
        "format": 1,
        "name": "numbers",
        "dtype": dtype,
        "vocab_size": vocab_size,
        "eot": None,
        "tokenizer": None,
    }


def test_a_name_that_is_not_utf8(out):
    with Writer(out, vocab_size=12, name="caf\udce9") as writer:
        for split in ("train", "val"):
            writer.add(split, [1, 2])
        returned = writer.finish()
    assert read(out)[0] == returned and returned["name"] == "caf?"


def test_writer_rows_and_masks(out):
    with Writer(out, vocab_size=12, row_length=4, masks=True) as writer:
        for split in ("train", "val"):
            writer.add(split, [1, 2, 3, 4, 5, 6, 7, 8], mask=[0, 0, 1, 1] * 2)
        writer.finish()
    meta, _ = read(out)
    assert meta["row_length"] == 4
    assert meta["splits"]["val"]["mask_files"] == ["val.mask.bin"]
    assert (out / "val.mask.bin").read_bytes() == bytes([0, 0, 1, 1] * 2)


def test_writer_shards(out):
    """The files together are the one file; the reader sees one split; an old data set goes."""
    from bonsai.data.split import Split

    write(out, 1)
    ids, mask = np.arange(1000) % 12, np.arange(1000) % 2
    with Writer(out, vocab_size=12, row_length=4, masks=True, shard_tokens=300) as writer:
        writer.add("train", ids[:4], mask=mask[:4])
        writer.add("train", ids[4:], mask=mask[4:])
        writer.add("val", ids[:300], mask=mask[:300])
        meta = writer.finish()
    train = meta["splits"]["train"]
    assert train["files"] == [f"train_0000{i}.bin" for i in range(4)]
    assert meta["splits"]["val"]["files"] == ["val_00000.bin"]  # full to the brim: no empty one
    assert [(out / file).stat().st_size for file in train["files"]] == [600, 600, 600, 200]
    for file, digest in zip(train["files"], train["sha256"]):
        assert hashlib.sha256((out / file).read_bytes()).hexdigest() == digest
    masks = [out / file for file in train["mask_files"]]
    split = Split([out / file for file in train["files"]], mask_files=masks)
    assert split.read(0, 1000).tolist() == ids.tolist()
    assert split.read(0, 1000, masks=True).tolist() == mask.tolist()
    assert not (out / "train.bin").exists() and not (out / "meta.pkl").exists()
    write(out, 2)
    assert leftovers(out) == ["meta.json", "meta.pkl", "train.bin", "val.bin"]
    for wrong in (-1, 302):
        with pytest.raises(UserError, match="shard_tokens"):
            Writer(out, vocab_size=12, row_length=4, shard_tokens=wrong)


@pytest.mark.parametrize(
    ("ids", "mask", "words"),
    [
        ([1, 2, 3, 12], [1] * 4, "12 is outside the vocabulary of 12"),
        ([1, 2, 3, -1], [1] * 4, "-1 is outside"),
        ([1, 2, 3], [1] * 3, "3 tokens are not whole rows of 4"),
        ([1, 2, 3, 4], None, "masks come with every add"),
        ([1, 2, 3, 4], [1, 0, 2, 1], "0 or 1"),
        ([1, 2, 3, 4], [1, 0], "0 or 1"),
    ],
)
def test_writer_refuses(out, ids, mask, words):
    with (
        pytest.raises(UserError, match=words),
        Writer(out, vocab_size=12, row_length=4, masks=True) as writer,
    ):
        writer.add("train", ids, mask=mask)
    assert not out.exists()


@pytest.mark.parametrize("below", ["", "a/b"])
def test_a_file_in_the_place_of_the_folder(out, below):
    out.write_text("a file")
    with (
        pytest.raises(UserError, match=rf"cannot write into {out}.*: it, or a part of its path,"),
        Writer(out / below, vocab_size=9),
    ):
        pass
    assert out.read_text() == "a file"


@pytest.mark.parametrize("place", ["mkdir", "write_text"])
def test_a_folder_of_another_user_is_not_the_only_place(out, monkeypatch, place):
    """As data/ is in a clone that several share."""

    def denied(*args, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, place, denied)
    with (
        pytest.raises(UserError, match=r"Permission denied: write elsewhere with --out=FOLDER"),
        Writer(out, vocab_size=9) as writer,
    ):
        writer.add("train", [1])


def test_writer_refuses_an_empty_split(out):
    with pytest.raises(UserError, match="val split"), Writer(out, vocab_size=9) as writer:
        writer.add("train", [1])
        writer.finish()
    assert not out.exists()


def write(folder: Path, value: int) -> None:
    with Writer(folder, CharTokenizer.from_text("abc")) as writer:
        writer.add("train", [value] * 10)
        writer.add("val", [value])
        writer.finish()


def opened(folder: Path) -> list[int]:
    """The beginning of the training data, as programs read them."""
    return open_dataset(str(folder)).split("train").read(0, 10).tolist()


def test_the_old_data_set_stays_until_the_new_one_is_whole(out):
    write(out, 1)
    (out / "notes.txt").write_text("mine")
    before = leftovers(out)
    with pytest.raises(ZeroDivisionError), Writer(out, vocab_size=9):
        _ = 1 / 0
    assert leftovers(out) == before
    with pytest.raises(ZeroDivisionError), Writer(out, vocab_size=9) as writer:
        writer.add("train", [2])
        assert opened(out) == [1] * 10  # meanwhile
        _ = 1 / 0
    with pytest.raises(UserError, match="val split"), Writer(out, vocab_size=9) as writer:
        writer.add("train", [2])
        writer.finish()
    assert leftovers(out) == before and read(out)[1]["train"].tolist() == [1] * 10
    write(out, 2)
    assert read(out)[1]["train"].tolist() == [2] * 10


def test_only_one_writer_at_a_time(out):
    pytest.importorskip("fcntl")
    with Writer(out, vocab_size=9), pytest.raises(UserError, match="another prepare"):
        Writer(out, vocab_size=9).__enter__()
    write(out, 1)


KILLED = """
import os, signal, sys
from pathlib import Path
from bonsai.system.errors import run
from bonsai.tokenizers import CharTokenizer
from bonsai.data.writer import Writer

folder, moment, number = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
real, calls = os.replace, []

def replace(*args):
    calls.append(args)
    if len(calls) == moment:
        os.kill(os.getpid(), number)
    real(*args)

def main():
    os.replace = replace
    with Writer(folder, CharTokenizer.from_text("abc")) as writer:
        writer.add("train", [2] * 1_000_000)
        writer.add("val", [2])
        if moment == 0:
            os.kill(os.getpid(), number)
        writer.finish()

run(main)
"""


@pytest.mark.parametrize("moment", range(5))  # while adding, then before each of the four renames
def test_kill_9_never_leaves_what_looks_complete(out, moment):
    write(out, 1)
    command = [sys.executable, "-c", KILLED, str(out), str(moment), str(int(signal.SIGKILL))]
    assert run_command(command, ROOT).rc == -signal.SIGKILL
    if moment == 0:
        assert opened(out) == [1] * 10  # the old one
    else:
        assert not (out / "meta.json").exists()
    assert (out / "meta.json.tmp").exists()  # the sign that this folder is unfinished
    write(out, 1)  # and the next run is not troubled by what lies there
    read(out)


@pytest.mark.parametrize(
    ("name", "word"),
    [("SIGTERM", "terminated"), ("SIGINT", "interrupted"), ("SIGHUP", "the terminal was closed")],
)
@pytest.mark.parametrize("moment", [0, 2, 4])
def test_signals_leave_nothing(out, name, word, moment):
    number = int(getattr(signal, name))
    command = [sys.executable, "-c", KILLED, str(out), str(moment), str(number)]
    result = run_command(command, ROOT)
    assert result.rc == 128 + number and result.stderr.strip() == f"error: {word}"
    assert not out.exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_that_got_lost_replaces_nothing(out, name):
    """A tokenizer has swallowed what it raised: the old data set stays."""
    write(out, 1)
    number = getattr(signal, name)
    with handled_as_in(end_by_interrupt):
        with (
            pytest.raises((SystemExit, KeyboardInterrupt)),
            Writer(out, vocab_size=9) as writer,
        ):
            for split in ("train", "val"):
                writer.add(split, [2])
            in_a_bare_except(number)
            writer.finish()
        assert errors.told == (number if name == "SIGINT" else 0)
    assert opened(out) == [1] * 10


def test_a_signal_that_has_another_handler_removes_what_is_unfinished(out):
    """Such as that of a benchmark, which would end the process at once."""
    called = []
    before = signal.signal(signal.SIGTERM, lambda *_: called.append(1))
    try:
        with pytest.raises(SystemExit), Writer(out, vocab_size=9):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not called and not out.exists()


def test_nothing_here_imports_torch():
    code = (
        "import bonsai.data.writer, bonsai.data.corpus, bonsai.data.fetch, bonsai.tokenizers, sys;"
    )
    result = run_command([sys.executable, "-c", code + "print('torch' in sys.modules)"], ROOT)
    assert result.stdout.strip() == "False", result


# ---- what is known of the text, and what the user has added ----


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "sentencepiece"])
def test_bytes_of_text_are_counted_unless_given(out, kind):
    texts = ["größer, 你好 😀\n" * 30, " a text\twith  blanks" * 9]
    tokenizer = TOKENIZERS[kind].from_texts([*texts, "the rest\n" * 40], 330)
    end = [] if tokenizer.eot is None else [tokenizer.eot]
    with Writer(out, tokenizer) as writer:
        for split in ("train", "val"):
            for text in texts:
                writer.add(split, [*tokenizer.encode(text), *end])
        meta = writer.finish()
    expected = sum(len(text.encode()) for text in texts)
    assert [split["bytes"] for split in meta["splits"].values()] == [expected, expected]
    with Writer(out, tokenizer) as writer:
        writer.add("train", tokenizer.encode(texts[0]), text_bytes=7)
        writer.add("val", [0], text_bytes=0)
        meta = writer.finish()
    assert [split["bytes"] for split in meta["splits"].values()] == [7, 0]


def test_what_the_user_has_added_stays(out):
    write(out, 1)
    template = {"roles": {"user": ["Q: ", "\n"], "assistant": ["Ä: ", "\n"]}}
    meta = json.loads((out / "meta.json").read_text(encoding="utf-8"))
    (out / "meta.json").write_text(json.dumps({**meta, "chat_template": template}), "utf-8-sig")
    write(out, 2)
    assert read(out)[0]["chat_template"] == template
    assert "kept what the old meta.json had besides: chat_template" in describe_prepared(
        read(out)[0], out, 1.0
    )
    for killed in (False, True):
        if killed:  # while the new files were put in place
            (out / "meta.json").rename(out / "meta.json.tmp")
        before = leftovers(out)
        with pytest.raises(ZeroDivisionError), Writer(out, vocab_size=9) as writer:
            writer.add("train", [1])
            _ = 1 / 0
        assert leftovers(out) == before
    with pytest.raises(UserError, match="interrupted"):
        open_meta(out)
    write(out, 0)
    assert read(out)[0]["chat_template"] == template
    (out / "meta.json").write_text("{damaged")
    write(out, 1)
    assert "chat_template" not in read(out)[0]
