"""Guesses at the next tokens, for steps that check several at once.

A one-token step waits for the weights to be read; reading them for a few tokens takes hardly
longer. So tokens are guessed, computed together, and kept as far as they are what would have been
drawn anyway (speculative decoding, Leviathan et al. 2023). The noise of a draw is known beforehand,
so the tokens are those of one-token steps at any temperature.

Two things can guess: the text itself, and the model's own weights in int8.
"""

import torch

from bonsai.engine.phases import decode_one_token
from bonsai.engine.sampling import Row, sample_next

SIZES = (6, 4, 3)  # tokens that have to be alike, the most convincing first


class Lookup:
    """What followed each run of tokens in one prompt and its answer (prompt lookup, Saxena 2023):
    where an answer repeats what stands in its prompt or in itself."""

    def __init__(self, most: int):
        self.most = self.length = most  # of the next guess: short after mistakes
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


class Draft:
    """What a faster model would draw, with the same noise.

    The model: the same with its weights in int8. It reads the keys and values of the checked
    tokens, and what it writes after them the check writes anew.
    """

    def __init__(self, model: torch.nn.Module, most: int):
        self.model = model
        self.most = self.length = most  # of the next guess

    def guess(self, row: Row, cache, room: int) -> list[int]:
        """What may follow the tokens of `row`, at most `room`; cache: of all but the last."""
        guess, lengths = [], list(cache.lengths)
        while len(guess) < min(self.length, room):
            so_far = row.extended(guess)
            last = (so_far.tokens or row.prompt)[-1]
            idx = torch.tensor([[last]], device=cache.k.device)
            (token,) = sample_next(decode_one_token(self.model, idx, cache), [so_far]).tolist()
            guess.append(token)
            if token in row.params.stop_tokens:
                break
        cache.lengths = lengths
        return guess

    def learn(self, guessed: int, right: int) -> None:
        """Take note of how much of a guess was right. A mistake says little about the next."""
        more = 2 if right == guessed else -1
        self.length = min(self.most, max(1, self.length + more))
