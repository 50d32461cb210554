"""bonsai/data/batches.py: which windows a step sees, and that nothing else has a say in it."""

import subprocess
import sys
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from helpers.programs import ROOT, environment

from bonsai.data.batches import Batches, prefetch, shuffled
from bonsai.data.dataset import Dataset, Mixture
from bonsai.data.split import Split
from bonsai.system.errors import UserError

T = 8


def split(path, ids, **options) -> Split:
    path.write_bytes(np.asarray(ids, dtype="<u2").tobytes())
    return Split([path], **options)


def mixture(*splits: Split, weights=None) -> Mixture:
    weights = weights or [1 / len(splits)] * len(splits)
    return Mixture(
        [
            Dataset(f"part{i}", s.files[0].parent, {"train": s}, None, None, None, w)
            for i, (s, w) in enumerate(zip(splits, weights))
        ]
    )


@pytest.fixture
def counting(tmp_path) -> Mixture:
    """Token i is i: a window says where it begins."""
    return mixture(split(tmp_path / "train.bin", np.arange(1000)))


@pytest.mark.parametrize("order", ["random", "epoch"])
def test_a_step_is_a_pure_function_of_seed_and_step(counting, order):
    a, b = (Batches(counting, T, 6, seed=3, order=order) for _ in range(2))
    late = [a.rows_of(s, np.arange(6)) for s in (50, 7, 0, 7)]
    early = [b.rows_of(s, np.arange(6)) for s in range(8)]
    assert all(np.array_equal(x, y) for x, y in zip(late[1], early[7]))
    assert all(np.array_equal(x, y) for x, y in zip(late[1], late[3]))
    x, y = late[0]
    assert np.array_equal(x[:, 1:], y[:, :-1]) and (np.diff(x) == 1).all() and (y < 1000).all()
    starts = [a.starts(s)[1].tolist() for s in range(20)]
    assert len({tuple(s) for s in starts}) == 20  # no step repeats another
    other = Batches(counting, T, 6, seed=4, order=order)
    assert other.starts(7)[1].tolist() != starts[7]


