"""Text that is safe to send: whole characters, and never part of a stop string."""

import codecs

from hypothesis import example, given
from hypothesis import strategies as st

from bonsai.engine.textstream import StopMatcher, TextStream

letters = st.text("ab", max_size=24)
stop_strings = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def cuts(data: st.DataObject, whole):
    """`whole` in pieces, some of them empty."""
    places = data.draw(st.lists(st.integers(0, len(whole)), max_size=8).map(sorted))
    return [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)])]


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """By trying every end: the text before the stop string that ends first; whether any does."""
    for end in range(len(text) + 1):
        ends = [s for s in stops if text[:end].endswith(s)]
        if ends:
            return text[: end - len(max(ends, key=len))], True
    return text, False


@given(letters, stop_strings, st.data())
def test_the_matcher_finds_what_a_search_finds(text, stops, data):
    matcher, sent = StopMatcher(stops), ""
    for piece in cuts(data, text):
        sent += matcher.feed(piece)
        if matcher.stopped:
            break
    else:
        sent += matcher.finish()
    assert (sent, matcher.stopped) == expected(text, stops)


@given(letters, stop_strings, st.data())
def test_nothing_more_is_held_back_than_needed(text, stops, data):
    """What is held is the longest end of the text that begins a stop string, no less and no more:
    so nothing that was sent has to be taken back."""
    matcher, seen, sent = StopMatcher(stops), "", ""
    for piece in cuts(data, text):
        seen += piece
        sent += matcher.feed(piece)
        if matcher.stopped:
            return
        held = [
            n for n in range(len(seen) + 1) if any(s.startswith(seen[-n:] * bool(n)) for s in stops)
        ]
        assert sent == seen[: len(seen) - max(held, default=0)]


def test_a_stop_string_behind_a_false_start():
    matcher = StopMatcher(["aab"])
    assert [matcher.feed(c) for c in "aaa"] == ["", "", "a"]
    assert matcher.feed("b!") == "" and matcher.stopped


@given(any_text, st.data())
def test_pieces_of_bytes_are_whole_characters(text, data):
    """However the bytes are cut into tokens, every piece is text and together they are the text."""
    tokens = cuts(data, text.encode())
    stream = TextStream(tokens.__getitem__)
    pieces = [stream.push(i) for i in range(len(tokens))]
    assert "".join(pieces) + stream.finish() == text
    assert stream.released == len(tokens)
    for i, piece in enumerate(pieces):  # as much as can be known at this point
        known = b"".join(tokens[: i + 1]).decode("utf-8", "ignore")
        assert "".join(pieces[: i + 1]) == known, piece


@given(st.lists(st.binary(max_size=4), max_size=10), stop_strings)
def test_any_bytes_become_text(tokens, stops):
    """Bytes that are no UTF-8 become U+FFFD, as when they are decoded at once."""
    stream = TextStream(tokens.__getitem__, stops)
    sent = ""
    for i in range(len(tokens)):
        sent += stream.push(i)
        if stream.stopped:
            break
    sent += stream.finish()
    whole = b"".join(tokens).decode("utf-8", "replace")
    assert (sent, stream.stopped) == expected(whole, stops)
    assert stream.sent == len(sent)


@given(any_text, st.data())
def test_offsets_say_where_tokens_begin(text, data):
    tokens = [t for t in cuts(data, text) if t]  # of whole characters
    stream = TextStream([t.encode() for t in tokens].__getitem__)
    for i in range(len(tokens)):
        stream.push(i)
    assert [text[a : a + len(t)] for a, t in zip(stream.offsets, tokens)] == tokens


def places(data: bytes) -> list[int]:
    """For each byte, which character of the text it is in, by where decoding all at once fails."""
    numbers, done = [], 0
    spans = []
    codecs.register_error("note", lambda e: (spans.append((e.start, e.end)), ("\ufffd", e.end))[1])
    data.decode("utf-8", "note")
    for start, end in [*spans, (len(data), len(data))]:
        for char in data[done:start].decode():
            numbers += [numbers[-1] + 1 if numbers else 0] * len(char.encode())
        numbers += [numbers[-1] + 1 if numbers else 0] * (end - start)
        done = end
    return numbers


PARTS = b"a|\xe6|\xe6\xbc|\xa2|\xf0\x9f|\x98\x80|\xff|\xef\xbf|\xbd|\xf0|\x80|\xc3\xa9".split(b"|")
PARTS += [
    b"\xed",
    b"\xa0",
    b"\xed\xa0",
    b"\xf4",
    b"\x90",
]  # no character goes on so
some_bytes = st.sampled_from(PARTS) | st.binary(min_size=1, max_size=3)


@given(st.lists(some_bytes, max_size=10))
@example([b"\xe6", b"a", b"b"])
@example([b"\xed\xa0", b"\x80", b"b"])
@example([b"\xed", b"\xa0\x80", b"b"])
def test_offsets_behind_broken_characters(tokens):
    """A token begins where its first byte's character does, also after one that broke off."""
    stream = TextStream(tokens.__getitem__)
    for i in range(len(tokens)):
        stream.push(i)
    stream.finish()
    begins = [len(b"".join(tokens[:i])) for i in range(len(tokens))]
    assert stream.offsets == [places(b"".join(tokens))[b] for b in begins]


@given(any_text.filter(bool), st.data())
def test_an_answer_begins_with_a_whole_character(text, data):
    """Also where the prompt ended within it."""
    data_bytes = text.encode()
    cut = data.draw(st.integers(0, len(data_bytes)))
    before, rest = data_bytes[:cut], data_bytes[cut:]
    stream = TextStream([rest].__getitem__, before=before)
    sent = stream.push(0) + stream.finish()
    assert before.decode("utf-8", "ignore") + sent == text


@given(st.lists(st.text("ab ", min_size=1, max_size=3), max_size=12), stop_strings)
def test_released_tokens_are_those_in_the_text(tokens, stops):
    """After a stop string: those that begin in what was sent. Before: those wholly in it."""
    stream = TextStream([t.encode() for t in tokens].__getitem__, stops)
    begin = 0
    for i, token in enumerate(tokens):
        stream.push(i)
        if stream.stopped:
            break
        whole = [a for a in range(i + 1) if len("".join(tokens[: a + 1])) <= stream.sent]
        assert stream.released == len(whole)
        begin += len(token)
    stream.finish()
    if stream.stopped:
        starts = [len("".join(tokens[:a])) for a in range(len(stream.offsets))]
        assert stream.released == sum(start < stream.sent for start in starts)
    else:
        assert stream.released == len(tokens)
