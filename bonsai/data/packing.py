"""Sequences of different lengths, put into rows of one length."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def best_fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Which sequences share a row: lists of their numbers. No size may be above `room`, that of a
    row.

    By best-fit decreasing: each sequence, the longest first, goes into the fullest row that still
    has room for it, or into a new one. At most 11/9 as many rows as at best, and a few more
    (Johnson et al. 1974). In a row the sequences stand in the order given, not by length: else the
    short ones would never be at its beginning. So do the rows, by their first sequences.

    >>> best_fit([2, 4, 3, 1, 2], 6)
    [[0, 1], [2, 3, 4]]
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room that is left, number of the row), sorted
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        place = bisect_left(open_rows, (sizes[i], 0))
        if place == len(open_rows):
            left, row = room, len(rows)
            rows.append([])
        else:
            left, row = open_rows.pop(place)
        rows[row].append(i)
        insort(open_rows, (left - sizes[i], row))
    return sorted(map(sorted, rows))