@pytest.mark.parametrize("order", ["random", "epoch"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_the_rows_of_a_step(counting, order, world):
    """The micro-batches of all ranks, in order, are the rows of the step, however many ranks."""
    batch_size, steps, total = 3, 3, 4  # micro-batches per step over all ranks
    batches = Batches(counting, T, total * batch_size, 1, order)
    micro_steps = total // world
    by_rank = [
        list(islice(prefetch(batches, 5, batch_size, r, world), steps * micro_steps))
        for r in range(world)
    ]
    for s in range(steps):
        x, y = batches.rows_of(5 + s, np.arange(total * batch_size))
        pairs = [by_rank[r][s * micro_steps + m] for m in range(micro_steps) for r in range(world)]
        assert np.array_equal(x, np.concatenate([pair[0].numpy() for pair in pairs]))
        assert np.array_equal(y, np.concatenate([pair[1].numpy() for pair in pairs]))


def test_random_starts_are_uniform_up_to_the_last_one(tmp_path):
    """As nanoGPT's randint(len - block_size): every start that has a target for every input."""
    batches = Batches(mixture(split(tmp_path / "a.bin", np.arange(28))), T, 4000, 0)
    counts = Counter(np.concatenate([batches.starts(s)[1] for s in range(5)]).tolist())
    assert sorted(counts) == list(range(20))
    # 20,000 draws over 20 places: a standard deviation of 31
    assert all(abs(n - 1000) < 160 for n in counts.values())


@pytest.mark.parametrize("tokens", [9, 10, 16, 17, 18, 24, 25, 26, 33, 64, 65, 66, 67, 200, 1000])
@pytest.mark.parametrize("rows", [1, 5])
def test_an_epoch_has_each_window_once(tmp_path, tokens, rows):
    """Pass by pass: windows that do not overlap, each once, in another order every time."""
    batches = Batches(mixture(split(tmp_path / "a.bin", np.arange(tokens))), T, rows, 2, "epoch")
    windows = (tokens - 1) // T
    windows -= windows > 1  # room for the shift of the grid
    passes, steps = 4, -(-4 * windows // rows)
    starts = np.concatenate([batches.starts(s)[1] for s in range(steps)])
    seen = [starts[p * windows : (p + 1) * windows] for p in range(passes)]
    for one in seen:
        assert len(set((one // T).tolist())) == windows
        assert len(set((one % T).tolist())) == 1  # one grid
        assert one.min() >= 0 and one.max() + T + 1 <= tokens
    if windows > 10:
        assert len({tuple(one.tolist()) for one in seen}) == passes
        assert len({int(one[0] % T) for one in seen}) > 1
        assert any(np.diff(seen[0]) < 0)


@pytest.mark.parametrize("T", [7, 20, 100])
def test_an_epoch_of_rows_has_each_row_once(tmp_path, T):
    data = mixture(split(tmp_path / "a.bin", np.arange(80), row_length=8))
    batches = Batches(data, T, 5, 0, "epoch")
    starts = np.concatenate([batches.starts(s)[1] for s in range(4)])
    for one in (starts[:10], starts[10:]):
        assert sorted(one.tolist()) == list(range(0, 80, 8))
    random = Batches(data, T, 500, 0)
    assert set(random.starts(0)[1].tolist()) == set(range(0, 80, 8))


@pytest.mark.parametrize("n", range(1, 201))
def test_shuffled_is_a_permutation(n):
    key = np.random.default_rng(n).integers(0, 2**32, 4, np.uint64)
    assert sorted(shuffled(np.arange(n), n, key).tolist()) == list(range(n))


def test_shuffled_shuffles():
    """Where an index goes is close to uniform over keys; neighbours do not stay together."""
    n, rng = 10, np.random.default_rng(0)
    table = np.zeros((n, n))
    together = 0
    for _ in range(3000):
        out = shuffled(np.arange(n), n, rng.integers(0, 2**32, 4, np.uint64))
        table[np.arange(n), out] += 1
        together += (np.abs(np.diff(out)) == 1).sum()
    assert np.abs(table - 300).max() < 110  # standard deviation 16
    assert abs(together / 3000 - 9 * 0.2) < 0.3  # of 9 pairs, a fifth are neighbours by chance


def test_a_mixture_draws_by_weight(tmp_path):
    parts = [split(tmp_path / f"{i}.bin", np.full(500 * (i + 1), i)) for i in range(3)]
    for order in ("random", "epoch"):
        batches = Batches(mixture(*parts, weights=[0.6, 0.3, 0.1]), T, 1000, 0, order)
        which = np.concatenate([batches.starts(s)[0] for s in range(10)])
        counts = Counter(which.tolist())
        # 10,000 draws: a standard deviation of at most 50
        assert all(abs(counts[i] - 10000 * w) < 250 for i, w in enumerate([0.6, 0.3, 0.1]))
        x, y = batches.rows_of(3, np.arange(1000))
        assert np.array_equal(x[:, 0], batches.starts(3)[0]) and (x == x[:, :1]).all()
        assert np.array_equal(x, y)


def test_an_unknown_order_lists_the_known(counting):
    with pytest.raises(UserError, match="random, epoch"):
        Batches(counting, T, 1, 0, "sorted")


def test_noise_replaces_a_share_of_the_inputs(counting):
    plain = Batches(counting, T, 40, 3, "epoch")
    noisy = Batches(counting, T, 40, 3, "epoch", noise=0.25, vocab_size=1000)
    changed = []
    for step in (0, 1, 25):  # the last in the second pass over these 1,000 tokens
        (x, y), (z, same) = (b.rows_of(step, np.arange(40)) for b in (plain, noisy))
        assert np.array_equal(y, same) and ((z >= 0) & (z < 1000)).all()
        part = noisy.rows_of(step, np.array([7, 30]))[0]  # a row does not depend on the others
        assert np.array_equal(part, z[[7, 30]])
        changed.append(x != z)
        assert 0.15 < changed[-1].mean() < 0.35
    assert (changed[0] != changed[1]).any() and (changed[0] != changed[2]).any()
    assert len(np.unique(z[changed[-1]])) > 20
    for noise in (-0.1, 1.0):
        with pytest.raises(UserError, match="token_noise"):
            Batches(counting, T, 1, 0, noise=noise)


def test_an_error_in_the_thread_comes_up_where_its_batch_is_used(tmp_path):
    """Here an id that is too large, which no meta.json has stated."""
    ids = np.zeros(1000)
    ids[500] = 99
    data = mixture(split(tmp_path / "a.bin", ids))
    batches = Batches(data, T, 4, 0)
    data.check(T, 99, ["train"])
    with pytest.raises(UserError, match="99"):
        for _ in islice(prefetch(batches, 0, 4), 2000):
            pass
    data.check(T, 100, ["train"])
    assert len(list(islice(prefetch(batches, 0, 4), 100))) == 100


def test_prefetch_ends_its_thread():
    """Left early, it stops reading."""
    import threading
    import time

    class Endless:
        def rows_at(self, step):
            return 1

        def rows_of(self, step, rows):
            return np.zeros((1, T), dtype=np.int64), np.zeros((1, T), dtype=np.int64)

    stream = prefetch(Endless(), 0, 1)
    next(stream)
    stream.close()
    end = time.monotonic() + 5
    while any(t.name == "batches" for t in threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(t.name == "batches" for t in threading.enumerate())


def test_resident_memory_stays_small_whatever_the_file(tmp_path):
    """2,000 batches from all over a (sparse) file of 4 GB, in a process of their own."""
    with open(tmp_path / "train.bin", "wb") as f:
        f.truncate(4 << 30)
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from itertools import islice
from pathlib import Path
import psutil
from bonsai.data.batches import Batches, prefetch
from bonsai.data.dataset import Dataset, Mixture
from bonsai.data.split import Split
folder = Path({str(tmp_path)!r})
part = Dataset("big", folder, dict(train=Split([folder / "train.bin"])), None, None, None)
me, t0 = psutil.Process(), time.time()
before = peak = me.memory_info().rss
batches = Batches(Mixture([part]), 1024, 6, 0)
assert len(part.splits["train"]) == 2**31
for i, (x, y) in enumerate(islice(prefetch(batches, 0, 6), 2000)):
    assert x.sum() == 0
    if i % 50 == 0:
        peak = max(peak, me.memory_info().rss)
print(peak, peak - before, time.time() - t0)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    peak, grown, seconds = map(float, done.stdout.split())
    assert peak < 1.5 * 2**30 and grown < 0.2 * 2**30, done.stdout
    assert seconds < 60


@pytest.mark.parametrize("world", [1, 2, 4])
def test_masked_micro_batches_weigh_by_their_targets_over_all_processes(workplace, world):
    """The share of each in a step's loss, averaged over processes, is that of its targets."""
    rng = np.random.default_rng(3)
    data = Mixture.open(str(workplace / "data" / "rows"))
    batches = Batches(data, 7, 16, 1)
    mask = rng.random(len(batches.parts[0])) < 0.2
    read = batches.parts[0].read
    batches.parts[0].read = lambda start, count, masks=False: (
        mask[start : start + count].astype(np.uint8) if masks else read(start, count)
    )
    for step in range(3):
        _, y = batches.rows_of(step, np.arange(16))
        counts = (y.reshape(8, -1) >= 0).sum(axis=1)  # of 8 micro-batches of two rows
        shares = np.zeros(8)
        for rank in range(world):
            shares[rank::world] = [1 / d / world for d in batches.divisors(step, 2, rank, world)]
        assert np.allclose(shares, counts / counts.sum())
    plain = Batches(Mixture.open(str(workplace / "data" / "meta")), 16, 16, 1)
    assert plain.divisors(0, 2, world - 1, world) == [8 // world] * (8 // world)
