"""Sequences share rows as tightly as may be, and stand in their order."""

import numpy as np
import pytest

from bonsai.data.packing import best_fit


@pytest.mark.parametrize("seed", range(5))
def test_each_sequence_is_in_one_row(seed):
    rng = np.random.default_rng(seed)
    room = int(rng.integers(5, 300))
    sizes = rng.integers(1, room + 1, 500).tolist()
    rows = best_fit(sizes, room)
    assert sorted(i for row in rows for i in row) == list(range(500))
    assert all(sum(sizes[i] for i in row) <= room for row in rows)
    assert rows == best_fit(sizes, room) == sorted(rows) and all(row == sorted(row) for row in rows)
    # no two rows would fit into one: then rows are more than half full on average
    fill = sorted(sum(sizes[i] for i in row) for row in rows)
    assert len(rows) == 1 or fill[0] + fill[1] > room


def test_short_sequences_leave_hardly_any_room():
    sizes = np.random.default_rng(0).integers(10, 100, 1000)
    assert sum(sizes) / 257 / len(best_fit(sizes.tolist(), 257)) > 0.99


def test_few_or_none():
    assert best_fit([], 7) == [] and best_fit([7], 7) == [[0]] and best_fit([7, 7], 7) == [[0], [1]]
    assert best_fit([1, 1], 7) == [[0, 1]]
