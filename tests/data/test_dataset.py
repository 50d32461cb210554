"""bonsai/data/dataset.py: what is on the disk comes back, and what is wrong with it is said."""

import copy
import json
import multiprocessing
import os
import pickle
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.errors import one_line
from helpers.programs import ROOT, run_command
from helpers.tiny_data import CHARS, char_ids, make_dataset, tiny_text, write_meta

from bonsai.data.batches import Batches
from bonsai.data.dataset import Mixture, Split, open_dataset
from bonsai.system.errors import UserError


def write(path: Path, ids, dtype="<u2") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.asarray(ids, dtype=dtype).tobytes())
    return path


# ---- reading ----


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_split_is_its_tokens(tmp_path, dtype):
    ids = np.arange(100) * (600 if dtype == "uint16" else 60_000)
    split = Split([write(tmp_path / "train.bin", ids, dtype)], dtype)
    assert len(split) == 100
    assert split.read(0, 100).tolist() == ids.tolist()
    assert split.read(97, 10).tolist() == ids[97:].tolist()
    x, y = split.windows(np.array([0, 30, 89]), 10)
    assert x.dtype == y.dtype == np.int64 and x.shape == (3, 10)
    for row, start in enumerate((0, 30, 89)):
        assert x[row].tolist() == ids[start : start + 10].tolist()
        assert y[row].tolist() == ids[start + 1 : start + 11].tolist()


def test_targets_beyond_the_end_are_minus_1(tmp_path):
    split = Split([write(tmp_path / "train.bin", np.arange(1, 21))])
    x, y = split.windows(np.array([10, 15]), 10)
    assert y[0].tolist() == [*range(12, 21), -1]
    assert x[1, :5].tolist() == [16, 17, 18, 19, 20]
    assert y[1].tolist() == [17, 18, 19, 20] + [-1] * 6


def test_shards_read_as_one(tmp_path):
    """Windows across one border and across two, with masks cut at the same places."""
    ids, mask = np.arange(50), np.arange(50) % 3 > 0
    cuts = [slice(0, 20), slice(20, 23), slice(23, 50)]
    files = [write(tmp_path / f"train_{i}.bin", ids[c]) for i, c in enumerate(cuts)]
    masks = [write(tmp_path / f"mask_{i}.bin", mask[c], "u1") for i, c in enumerate(cuts)]
    split = Split(files)
    for start in range(0, 40):
        x, y = split.windows(np.array([start]), 9)
        assert x[0].tolist() == list(range(start, start + 9))
        assert y[0].tolist() == list(range(start + 1, start + 10))
        _, y = Split(files, "uint16", masks).windows(np.array([start]), 9)
        expected = [i if i % 3 else -1 for i in range(start + 1, start + 10)]
        assert y[0].tolist() == expected


