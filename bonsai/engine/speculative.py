"""Guesses at the next tokens, for steps that check several at once.

A one-token step spends its time reading the weights; computing a few tokens with them takes hardly
longer. So several tokens are guessed, computed together, and kept up to the first one that would
not have been drawn anyway (speculative decoding, Leviathan et al. 2023). Because the noise of a
draw is known beforehand, the tokens equal those of one-token steps at any temperature.

Two things can guess: the text itself (Lookup), and the model with int8 weights (Draft).
"""

import torch

from bonsai.engine.prefill_decode import decode_one_token
from bonsai.engine.sampling import Row, sample_next
from bonsai.models.cache import Cache

SIZES = (6, 4, 3)  # lengths of a run of tokens to look up, the most convincing first


class Lookup:
    """Guesses what followed the last tokens where they occurred before, in the prompt or the answer
    (prompt lookup, Saxena 2023). Helps if an answer repeats parts of its prompt or of itself."""

    def __init__(self, most: int):
        self.most = self.length = most  # length of the next guess: short after mistakes
        self.ends: dict[tuple[int, ...], int] = {}  # run of tokens -> where it last ended
        self.known = 0  # `ends` has the runs that end at this place or before

    def guess(self, row: Row, cache: Cache | None, room: int) -> list[int]:
        """At most `room` tokens that may follow those of `row`, of which there are more at each
        call. cache: as a Draft takes it; not used."""
        tokens = [*row.prompt, *row.tokens]
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
        """Note how much of a guess was right: the next guess may be twice that long."""
        if guessed:
            self.length = min(self.most, max(1, 2 * right))


class Draft:
    """Guesses what a faster model draws with the same noise: the same model with int8 weights.

    It shares the cache. It reads the keys and values of the checked tokens; those that it writes
    for its guesses are overwritten by the check.
    """

    def __init__(self, model: torch.nn.Module, most: int):
        self.model = model
        self.most = self.length = most  # length of the next guess

    def guess(self, row: Row, cache: Cache, room: int) -> list[int]:
        """At most `room` tokens that may follow those of `row`. cache: has all but the last one."""
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
        """Note how much of a guess was right. A mistake shortens the next guess by one only, as it
        says little about the next."""
        more = 2 if right == guessed else -1
        self.length = min(self.most, max(1, self.length + more))
