"""Keys and values of prompts seen before, for prompts that begin alike."""

from collections import OrderedDict

import numpy as np
import torch

from bonsai.system.errors import UserError


class Prefixes:
    """Prompts with their rows of the cache, at most `budget` tokens; least recently used go first.

    One prompt may be held beyond the budget: that of answers which share a prefill and still wait.
    """

    def __init__(self, budget: int):
        if budget < 0:
            raise UserError(f"prefix_cache={budget} must be at least 0")
        self.budget = budget
        # prompt -> (the same as an array, row, logits)
        self.rows: OrderedDict[tuple[int, ...], tuple] = OrderedDict()
        self.held: tuple[int, ...] | None = None

    def restore(self, prompt: tuple[int, ...], row, least: int = 1) -> torch.Tensor | None:
        """Fill an empty row with what is known of `prompt`; its last logits if that is all of it.

        At least one token is left to compute where the logits are not known. least: tokens from
        which on a beginning is worth it.
        """
        ids, best, length = np.array(prompt), (), 0
        for known, (known_ids, _, _) in self.rows.items():
            if (n := shared(known_ids, ids)) > length:
                best, length = known, n
        if not length:
            return None
        _, known, logits = self.rows[best]
        self.rows.move_to_end(best)
        if len(best) == len(prompt) == length:
            row.copy_row(0, known, 0, length)
            return logits
        length = min(length, len(prompt) - 1)
        if length >= least:
            row.copy_row(0, known, 0, length)
        return None

    def takes(self, prompt: tuple[int, ...], keep: bool) -> bool:
        """Whether `store` remembers a prompt."""
        return keep or len(prompt) <= self.budget

    def store(self, prompt: tuple[int, ...], row, logits: torch.Tensor, keep: bool) -> None:
        """Remember a filled row. keep: whatever the budget, until the next call."""
        self.held = prompt if keep else None
        if prompt not in self.rows and self.takes(prompt, keep):
            kept = row.clone(len(prompt))
            for known in [p for p in self.rows if p == prompt[: len(p)]]:
                del self.rows[known]  # what they know is in the new one
            self.rows[prompt] = (np.array(prompt), kept, logits.clone())
        total = sum(map(len, self.rows))
        for known in list(self.rows):
            if total > self.budget and known != self.held:
                total -= len(known)
                del self.rows[known]


def shared(a: np.ndarray, b: np.ndarray) -> int:
    """How many first tokens two prompts have in common."""
    n = min(len(a), len(b))
    unlike = a[:n] != b[:n]
    return int(unlike.argmax()) if unlike.any() else n
