"""Token ids become text that is safe to show: whole characters, and never part of a stop string.

    stream = TextStream(token_bytes, stops=["\\n\\n"])
    for token in tokens:
        print(stream.push(token), end="")
        if stream.stopped:
            break
    print(stream.finish())

However the text is cut into tokens, the pieces together are the text up to its first stop string.
"""

import codecs
from collections.abc import Callable, Sequence


class StopMatcher:
    """Finds the stop string that ends first in a text that comes in pieces (of those that end
    together, the longest).

    One state per stop string, as in Knuth, Morris & Pratt 1977: how many of its characters the text
    ends with. "aab" is found in "aaab", and what could still become one is held back.
    """

    def __init__(self, stops: Sequence[str]):
        assert all(stops), "a stop string is empty"
        self.stops = sorted(stops, key=len, reverse=True)
        self.borders = [_borders(stop) for stop in self.stops]
        self.states = [0] * len(self.stops)
        self.held = ""  # the end of the text so far that may be the beginning of a stop string
        self.stopped = False

    def feed(self, text: str) -> str:
        """The text that can be sent now; sets `stopped` where a stop string was completed."""
        assert not self.stopped, "the text has ended"
        if not self.stops:
            return text
        for i, char in enumerate(text):
            for number, (stop, borders) in enumerate(zip(self.stops, self.borders)):
                state = self.states[number]
                while state and stop[state] != char:
                    state = borders[state]
                state += stop[state] == char
                self.states[number] = state
                if state == len(stop):
                    self.stopped = True
                    whole, self.held = self.held + text[: i + 1], ""
                    return whole[: -len(stop)]
        whole, hold = self.held + text, max(self.states)
        self.held = whole[len(whole) - hold :]
        return whole[: len(whole) - hold]

    def finish(self) -> str:
        """What was held back: the text ended without a stop string."""
        held, self.held = self.held, ""
        return held


def _borders(stop: str) -> list[int]:
    """For each length k below len(stop), the longest proper prefix that stop[:k] also ends with.

    >>> _borders("aab")
    [0, 0, 1]
    """
    borders, k = [0, 0], 0
    for char in stop[1:-1]:
        while k and stop[k] != char:
            k = borders[k]
        k += stop[k] == char
        borders.append(k)
    return borders[: len(stop)]


def _count(data: bytes) -> int:
    """Characters of bytes that nothing follows."""
    return len(data.decode("utf-8", "replace"))


class TextStream:
    """The text of one answer as its tokens come.

    token_bytes: the bytes of a token id.
    before: bytes of the prompt. If they end within a character, the answer begins with the whole
        character.

    `offsets[i]` is where in the text token i begins, in characters; `released` says how many tokens
    have all of their text among what push and finish returned.
    """

    def __init__(
        self, token_bytes: Callable[[int], bytes], stops: Sequence[str] = (), before: bytes = b""
    ):
        self.token_bytes = token_bytes
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.decoder.decode(before[-8:])  # more than a character; what is whole in it was sent
        self.matcher = StopMatcher(stops)
        self.offsets: list[int] = []
        self.ends: list[int] = []  # how much text must have been sent for a token to be complete
        self.decoded = 0  # characters decoded so far
        self.sent = 0  # how many of them were returned
        self.released = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self.matcher.stopped

    def push(self, token: int, match: bool = True) -> str:
        """The text that can be sent after one more token. match: look for stop strings in it."""
        data = self.token_bytes(token)
        broken = self._broken_off(data)
        text = self.decoder.decode(data)
        self.offsets.append(self.decoded + broken)  # after the U+FFFD for what came before
        self.decoded += len(text)
        # a token that ends within a character is complete when that character is
        self.ends.append(self.decoded + _count(self.decoder.getstate()[0]))
        return self._send(self.matcher.feed(text) if match else text)

    def _broken_off(self, data: bytes) -> int:
        """As how many U+FFFD the bytes that the decoder waits with end, where they do not go on in
        `data`; 0 where they do. It waits with ED A0, too, which can become no character."""
        begun = self.decoder.getstate()[0]
        try:
            (begun + data[:4]).decode()
        except UnicodeDecodeError as e:
            return _count(begun) if begun and data and e.start == 0 and e.end <= len(begun) else 0
        return 0

    def finish(self) -> str:
        """What was held back. Half a character at the end becomes U+FFFD."""
        if self.stopped:
            return ""
        rest = self.decoder.decode(b"", final=True)
        self.decoded += len(rest)
        text = self.matcher.feed(rest)
        if not self.stopped:
            text += self.matcher.finish()
        text = self._send(text)
        if not self.stopped:
            self.released = len(self.offsets)
        return text

    def _send(self, text: str) -> str:
        self.sent += len(text)
        # of a text that was cut, the tokens that are in it at least in part
        bounds = self.offsets if self.stopped else self.ends
        while self.released < len(bounds) and (
            bounds[self.released] < self.sent + (not self.stopped)
        ):
            self.released += 1
        return text
