"""bonsai/data/dataset.py: what is on the disk comes back, and what is wrong with it is said."""

import copy
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from helpers.errors import one_line
from helpers.tiny_data import CHARS, char_ids, make_dataset, tiny_text, write_meta

from bonsai.data.batches import Batches
from bonsai.data.dataset import Mixture, open_dataset
from bonsai.system.errors import UserError


def test_kinds_of_folders(here):
    for kind in ("meta", "nanogpt", "bare", "llmc", "shards", "rows"):
        make_dataset(here / "data" / kind, kind)
    text = char_ids(tiny_text(1500)).tolist()
    for kind in ("meta", "nanogpt", "bare", "llmc", "shards"):
        assert open_dataset(kind).splits["train"].read(0, 10**6).tolist() == text
    meta, nanogpt, bare = (open_dataset(k) for k in ("meta", "nanogpt", "bare"))
    assert meta.vocab_size == nanogpt.vocab_size == 30 and bare.vocab_size is None
    assert meta.tokenizer == nanogpt.tokenizer == {"type": "char", "chars": list(CHARS)}
    assert bare.tokenizer is None  # GPT-2's
    assert [str(d.source) for d in (meta, nanogpt)] == [
        "data/meta/meta.json",
        "data/nanogpt/meta.pkl",
    ]
    # bytes of text are known for characters of one byte each, and unknown for unnamed tokens
    assert meta.splits["val"].bytes_per_token == nanogpt.splits["val"].bytes_per_token == 1
    assert bare.splits["val"].bytes_per_token is None
    for kind in ("meta", "nanogpt", "rows"):
        assert Mixture.open(kind).without_bytes("val") == ""
    assert "not known: data/bare does not say" in Mixture.open("bare").without_bytes("val")
    rows = open_dataset("rows")
    _, y = rows.splits["train"].windows(np.array([0, 8]), 7)
    assert (y[:, :3] == -1).all() and (y[:, 3:] >= 0).all()

    with pytest.raises(UserError, match=r"did you mean nanogpt\?"):
        open_dataset("nanogpd")  # data sets without a prepare.py are named too
    with pytest.raises(UserError, match=r"nanogpt/train\.bin is a file: name the folder"):
        open_dataset("nanogpt/train.bin")


def test_a_path_is_a_data_set_too(here, tmp_path_factory):
    folder = make_dataset(tmp_path_factory.mktemp("elsewhere") / "mine")
    assert len(open_dataset(str(folder)).splits) == 2


def test_a_name_beside_which_there_is_such_a_folder(here, tmp_path, monkeypatch):
    """As --out=NAME of a prepare.py makes one."""
    make_dataset(tmp_path / "odd")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no data set odd in data/, but here: --dataset=\./odd"):
        open_dataset("odd")
    assert len(open_dataset("./odd").splits) == 2


def test_windows_shorter_than_rows_are_an_error(here):
    make_dataset(here / "data" / "rows", "rows")
    make_dataset(here / "data" / "meta")
    for spec in ("rows", "rows,meta"):
        data = Mixture.open(spec)
        data.check(7, 30)
        data.check(16, 30)
        with pytest.raises(UserError, match=r"rows of 8 tokens.* set block_size=7, or prepare"):
            data.check(6, 30)
    assert data.row_length is None and Mixture.open("rows").row_length == 8


def test_vocabulary_of_a_new_model(here):
    for name, size, expected in (("a", 30, 30), ("b", 50257, 50304), ("c", 1001, 1024)):
        folder = make_dataset(here / "data" / name)
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**meta, "vocab_size": size}))
        assert Mixture.open(name).model_vocab_size == expected
    make_dataset(here / "data" / "n", "nanogpt")
    assert Mixture.open("n").model_vocab_size == 30
    make_dataset(here / "data" / "bare", "bare")
    assert Mixture.open("bare").model_vocab_size == 50304


# ---- mixtures ----


def test_mixtures(here):
    make_dataset(here / "data" / "a")
    make_dataset(here / "data" / "b", seed=3)
    make_dataset(here / "data" / "bare", "bare")
    mixture = Mixture.open("a:3, b:1")
    assert [(p.name, p.weight) for p in mixture.parts] == [("a", 0.75), ("b", 0.25)]
    assert [p.weight for p in Mixture.open("a,b").parts] == [0.5, 0.5]
    assert mixture.bytes_per_token("val") == 1
    for spec, words in {
        "a:0.7,bare:0.3": "different tokenizers",
        "a:x": "'x'",
        "a:0,b:1": "above 0",
        "a:-1": "above 0",
        "a:nan": "above 0",
        "a:inf,b": "above 0",
        "": "names and weights",
        "a,nowhere": "nowhere",
    }.items():
        with pytest.raises(UserError, match=words) as e:
            Mixture.open(spec)
        one_line(e)


