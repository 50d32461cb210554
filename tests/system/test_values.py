"""Ranges, words, paths, lists and escapes, as a setting's comment states them."""

import os
from pathlib import Path

import numpy as np
import pytest

from bonsai.system.values import COMMAND_LINE, Setting, in_range, range_in_words, unescape

FILE = "run.py"


def setting(takes: str, default=1.0, types=None) -> Setting:
    return Setting("x", default, types or (type(default),), f"what it is [{takes}]")


@pytest.mark.parametrize(
    "takes, inside, outside",
    [
        (">= 1", (1, 2.5, 1e300), (0, -1, 0.999)),
        ("> 0", (1e-300, 1), (0, -0.0, -1)),
        ("0 to 1", (0, 0.5, 1), (-1e-9, 1.001)),
        (">= 0, < 1", (0, 0.999), (1, -1)),
        ("0 or >= 256", (0, 256), (1, 255, -1)),
        ("-1 or >= 1", (-1, 1), (0, -2)),
        ("any", (-1e300, 0, 1e300), ()),
        ("1e-3 to 1e3", (1e-3, 1000), (9e-4, 1001)),
    ],
)
def test_ranges(takes, inside, outside):
    read = setting(takes, default=inside[0] * 1.0).read
    for value in inside:
        assert read(value, FILE) == read(str(value), COMMAND_LINE) == value
    for value in (*outside, float("nan"), float("inf"), float("-inf"), np.float32("nan")):
        for raw, source in ((value, FILE), (repr(float(value)), COMMAND_LINE)):
            if source == COMMAND_LINE and not np.isfinite(value):
                raw = "1e999"
            with pytest.raises(ValueError, match=rf"x={raw} must be|x=\S+ must be"):
                read(raw, source)


def test_a_range_in_words():
    with pytest.raises(ValueError) as e:
        setting(">= 0, < 1", 0.5).read("1", COMMAND_LINE)
    assert str(e.value) == "--x=1 must be at least 0 and below 1"
    with pytest.raises(ValueError) as e:
        setting("0 to 1", 0.5).read(2, "run.py")
    assert str(e.value) == "run.py: x=2 must be from 0 to 1"
    assert range_in_words("any") == "a finite number"
    for raw in ("1e400", "-1e400"):
        with pytest.raises(ValueError) as e:
            setting(">= 0", 0.5).read(raw, COMMAND_LINE)
        assert str(e.value) == f"--x={raw} must be a finite number, at least 0"


def test_infinity_where_it_is_named():
    assert setting("> 0 or inf").read(float("inf"), FILE) == float("inf")
    assert not in_range(float("-inf"), "any or inf") and not in_range(float("nan"), "any or inf")


def test_without_brackets_a_number_is_finite_and_fits_64_bits():
    plain = Setting("x", 1, (int,), "the count, as in [the paper]")
    assert plain.range == "any" and plain.read(-(2**63), FILE) == -(2**63)
    with pytest.raises(ValueError, match="too large: an integer has 64 bits"):
        plain.read("1e30", COMMAND_LINE)
    with pytest.raises(ValueError, match="a finite number"):
        Setting("x", 1.0, (float,)).read(float("nan"), FILE)


def test_lists_of_numbers():
    counts, rates = setting("list of int >= 1", "auto"), setting("list of float >= 0, < 1", "0.1")
    for good in ("8", "8, 16", "auto", "'1,2'"):
        counts.read(good, COMMAND_LINE)
    assert counts.read("8, 16", FILE) == "8,16" and rates.read("1e-3,0", FILE) == "1e-3,0"
    for bad, words in {
        "8,x": "x=8,x must be numbers without a fraction between commas, and 'x' is none",
        "1.5": "and '1.5' is none",
        "": "and '' is none",
        "4,0": "each at least 1",
    }.items():
        with pytest.raises(ValueError, match=words):
            counts.read(bad, COMMAND_LINE)
    for bad in ("nan", "1", "-1", "inf"):
        with pytest.raises(ValueError, match="each at least 0 and below 1"):
            rates.read(bad, COMMAND_LINE)


def test_a_path_with_a_default_is_never_empty():
    assert setting("path", "").read("", COMMAND_LINE) == ""
    for raw, source in (("", COMMAND_LINE), ("''", COMMAND_LINE), ("", FILE)):
        with pytest.raises(ValueError, match="is empty: give a path"):
            setting("path", "out").read(raw, source)


def test_halves_of_characters():
    assert unescape(r"\ud83d\ude00") == "😀"
    with pytest.raises(ValueError, match="half of a character"):
        setting("escapes", "").read(r"a\ud83d", COMMAND_LINE)


