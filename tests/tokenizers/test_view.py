"""bonsai/tokenizers/view.py: tokens in a terminal and on a page that needs no other file."""

from itertools import pairwise

from helpers.html_text import TextOf
from hypothesis import given, settings
from hypothesis import strategies as st

from bonsai.tokenizers import ByteTokenizer
from bonsai.tokenizers.view import colours, html_page, show, terminal


def test_tokens_in_the_terminal():
    own = {"byte": ByteTokenizer()}
    assert terminal("a é\n|", own, colour=False, ids=True) == (
        "byte: 6 tokens for 6 bytes, 1.00 bytes per token\na|·|\\xc3|\\xa9|↵|\n\\|\n"
        "97 32 195 169 10 124"
    )
    coloured = terminal("ab\n", own)
    assert coloured.count("\x1b[30;48;5;") == coloured.count("\x1b[0m") == 3
    assert "0 tokens for 0 bytes" in terminal("", own)
    assert "1 token for 1 byte" in terminal("a", own)
    assert show(b" \t\r\n\x00\xff") == "·→␍↵\\x00\\xff"


@given(st.lists(st.integers(0, 10)))
def test_neighbours_differ_in_colour(ids):
    chosen = colours(ids, 3)
    assert len(chosen) == len(ids) and all(a != b for a, b in pairwise(chosen))


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_a_page_is_whole_and_stands_alone(text):
    page = html_page([text], {"<byte>": ByteTokenizer()}, title="<&>")
    parsed = TextOf(page)
    assert parsed.open == [] and parsed.links == [] and "<script" not in page
    assert "".join(show(bytes([b])) for b in text.encode()).replace("↵", "") in (
        parsed.text.replace("↵\n", "").replace("↵", "")
    )