def test_conversations_of_a_mixture_are_written_alike(here):
    """A checkpoint keeps one chat template; data without conversations need none."""
    for name, words in (("text", ""), ("hi", "Q: "), ("hi2", "Q: "), ("yo", "U: ")):
        folder = make_dataset(here / "data" / name)
        meta = json.loads((folder / "meta.json").read_text())
        if words:
            meta["chat_template"] = {"roles": {"user": [words, ""], "assistant": ["A: ", ""]}}
        (folder / "meta.json").write_text(json.dumps(meta))
    for spec in ("hi,text", "text:0.3,hi:0.7", "hi,text,hi2"):
        assert Mixture.open(spec).chat_template["roles"]["user"] == ["Q: ", ""]
    assert Mixture.open("text").chat_template is None
    for spec in ("hi,yo", "text,hi,hi2,yo"):
        with pytest.raises(UserError, match="hi and yo have different chat templates") as e:
            Mixture.open(spec)
        one_line(e)


# ---- mistakes ----


def damage(folder: Path, name: str) -> None:
    """Make one thing wrong with a folder of make_dataset."""
    train, meta = folder / "train.bin", folder / "meta.json"
    if name == "odd size":
        meta.unlink()
        train.write_bytes(train.read_bytes()[:-1])
    elif name == "truncated":
        train.write_bytes(train.read_bytes()[:-200])
    elif name == "no train.bin":
        train.unlink()
    elif name == "no val.bin":
        meta.unlink()
        (folder / "val.bin").unlink()
    elif name == "empty folder":
        for path in folder.iterdir():
            path.unlink()
    elif name == "meta.json cut short":
        meta.write_text(meta.read_text()[:100])
    elif name == "meta.json empty":
        meta.write_text("")
    elif name == "meta.json is a list":
        meta.write_text("[]")
    elif name == "meta.json without splits":
        meta.write_text('{"vocab_size": 30, "dtype": "uint16"}')
    elif name == "meta.json with an unknown dtype":
        meta.write_text(meta.read_text().replace("uint16", "float16x"))
    elif name == "mask too short":
        ids = np.fromfile(train, dtype="<u2")
        (folder / "train.mask.bin").write_bytes(b"\1" * (len(ids) - 1))
        val = np.fromfile(folder / "val.bin", dtype="<u2")
        splits = {"train": ids, "val": val}
        write_meta(folder, splits, {"train": {"mask_files": ["train.mask.bin"]}})
    elif name == "no mask":
        ids, val = (np.fromfile(folder / f"{s}.bin", dtype="<u2") for s in ("train", "val"))
        masks = {"train": {"mask_files": ["train.mask.bin"]}}
        write_meta(folder, {"train": ids, "val": val}, masks)
    elif name == "too short":
        val = np.arange(16)
        (folder / "val.bin").write_bytes(np.asarray(val, "<u2").tobytes())
        write_meta(folder, {"train": np.fromfile(train, dtype="<u2"), "val": val})
    elif name == "id too large":
        text = meta.read_text().replace(f'"max_id": {CHARS.index("t")}', '"max_id": 31')
        text = text.replace(f'"max_id": {CHARS.index("y")}', '"max_id": 31')
        meta.write_text(text.replace(f'"max_id": {CHARS.index(".")}', '"max_id": 31'))
        meta.write_text(meta.read_text().replace(f'"max_id": {CHARS.index(",")}', '"max_id": 31'))
    elif name == "meta.pkl without vocab_size":
        meta.unlink()
        (folder / "meta.pkl").write_bytes(pickle.dumps({"itos": {}}))
    elif name == "meta.pkl is a list":
        meta.unlink()
        (folder / "meta.pkl").write_bytes(pickle.dumps([1]))
    elif name == "meta.pkl cut short":
        meta.unlink()
        (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 30, "itos": {1: "a"}})[:-9])
    else:
        raise KeyError(name)


