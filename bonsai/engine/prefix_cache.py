"""The prefix cache: keys and values of earlier prompts, for prompts that begin alike."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from bonsai.models.cache import Cache
from bonsai.system.errors import UserError


class Known(NamedTuple):
    """What is kept of a prompt."""

    ids: np.ndarray  # its tokens
    row: Cache  # of one row
    logits: torch.Tensor  # after its last token


class Filled(NamedTuple):
    """A prompt that is in a row of a cache."""

    prompt: tuple[int, ...]
    row: int
    keep: bool  # remember it whatever the budget, until the next prompt is stored


class Prefixes:
    """Prompts with copies of their rows of the cache: together at most `budget` tokens. The least
    recently used ones are dropped first.

    One prompt may be held beyond the budget: one for which further answers still wait.
    """

    def __init__(self, budget: int):
        if budget < 0:
            raise UserError(f"prefix_cache={budget} must be at least 0")
        self.budget = budget
        self.rows: OrderedDict[tuple[int, ...], Known] = OrderedDict()  # by prompt
        self.held: tuple[int, ...] | None = None

    def nearest(self, prompt: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        """The known prompt that begins most like this one, and how many tokens they share."""
        best, length = (), 0
        for candidate, known in self.rows.items():
            alike = candidate[: length + 1] == prompt[: length + 1]  # else they share no more
            if alike and (n := shared(known.ids, np.array(prompt))) > length:
                best, length = candidate, n
        return best, length

    def restore(
        self,
        prompt: tuple[int, ...],
        row: Cache,
        least: int = 1,
        nearest: tuple[tuple[int, ...], int] | None = None,
    ) -> torch.Tensor | None:
        """Fill an empty row with the known beginning of `prompt`. Returns the prompt's last logits
        if all of it is known.

        Otherwise at least one token is left to compute, for its logits. least: the shortest
        beginning that is worth copying. nearest: the result of `nearest`, if it was called before.
        """
        best, length = nearest or self.nearest(prompt)
        if not length:
            return None
        known = self.rows[best]
        self.rows.move_to_end(best)
        if len(best) == len(prompt) == length:
            row.copy_row(0, known.row, 0, length)
            return known.logits
        length = min(length, len(prompt) - 1)
        if length >= least and (length == len(best) or known.row.shortens):
            row.copy_row(0, known.row, 0, length)
        return None

    def takes(self, prompt: tuple[int, ...], keep: bool) -> bool:
        """Whether `store` remembers a prompt."""
        return keep or len(prompt) <= self.budget

    def store(self, cache: Cache, filled: Sequence[Filled], logits: torch.Tensor) -> None:
        """Remember rows of a cache, one after another. logits: those at the end of each prompt."""
        left = dict.fromkeys(self.rows)  # the prompts that are remembered in the end, by last use
        new: dict[tuple[int, ...], int] = {}
        for prompt, row, keep in filled:
            self.held = prompt if keep else None
            if prompt not in left and self.takes(prompt, keep):
                for shorter in [p for p in left if p == prompt[: len(p)]]:
                    del left[shorter]  # the new one begins with it
                left[prompt], new[prompt] = None, row
            total = sum(map(len, left))
            for old in list(left):
                if total > self.budget and old != self.held:
                    total -= len(old)
                    del left[old]
        for old in [p for p in self.rows if p not in left or p in new]:  # new: it went, and is back
            del self.rows[old]
        for prompt, row in new.items():
            if prompt in left:  # only these are copied; if there is no memory, `rows` is without
                copy = cache.view(row, row + 1).clone(len(prompt))
                self.rows[prompt] = Known(np.array(prompt), copy, logits.clone())


def shared(a: np.ndarray, b: np.ndarray) -> int:
    """How many first tokens two prompts have in common."""
    n = min(len(a), len(b))
    unlike = a[:n] != b[:n]
    return int(unlike.argmax()) if unlike.any() else n
