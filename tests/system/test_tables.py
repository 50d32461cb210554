"""bonsai/system/tables.py: tables line up, and a spread says of how many."""

from bonsai.system.tables import columns, spread, table


def test_a_table_lines_up():
    text = table([{"a": "x", "b": 1234.5}, {"a": "long one"}], [("A", "a", ""), ("B", "b", ",.1f")])
    assert text.splitlines() == [
        "| A        |       B |",
        "| :------- | ------: |",
        "| x        | 1,234.5 |",
        "| long one |     n/a |",
    ]


def test_a_spread_of_repeats():
    assert spread([3, 1, 2]) == {"median": 2, "low": 1, "high": 3, "n": 3}
    assert spread([5.0]) == {"median": 5, "low": 5, "high": 5, "n": 1}


def test_a_table_without_rows_has_its_head():
    assert table([], [("loss", "loss", ".2f")]).splitlines() == ["| loss |", "| ---: |"]


def test_columns_line_up():
    text = columns([["", "bytes"], ["gpt2", "9"]])
    assert text.splitlines() == ["      bytes", "gpt2      9"]
