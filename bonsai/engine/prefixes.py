"""Keys and values of prompts seen before, for prompts that begin alike."""

from collections import OrderedDict
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


class Prefixes:
    """Prompts with their rows of the cache, at most `budget` tokens; least recently used go first.

    One prompt may be held beyond the budget: that of answers which share a prefill and still wait.
    """

    def __init__(self, budget: int):
        if budget < 0:
            raise UserError(f"prefix_cache={budget} must be at least 0")
        self.budget = budget
        self.rows: OrderedDict[tuple[int, ...], Known] = OrderedDict()  # by prompt
        self.held: tuple[int, ...] | None = None

    def restore(self, prompt: tuple[int, ...], row: Cache, least: int = 1) -> torch.Tensor | None:
        """Fill an empty row with what is known of `prompt`; its last logits if that is all of it.

        Otherwise at least one token is left to compute, for its logits. least: tokens from which on
        it is worth to copy a beginning.
        """
        ids, best, length = np.array(prompt), (), 0
        for candidate, known in self.rows.items():
            if (n := shared(known.ids, ids)) > length:
                best, length = candidate, n
        if not length:
            return None
        known = self.rows[best]
        self.rows.move_to_end(best)
        if len(best) == len(prompt) == length:
            row.copy_row(0, known.row, 0, length)
            return known.logits
        length = min(length, len(prompt) - 1)
        if length >= least:
            row.copy_row(0, known.row, 0, length)
        return None

    def takes(self, prompt: tuple[int, ...], keep: bool) -> bool:
        """Whether `store` remembers a prompt."""
        return keep or len(prompt) <= self.budget

    def store(self, prompt: tuple[int, ...], row: Cache, logits: torch.Tensor, keep: bool) -> None:
        """Remember a filled row. keep: whatever the budget, until the next call."""
        self.held = prompt if keep else None
        if prompt not in self.rows and self.takes(prompt, keep):
            kept = row.clone(len(prompt))
            for shorter in [p for p in self.rows if p == prompt[: len(p)]]:
                del self.rows[shorter]  # what it has is in the new one
            self.rows[prompt] = Known(np.array(prompt), kept, logits.clone())
        total = sum(map(len, self.rows))
        for old in list(self.rows):
            if total > self.budget and old != self.held:
                total -= len(old)
                del self.rows[old]


def shared(a: np.ndarray, b: np.ndarray) -> int:
    """How many first tokens two prompts have in common."""
    n = min(len(a), len(b))
    unlike = a[:n] != b[:n]
    return int(unlike.argmax()) if unlike.any() else n