@pytest.mark.parametrize(
    "name, words",
    {
        "odd size": ["train.bin", "whole number"],
        "truncated": ["train.bin", "prepare the data again"],
        "no train.bin": ["train.bin"],
        "no val.bin": ["val.bin"],
        "empty folder": ["mine"],
        "meta.json cut short": ["meta.json", "damaged"],
        "meta.json empty": ["meta.json", "damaged"],
        "meta.json is a list": ["meta.json", "damaged"],
        "meta.json without splits": ["meta.json", "damaged"],
        "meta.json with an unknown dtype": ["meta.json", "damaged"],
        "mask too short": ["train.mask.bin"],
        "no mask": ["train.mask.bin", "missing"],
        "too short": ["val.bin", "16", "block_size"],
        "id too large": ["31", "29"],
        "meta.pkl without vocab_size": ["meta.pkl", "vocab_size"],
        "meta.pkl is a list": ["meta.pkl", "list"],
        "meta.pkl cut short": ["meta.pkl", "damaged"],
    }.items(),
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_is_wrong_is_said_in_one_line(here, name, words):
    damage(make_dataset(here / "data" / "mine"), name)
    with pytest.raises(UserError) as e:
        Mixture.open("mine").check(block_size=16, vocab_size=30)
    text = one_line(e)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    "name, words",
    {
        "shakespeare": "not prepared yet: run python data/shakespeare/prepare.py",
        "sources_bpe": "not prepared yet: run python data/sources/prepare.py",
        "shakespeare_bpe": "did you mean shakespeare?",  # which has no such vocabulary
        "mien": "did you mean mine?",
        "zzz": "there are ",
    }.items(),
)
def test_data_that_are_not_there_are_to_be_prepared_or_were_meant_otherwise(here, name, words):
    make_dataset(here / "data" / "mine")
    for folder, text in (("sources", "OUT_bpe"), ("shakespeare", "")):
        (here / "data" / folder).mkdir()
        (here / "data" / folder / "prepare.py").write_text(text)
    with pytest.raises(UserError) as e:
        Mixture.open(name)
    text = one_line(e)
    assert words in text and (name != "zzz" or "mine" in text), text


# ---- fields of the wrong kind ----


def test_a_largest_id_that_is_not_so_is_found(here):
    """Whatever meta.json says: by training and by evaluation, which read windows."""
    folder = make_dataset(here / "data" / "mine")
    ids = np.fromfile(folder / "train.bin", "<u2")
    ids[40] = 999
    ids.tofile(folder / "train.bin")
    data = Mixture.open("mine")
    data.check(16, 30)
    split = data.parts[0].split("train")
    split.windows(np.array([0]), 16)
    for starts in (np.array([32]), np.array([32, len(ids) - 5])):
        with pytest.raises(UserError, match=r"train\.bin: the data hold the id 999, .* ends at 29"):
            split.windows(starts, 16)


def test_what_is_no_file_in_a_data_folder(here):
    folder = make_dataset(here / "data" / "mine")
    for name in ("train.bin", "meta.json"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(UserError, match=f"{name}: it is a pipe, not a file"):
            open_dataset("mine")
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(UserError, match=f"{name}: it is a folder, not a file"):
            open_dataset("mine")
        (folder / name).rmdir()
        (folder / name).write_bytes(content)
    with open(folder / "meta.json", "r+b") as f:
        f.truncate(1 << 40)  # of holes
    with pytest.raises(UserError, match="more than 16 MB"):
        open_dataset("mine")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_data_can_be_copied_and_sent_to_processes(here, copied):
    """As to a DataLoader's workers where processes are spawned."""
    make_dataset(here / "data" / "mine")
    data = Mixture.open("mine")
    batches = Batches(data, 8, 4, seed=1)
    again = copied(batches)
    for step in range(3):
        rows = np.arange(4)
        assert np.array_equal(again.rows_of(step, rows), batches.rows_of(step, rows))
    assert copied(data).fingerprints() == data.fingerprints()


@pytest.mark.parametrize(
    "kind, changed",
    [
        ("nanogpt", "train.bin"),  # whose meta says nothing of the content
        ("bare", "val.bin"),
        ("llmc", "train.bin"),
        ("rows", "train.mask.bin"),  # of which the checksums in meta.json know nothing
    ],
)
def test_other_data_of_the_same_length_are_noticed(here, kind, changed):
    folder = make_dataset(here / "data" / "a", kind)
    before = Mixture.open("a").fingerprints()
    older = {name: text.split(", ")[0] for name, text in before.items()}
    assert Mixture.open("a").changed_since(before) == Mixture.open("a").changed_since(older) == []
    content = (folder / changed).read_bytes()
    head = content[:1024] if kind == "llmc" else b""
    (folder / changed).write_bytes(head + content[len(head) :][::-1])
    assert Mixture.open("a").changed_since(before) == [f"a/{changed.split('.')[0]}"]


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_split_without_a_token_is_too_short(tmp_path, name):
    """Of a folder without meta.json, whose preparation was cut off: a program that looks at it
    before it asks for windows finds nothing wrong."""
    folder = make_dataset(tmp_path / "cut", "bare")
    (folder / f"{name}.bin").write_bytes(b"")
    data = Mixture.open(str(folder))
    assert data.fingerprints() == Mixture.open(str(folder)).fingerprints()
    with pytest.raises(UserError, match=rf"{name}\.bin has 0 tokens, too few for a window"):
        data.check(8, 100)
