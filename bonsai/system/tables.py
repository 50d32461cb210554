"""Repeated measurements, and tables: in Markdown, to be pasted as printed, or plain columns."""

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range of repeated measurements, and how many there were."""
    low, high = min(values), max(values)
    return {"median": statistics.median(values), "low": low, "high": high, "n": len(values)}


def table(rows: list[dict], columns: Sequence[tuple[str, str, str]]) -> str:
    """Rows as a Markdown table that lines up in a terminal.

    columns: (title, key, format) each; a missing or None value shows as n/a. Numbers stand at the
    right, text (format '') at the left.

    >>> print(table([{"x": "a", "y": 1.25}], [("name", "x", ""), ("loss", "y", ".1f")]))
    | name | loss |
    | :--- | ---: |
    | a    |  1.2 |
    """
    cells = [[title for title, _, _ in columns]]
    for row in rows:
        values = [(row.get(key), spec) for _, key, spec in columns]
        cells.append(["n/a" if value is None else format(value, spec) for value, spec in values])
    widths = [max(4, *(len(line[i]) for line in cells)) for i in range(len(columns))]
    right = [bool(spec) for _, _, spec in columns]
    rules = ["-" * (w - 1) + ":" if r else ":" + "-" * (w - 1) for w, r in zip(widths, right)]
    lines = []
    for line in [cells[0], rules, *cells[1:]]:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right)]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text for a terminal alone, the first column at the left and the others at the right.

    >>> print(columns([["", "bytes"], ["gpt2", "9"]]))
          bytes
    gpt2      9
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))])
        for row in rows
    )
