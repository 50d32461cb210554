"""bonsai/data/split.py: what is on the disk comes back, also to several readers."""

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

from bonsai.data.split import Split
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
from bonsai.data.split import Split
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


def test_a_copy_of_data_that_were_prepared_again_is_refused(tmp_path):
    path = write(tmp_path / "train.bin", np.arange(1000))
    sent = pickle.dumps(Split([path]))
    write(path, np.arange(1001))
    with pytest.raises(UserError, match="changed while it was being read"):
        pickle.loads(sent)
