"""Guesses at the next tokens, for steps that check several at once.

A one-token step waits for the weights to be read; reading them for a few tokens takes hardly
longer. So where an answer repeats what stands in its prompt or in itself, the tokens that followed
there are guessed, computed together, and kept as far as they are what would have been drawn anyway
(speculative decoding, Leviathan et al. 2023, with prompt lookup, Saxena 2023, in place of a small
model). The noise of a draw is known beforehand, so the tokens are those of one-token steps at any
temperature.
"""

SIZES = (6, 4, 3)  # tokens that have to be alike, the most convincing first


class Lookup:
    """What followed each run of tokens in one prompt and its answer, up to `most` tokens of it."""

    def __init__(self, most: int):
        self.most = most
        self.length = most  # of the next guess: short after mistakes
        self.ends: dict[tuple[int, ...], int] = {}  # run -> where it last ended
        self.known = 0  # runs that end up to here are in `ends`

    def guess(self, tokens: list[int], room: int) -> list[int]:
        """What may follow `tokens` (all so far, at each call more), at most `room` tokens."""
        for end in range(self.known + 1, len(tokens)):
            for n in SIZES:
                if n <= end:
                    self.ends[tuple(tokens[end - n : end])] = end
        self.known = max(self.known, len(tokens) - 1)
        for n in SIZES:
            if at := self.ends.get(tuple(tokens[-n:])):
                period = len(tokens) - at
                return [tokens[at + i % period] for i in range(min(self.length, room))]
        return []

    def learn(self, guessed: int, right: int) -> None:
        """Take note of how much of a guess was right: the next is about twice that long."""
        if guessed:
            self.length = min(self.most, max(1, 2 * right))
