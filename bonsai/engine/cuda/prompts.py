"""Prompts read by captured graphs, several at once.

One short prompt does not fill a GPU: many of them take hardly longer. So the prompts that are
admitted in a step are first collected, and then those of a padded size are read by one graph. It
reads them in a cache of its own, from which each goes to its slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch

from bonsai.engine.cuda.graphs import Graphs
from bonsai.engine.cuda.rows import to_device
from bonsai.engine.phases import power_of_two, prefill
from bonsai.engine.prefixes import Filled, Prefixes
from bonsai.models.cache import KVCache

PROMPT, STRIDE = 32, 256  # tokens, see `padded`
LEAST = 32  # tokens in common from which on it pays to copy what is known of a prompt
LONGEST = 2048  # tokens that a graph reads, of all its prompts together


@dataclass
class Unread:
    """Where a prompt goes."""

    slots: list[int]  # one for each answer to it
    keep: bool  # another answer to it waits for a slot, see Prefixes.store


class Prompts:
    """Prompts on their way into the slots of a cache.

    What `prefixes` knows of a prompt is in its slot after `add`, what has to be read only after
    `read`. On a CPU the same functions are called again instead of replayed, as in steps.py.
    """

    def __init__(
        self, model: torch.nn.Module, cache: KVCache, prefixes: Prefixes, graphs: Graphs
    ) -> None:
        self.model, self.cache, self.prefixes, self.graphs = model, cache, prefixes, graphs
        self.unread: dict[tuple[int, ...], Unread] = {}  # in the order of their last slots
        self.beginnings: set[tuple[int, ...]] = set()  # the first LEAST tokens of each
        self.longest = min(cache.length, LONGEST)  # prompt that a graph reads
        rows = min(len(cache.lengths), -(-LONGEST // self.longest))
        # graphs read `ids` into `staging`: rows of any size, one after another in the same memory
        self.staging = model.new_cache(rows, self.longest, cache.k.dtype)
        most = min(rows * self.longest, LONGEST)
        self.ids = torch.zeros(most, dtype=torch.int64, device=cache.k.device)

    def add(self, slot: int, tokens: tuple[int, ...], keep: bool) -> None:
        """Have tokens, at least one, read into an empty slot. keep: as Prefixes.store."""
        if tokens in self.unread:
            slots = self.unread.pop(tokens).slots
            self.unread[tokens] = Unread([*slots, slot], keep)
            return
        if tokens[:LEAST] in self.beginnings and any(self.helps(p, tokens) for p in self.unread):
            self.read()
        known = 0
        nearest = self.prefixes.nearest(tokens)
        if nearest[1]:  # else no row is needed yet: a view takes a while
            row = self.empty_row(slot)
            if self.prefixes.restore(tokens, row, LEAST, nearest) is not None:
                return
            known = row.lengths[0]
        if not known and len(tokens) <= self.longest:
            self.unread[tokens] = Unread([slot], keep)
            self.beginnings.add(tokens[:LEAST])
            return
        # too long for a graph, or partly known: read by itself, as its launches hardly count
        self.read()  # prefixes get prompts in the order in which they came
        if not known:
            row = self.empty_row(slot)
        rest = to_device([tokens[known:]], torch.int64, self.ids.device)
        prefill(self.model, rest, row)
        self.remember([Filled(tokens, slot, keep)])

    def clear(self) -> None:
        """Forget what is unread."""
        self.unread, self.beginnings = {}, set()

    def helps(self, unread: tuple[int, ...], tokens: tuple[int, ...]) -> bool:
        """Whether a prompt, once it is read, is a known beginning of these tokens."""
        stored = self.prefixes.takes(unread, self.unread[unread].keep)
        return stored and unread[:LEAST] == tokens[:LEAST] and len(unread) >= LEAST

    def read(self) -> None:
        """Read what is unread."""
        unread = self.unread
        self.clear()
        of_size: dict[int, list[tuple[int, ...]]] = {}
        for tokens in unread:
            of_size.setdefault(min(padded(len(tokens)), self.longest), []).append(tokens)
        for size, prompts in of_size.items():
            most = len(self.ids) // size
            for begin in range(0, len(prompts), most):
                some = prompts[begin : begin + most]
                some.sort(key=lambda tokens: -len(unread[tokens].slots))  # with most answers first
                done = self.read_together(size, some)
                lengths = [len(tokens) for tokens in some]
                # the first slots of all rows, the second ones of those that have two, ...
                for nth in zip_longest(*(unread[tokens].slots for tokens in some)):
                    slots = [slot for slot in nth if slot is not None]
                    self.cache.copy_rows(slots, done, lengths[: len(slots)])
        self.remember([Filled(tokens, to.slots[0], to.keep) for tokens, to in unread.items()])

    def read_together(self, size: int, prompts: Sequence[tuple[int, ...]]) -> KVCache:
        """Read prompts of up to `size` tokens; each is a row of the cache that is returned. Rows
        and tokens are padded to the graph's; a prompt does not see what comes after it."""
        rows = power_of_two(len(prompts), 1, len(self.ids) // size)
        ids = np.zeros((rows, size), dtype=np.int64)
        for row, tokens in zip(ids, prompts):
            row[: len(tokens)] = tokens
        self.ids[: rows * size].copy_(torch.from_numpy(ids).flatten(), non_blocking=True)
        self.graphs.run(("prompts", rows, size), lambda: self.compute(rows, size))
        return self.staging.reshaped(rows, size)

    def compute(self, rows: int, size: int) -> None:
        """The first tokens of `ids`, as rows of this size, go through the model."""
        ids = self.ids[: rows * size].view(rows, size)
        self.model(ids, cache=self.staging.reshaped(rows, size))

    def remember(self, filled: Sequence[Filled]) -> None:
        """Prompts are in their slots: later ones may begin like them."""
        no_logits = self.ids[:0]  # a step draws after one token more
        self.prefixes.store(self.cache, filled, no_logits)

    def empty_row(self, slot: int) -> KVCache:
        row = self.cache.view(slot, slot + 1)
        row.lengths = [0]
        return row


def padded(n: int) -> int:
    """How many tokens a graph reads for a prompt of n: a power of two, or above STRIDE a multiple
    of STRIDE, as there it is the tokens that take the time."""
    return power_of_two(n, PROMPT, STRIDE) if n <= STRIDE else -(-n // STRIDE) * STRIDE