def test_the_default_is_always_taken():
    assert setting(">= 1", default=0).read("0", COMMAND_LINE) == 0
    assert setting("int8 | int4", default="").read("", COMMAND_LINE) == ""


def test_words():
    dtype = setting("auto | float32", default="auto")
    assert dtype.read("float32", COMMAND_LINE) == dtype.read("'float32'", COMMAND_LINE) == "float32"
    for source in (COMMAND_LINE, FILE):
        with pytest.raises(ValueError, match="is not one of auto, float32; did you mean float32"):
            dtype.read("float31", source)


@pytest.mark.parametrize("source", [COMMAND_LINE, FILE])
def test_yes_and_no_in_every_spelling(source):
    plain = setting("", False)
    either = setting("auto | on | off", "auto", (bool, str))
    for word, value in {"on": 1, "off": 0, "yes": 1, "no": 0, "true": 1, "False": 0}.items():
        for text in (word, word.upper()):
            assert plain.read(text, source) is either.read(text, source) is bool(value)
    for text, value in (("1", True), ("0", False)):
        assert plain.read(text, source) is either.read(text, source) is value
    assert either.read("auto", source) == "auto"
    for wrong in ("of", "2", "", "None", "of course"):
        with pytest.raises(ValueError, match=r"is not one of auto, on, off|expects bool"):
            either.read(wrong, source)
        with pytest.raises(ValueError, match="expects bool"):
            plain.read(wrong, source)


def test_numbers_of_numpy_and_paths():
    real, whole, text = setting("any"), setting("any", 1), setting("path", "")
    for value in (6e-4 * np.sqrt(2), np.float32(0.5), np.int64(3), np.array(0.25)):
        assert type(real.read(value, FILE)) is float and real.read(value, FILE) == value
    assert type(whole.read(np.int32(3), FILE)) is type(whole.read(np.float64(3), FILE)) is int
    assert setting("", True).read(np.bool_(False), FILE) is False
    assert text.read(Path("a") / "b", FILE) == os.path.join("a", "b")
    assert type(text.read(np.str_("a"), FILE)) is str
    for value in (np.zeros(2), np.float64(1.5), [1], 1j):
        with pytest.raises(ValueError, match="expects int"):
            whole.read(value, FILE)


@pytest.mark.parametrize("source", [COMMAND_LINE, FILE])
def test_home(monkeypatch, tmp_path, source):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    one, many = setting("path", "out"), setting("paths", "out")
    home = str(tmp_path)
    assert one.read("~/r", source) == many.read("~/r", source) == f"{home}/r"
    assert one.read("~", source) == home and one.read("a~/b", source) == "a~/b"
    assert one.read("~/a, b", source) == f"{home}/a, b"
    assert many.read("~/a, b ,~/c", source) == f"{home}/a,b,{home}/c"
    assert many.read("s=~/a, m = ~/b,l=c", source) == f"s={home}/a,m={home}/b,l=c"
    assert many.read("a:0.7,~/b:0.3", source) == f"a:0.7,{home}/b:0.3"
    (tmp_path / "a, b.txt").write_text("")
    assert many.read("~/a, b.txt", source) == f"{home}/a, b.txt"  # one file of this name
    assert setting("", "text").read("~/r", source) == "~/r"


def test_lists_escapes_and_quotes():
    assert setting("list", "").read(" .md, .py ,,", COMMAND_LINE) == ".md,.py"
    assert setting("list", "").read("'a, b'", COMMAND_LINE) == "a,b"
    assert setting("path", "").read("'my run'", COMMAND_LINE) == "my run"
    split_on = setting("escapes", "")
    assert split_on.read(r"\n\n", COMMAND_LINE) == "\n\n"
    assert split_on.read(r"\n", FILE) == r"\n", "Python has read its escapes"
    text = setting("", "\n")
    for typed in ('"To be"', "'hi'", r"\n", " a ", "~", "a, b"):
        assert text.read(typed, COMMAND_LINE) == typed


def test_escapes():
    assert unescape(r"\x41\u00fc\r\t\\n\q\x4") == "Aü\r\t\\n\\q\\x4"


@pytest.mark.parametrize("kind", ["path", "paths"])
def test_no_path_has_a_null_character(kind):
    with pytest.raises(ValueError, match="holds a null character, which no path can"):
        setting(kind, "").read("a\0b", FILE)
    assert setting("", "").read("a\0b", FILE) == "a\0b"