MANY_FILES = """
import resource, sys
from pathlib import Path
import numpy as np
from bonsai.data.dataset import Split
from bonsai.system.errors import UserError

files, masks = (sorted(Path(sys.argv[1]).glob(f"{name}_*.bin")) for name in ("train", "mask"))
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
split = Split(files, "uint16", masks)
for start in (0, 597, 1197):
    assert split.read(start, 3).tolist() == list(range(start, start + 3))
    assert split.read(start, 3, masks=True).tolist() == [(start + i) % 2 for i in range(3)]
assert split.read(299, 602).tolist() == list(range(299, 901))
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
try:
    Split(files)
except UserError as e:
    print(e)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has another limit")
def test_more_files_than_a_process_may_open_at_first(tmp_path):
    """FineWeb in files of 100M tokens has a thousand; Linux begins with a limit of 1024."""
    ids, ends = np.arange(1200), np.cumsum([0, 1, 5, 6] * 100)  # some of them are empty
    for i, part in enumerate(np.split(ids, ends[:-1])):
        write(tmp_path / f"train_{i:05}.bin", part)
        write(tmp_path / f"mask_{i:05}.bin", part % 2, "u1")
    result = run_command([sys.executable, "-c", MANY_FILES, str(tmp_path)], ROOT)
    assert result.rc == 0, result
    assert "Too many open files: raise the limit (ulimit -n)" in result.stdout


def test_a_header_of_llm_c_is_not_tokens(tmp_path):
    head = np.zeros(256, dtype="<i4")
    head[:3] = 20240520, 1, 30
    path = tmp_path / "train.bin"
    path.write_bytes(head.tobytes() + np.arange(30, dtype="<u2").tobytes())
    split = Split([path])
    assert len(split) == 30
    assert split.windows(np.array([7]), 4)[0].tolist() == [[7, 8, 9, 10]]
    path.write_bytes(head.tobytes() + np.arange(29, dtype="<u2").tobytes())
    with pytest.raises(UserError) as e:
        Split([path])
    assert "30" in one_line(e) and "29" in one_line(e)


@pytest.mark.parametrize("count", [0, 1, 5, 511, 512, 513])
def test_small_files_of_any_length_open(tmp_path, count):
    """Shorter than a header, and of a length that is no multiple of four bytes."""
    split = Split([write(tmp_path / "train.bin", np.full(count, 7))])
    assert len(split) == count


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


def test_evaluation_windows(tmp_path):
    split = Split([write(tmp_path / "val.bin", np.arange(101))])
    assert split.eval_starts(10).tolist() == list(range(0, 100, 10))
    few = split.eval_starts(10, 3).tolist()
    assert few == split.eval_starts(10, 3).tolist() and len(few) == 3
    assert few[0] == 0 and few[-1] == 90
    assert split.eval_starts(10, 10**6).tolist() == list(range(0, 100, 10))
    for count in range(1, 10):  # evenly: each where the full list has it
        chosen = np.linspace(0, 9, count).round().astype(int)
        assert split.eval_starts(10, count).tolist() == (10 * chosen).tolist()
    # together they cover every target once
    _, y = split.windows(split.eval_starts(7), 7)
    assert sorted(y[y >= 0].tolist()) == list(range(1, 101))
    rows = Split([write(tmp_path / "rows.bin", np.arange(40))], row_length=8)
    assert rows.eval_starts(7).tolist() == [0, 8, 16, 24, 32]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("T", [7, 8, 20, 100])
def test_a_window_ends_where_its_row_does(tmp_path, masked, T):
    masks = [write(tmp_path / "mask.bin", np.arange(40) % 3 > 0, "u1")] if masked else []
    rows = Split([write(tmp_path / "rows.bin", np.arange(40))], "uint16", masks, row_length=8)
    starts = rows.eval_starts(T)
    x, y = rows.windows(starts, T)
    assert x[:, :7].tolist() == [[*range(s, s + 7)] for s in range(0, 40, 8)]
    learnt = [i for i in range(40) if i % 8 and (i % 3 or not masked)]
    assert y[y >= 0].tolist() == learnt and (y[:, 7:] == -1).all()
    assert rows.targets(starts, T) == len(learnt)


def test_few_windows_of_a_huge_split_take_little_memory(tmp_path):
    split = Split([write(tmp_path / "val.bin", np.arange(101))])
    split.ends = [10**10 + 1]  # as if it had so many tokens
    tracemalloc.start()
    starts = split.eval_starts(10, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert starts.tolist() == [0, 2_500_000_000, 5_000_000_000, 7_499_999_990, 9_999_999_990]
    assert peak < 2**20


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
        write(folder / "val.bin", val)
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


# ---- data that change under a reader ----


def test_a_file_that_another_replaces_is_read_as_it_was(tmp_path):
    """As when the data set is prepared again while a run trains on it."""
    path = write(tmp_path / "train.bin", np.arange(1000))
    split = Split([path])
    write(tmp_path / "new.bin", np.zeros(500, dtype=np.int64))
    os.replace(tmp_path / "new.bin", path)
    assert split.read(0, 1000).tolist() == list(range(1000))
    x, _ = split.windows(np.array([0, 900]), 50)
    assert x[1].tolist() == list(range(900, 950))


@pytest.mark.parametrize("how", ["shorter", "longer", "same size"])
def test_a_file_that_is_written_over_is_noticed(tmp_path, how):
    path = write(tmp_path / "train.bin", np.arange(1000))
    split = Split([path])
    split.read(0, 10)
    count = {"shorter": 10, "longer": 2000, "same size": 1000}[how]
    path.write_bytes(np.zeros(count, dtype="<u2").tobytes())
    os.utime(path, ns=(1, 1))  # a clock that is coarser than this test
    with pytest.raises(UserError, match="changed while it was being read"):
        split.windows(np.array([0]), 50)


# ---- readers in several threads and processes ----


@pytest.mark.skipif(not hasattr(os, "pread"), reason="needs a system with pread")
def test_reads_leave_the_place_in_the_file_alone(tmp_path):
    """Forked processes, such as a DataLoader's workers, share it: one that moved it between
    another's seek and its read gave that one the tokens of another window."""
    split = Split([write(tmp_path / "train.bin", np.arange(1000))])
    split.read(500, 10)
    assert os.lseek(split.opened[0].fd, 0, os.SEEK_CUR) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with fork")
def test_forked_processes_read_their_own_windows(tmp_path):
    split = Split([write(tmp_path / "train.bin", np.arange(60_000))])

    def read() -> None:
        for start in range(0, 59_000, 7):
            assert split.read(start, 16).tolist() == list(range(start, start + 16))

    processes = [multiprocessing.get_context("fork").Process(target=read) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4


def test_threads_read_their_own_windows(tmp_path, monkeypatch):
    """Without pread, as on Windows."""
    monkeypatch.delattr(os, "pread", raising=False)
    split = Split([write(tmp_path / "train.bin", np.arange(60_000))])
    starts = range(0, 59_000, 7)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(partial(split.read, count=16), starts))
    assert [ids.tolist() for ids in found] == [list(range(i, i + 16)) for i in starts]


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


def test_a_copy_of_data_that_were_prepared_again_is_refused(tmp_path):
    path = write(tmp_path / "train.bin", np.arange(1000))
    sent = pickle.dumps(Split([path]))
    write(path, np.arange(1001))
    with pytest.raises(UserError, match="changed while it was being read"):
        pickle.loads(sent)


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
