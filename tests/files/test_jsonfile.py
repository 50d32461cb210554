"""bonsai/files/jsonfile.py: objects read within bounds, and results that every program can read."""

import json
import math

import pytest

from bonsai.files.jsonfile import (
    DEPTH,
    finite,
    has_many_values,
    parse_json_object,
    read_json_object,
    write_json,
)
from bonsai.system.errors import UserError


def test_results_for_programs(tmp_path, capsys):
    write_json(tmp_path / "new" / "r.json", {"a": [float("nan"), 1.5]})
    assert json.loads((tmp_path / "new" / "r.json").read_text()) == {"a": [None, 1.5]}
    write_json("-", {"b": math.inf})
    assert capsys.readouterr().out == '{"b": null}\n'
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the results"):
        write_json(tmp_path / "file" / "r.json", {})


def test_what_json_does_not_have():
    value = {"a": (math.inf, 1), "b": {"c": [-math.inf, math.nan]}, "d": "x\ud800", "e": None}
    assert finite(value) == {"a": [None, 1], "b": {"c": [None, None]}, "d": "x?", "e": None}


@pytest.mark.parametrize("text, values", [
    ("[]", 1), ("[[],[]]", 4), ('{"a": "b", "c": 1}', 2), (r'["[,{", "\"[,{\"", "\\", 1]', 4),
    ('["[[[[[["]', 1), (r'["\\\"[[[[", "\\", [1]]', 4), ('["a"]' + ' ,"b"' * 9, 10),
])  # fmt: skip
def test_values_are_counted_before_they_are_made(text, values):
    assert not has_many_values(text.encode(), values)
    assert has_many_values(text.encode(), values - 1)


def nested(depth: int) -> str:
    """An object of `depth` values within values."""
    return '{"a": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


def test_nesting_has_an_end():
    assert list(parse_json_object(nested(DEPTH), "it")) == ["a"]
    for depth in (DEPTH + 1, 100_000):  # the second is beyond the parser's own recursion
        with pytest.raises(UserError, match=r"^it is nested too deep$"):
            parse_json_object(nested(depth), "it")


@pytest.mark.parametrize(
    "text, words", [("{", "not valid JSON"), ("", "not valid JSON"), ("[1]", "not a JSON object")]
)
def test_what_is_no_object_is_named(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=rf"a\.json is {words}"):
        read_json_object(tmp_path / "a.json")


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json_object(tmp_path / "a.json", limit=8) == {"a": 1}
    with pytest.raises(UserError, match="more than"):
        read_json_object(tmp_path / "a.json", limit=7)
