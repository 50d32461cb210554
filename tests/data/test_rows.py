"""Rows of .jsonl and .parquet files: one field of them, or a text made of the whole row."""

import json
import sys
from pathlib import Path

import pytest

from bonsai.data.pieces import Options, Seen
from bonsai.data.readers import read_pieces
from bonsai.system.errors import UserError


def test_a_byte_order_mark_before_json(tmp_path):
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
    assert [piece.data for piece in read_pieces([path])] == [b"a"]


def test_nulls_and_empty_texts_are_left_out(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": ""}\n\n{"text": null}\n{"text": "a\\ud83d"}\n')
    texts = [piece.data.decode() for piece in read_pieces([path], keep_empty=True)]
    assert texts == ["", "", "a\ufffd"]
    assert [piece.data.decode() for piece in read_pieces([path])] == ["a\ufffd"]


# ---- texts made of whole rows ----

ROWS = [{"a": i, "b": [{"c": "x" * i}], "d": None if i % 2 else "é"} for i in range(40)]


def text(row: dict) -> str:
    if row["a"] == 7:
        raise UserError("seven is no good")
    return json.dumps(row)


def written(folder: Path, name: str, rows: list[dict]) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name, where", [("a.jsonl", "line 8"), ("a.parquet", "row 8")])
def test_a_row_as_a_whole_becomes_a_text(tmp_path, name, where):
    path = written(tmp_path, name, ROWS)
    with pytest.raises(UserError, match=rf"{name} {where}: seven is no good$"):
        list(read_pieces([path], Options(row_text=text, row_fields=("a", "b", "d"))))
    seen, told = Seen(), []
    options = Options(row_text=text, row_fields=("a", "b", "d"), on_error="skip")
    pieces = list(read_pieces([path], options, progress=told.append, seen=seen))
    assert [json.loads(piece.data) for piece in pieces] == [r for r in ROWS if r["a"] != 7]
    assert all(piece.whole for piece in pieces) and sum(told) == path.stat().st_size
    assert seen.lines(options) == [f"left out 1 row: {path} {where}: seven is no good"]


def test_text_without_rows_is_refused_where_rows_are_wanted(tmp_path):
    (tmp_path / "a.txt").write_text("[]")
    with pytest.raises(
        UserError, match=r"a\.txt is not in rows, as \.jsonl and \.parquet files are$"
    ):
        list(read_pieces([tmp_path / "a.txt"], Options(row_text=text, row_fields=("a", "b", "d"))))


def test_damaged_rows_of_parquet_are_one_line(tmp_path):
    path = written(tmp_path, "a.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"a\.parquet is damaged or no parquet file"):
        list(read_pieces([path], Options(row_text=text, row_fields=("a", "b", "d"))))


@pytest.mark.parametrize("fields", [("a",), ("gone",)])
def test_values_that_python_lacks_do_no_harm_in_other_columns(tmp_path, monkeypatch, fields):
    """Nanoseconds are such; with pandas pyarrow has something for them."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setitem(sys.modules, "pandas", None)
    when = pa.array([1, 2, 3], pa.timestamp("ns"))
    pq.write_table(pa.table({"a": [5, 6, 7], "when": when}), tmp_path / "a.parquet")
    options = Options(row_text=json.dumps, row_fields=fields)
    rows = [json.loads(piece.data) for piece in read_pieces([tmp_path / "a.parquet"], options)]
    known = fields == ("a",)
    assert rows == [{"a": a if known else None, "when": None} for a in (5, 6, 7)]
