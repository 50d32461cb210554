"""Prefill with captured graphs, for several prompts at once.

One short prompt does not use all of a GPU; several take hardly longer. So the prompts that are
admitted in a step are collected, and one graph reads all those of the same padded size. It writes
their keys and values to a cache of its own, from which they are copied to the prompts' slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch

from bonsai.engine.cuda.graphs import Graphs
from bonsai.engine.cuda.rows import to_device
from bonsai.engine.prefill_decode import power_of_two, prefill
from bonsai.engine.prefix_cache import Filled, Prefixes
from bonsai.models.cache import KVCache

PROMPT, STRIDE = 32, 256  # tokens, see `padded`
LEAST = 32  # the fewest common tokens for which copying a known beginning is worth it
LONGEST = 2048  # the most tokens that a graph reads, in all its prompts together


@dataclass
class Unread:
    """The slots of a prompt that waits to be read."""

    slots: list[int]  # one for each answer to it
    keep: bool  # whether another answer to it waits for a slot, see Prefixes.store


class Prompts:
    """Collects prompts and reads them into the slots of a cache.

    If `prefixes` knows a prompt, it is in its slot after `add`; else it may be there only after
    `read`. On a CPU the functions are called again instead of replayed, as in steps.py.
    """

    def __init__(
        self, model: torch.nn.Module, cache: KVCache, prefixes: Prefixes, graphs: Graphs
    ) -> None:
        self.model, self.cache, self.prefixes, self.graphs = model, cache, prefixes, graphs
        self.unread: dict[tuple[int, ...], Unread] = {}  # in the order of their last slots
        self.beginnings: set[tuple[int, ...]] = set()  # the first LEAST tokens of each
        self.longest = min(cache.length, LONGEST)  # the longest prompt that a graph reads
        rows = min(len(cache.lengths), -(-LONGEST // self.longest))
        # Graphs read `ids` and write to `staging`; rows of any size use the same memory in turn
        self.staging = model.new_cache(rows, self.longest, cache.k.dtype)
        most = min(rows * self.longest, LONGEST)
        self.ids = torch.zeros(most, dtype=torch.int64, device=cache.k.device)

    def add(self, slot: int, tokens: tuple[int, ...], keep: bool) -> None:
        """Read tokens, at least one, into an empty slot, now or at the next `read`. keep: see
        Prefixes.store."""
        if tokens in self.unread:
            slots = self.unread.pop(tokens).slots
            self.unread[tokens] = Unread([*slots, slot], keep)
            return
        if tokens[:LEAST] in self.beginnings and any(self.helps(p, tokens) for p in self.unread):
            self.read()
        known = 0
        nearest = self.prefixes.nearest(tokens)
        if nearest[1]:  # else no row is needed yet; making a view takes some time
            row = self.empty_row(slot)
            if self.prefixes.restore(tokens, row, LEAST, nearest) is not None:
                return
            known = row.lengths[0]
        if not known and len(tokens) <= self.longest:
            self.unread[tokens] = Unread([slot], keep)
            self.beginnings.add(tokens[:LEAST])
            return
        # Too long for a graph, or partly known: it is read alone, without a graph. For long
        # prompts the time of launches hardly matters
        self.read()  # so that prompts are remembered in the order in which they came
        if not known:
            row = self.empty_row(slot)
        rest = to_device([tokens[known:]], torch.int64, self.ids.device)
        prefill(self.model, rest, row)
        self.remember([Filled(tokens, slot, keep)])

    def clear(self) -> None:
        """Forget the unread prompts."""
        self.unread, self.beginnings = {}, set()

    def helps(self, unread: tuple[int, ...], tokens: tuple[int, ...]) -> bool:
        """Whether an unread prompt, once it is read, will save work for these tokens."""
        stored = self.prefixes.takes(unread, self.unread[unread].keep)
        return stored and unread[:LEAST] == tokens[:LEAST] and len(unread) >= LEAST

    def read(self) -> None:
        """Read the unread prompts."""
        unread = self.unread
        self.clear()
        of_size: dict[int, list[tuple[int, ...]]] = {}
        for tokens in unread:
            of_size.setdefault(min(padded(len(tokens)), self.longest), []).append(tokens)
        for size, prompts in of_size.items():
            most = len(self.ids) // size
            for begin in range(0, len(prompts), most):
                some = prompts[begin : begin + most]
                # Prompts with the most slots come first: then each copy below takes the first rows
                some.sort(key=lambda tokens: -len(unread[tokens].slots))
                done = self.read_together(size, some)
                lengths = [len(tokens) for tokens in some]
                # copies to the first slots of all prompts, then to the second ones if any, ...
                for nth in zip_longest(*(unread[tokens].slots for tokens in some)):
                    slots = [slot for slot in nth if slot is not None]
                    self.cache.copy_rows(slots, done, lengths[: len(slots)])
        self.remember([Filled(tokens, to.slots[0], to.keep) for tokens, to in unread.items()])

    def read_together(self, size: int, prompts: Sequence[tuple[int, ...]]) -> KVCache:
        """Read prompts of up to `size` tokens; returns a cache with a row for each. The numbers of
        rows and tokens are padded to a graph's; no prompt sees the padding that follows it."""
        rows = power_of_two(len(prompts), 1, len(self.ids) // size)
        ids = np.zeros((rows, size), dtype=np.int64)
        for row, tokens in zip(ids, prompts):
            row[: len(tokens)] = tokens
        self.ids[: rows * size].copy_(torch.from_numpy(ids).flatten(), non_blocking=True)
        self.graphs.run(("prompts", rows, size), lambda: self.compute(rows, size))
        return self.staging.reshaped(rows, size)

    def compute(self, rows: int, size: int) -> None:
        """Run the model on the first tokens of `ids`, as rows of this size."""
        ids = self.ids[: rows * size].view(rows, size)
        self.model(ids, cache=self.staging.reshaped(rows, size))

    def remember(self, filled: Sequence[Filled]) -> None:
        """Store prompts that are in their slots, for later ones that begin alike."""
        no_logits = self.ids[:0]  # not needed: a step reads a prompt's last token, then draws
        self.prefixes.store(self.cache, filled, no_logits)

    def empty_row(self, slot: int) -> KVCache:
        row = self.cache.view(slot, slot + 1)
        row.lengths = [0]
        return row


def padded(n: int) -> int:
    """How many tokens a graph reads for a prompt of n: a power of two up to STRIDE; above it a
    multiple of STRIDE, because there each padding token takes time."""
    return power_of_two(n, PROMPT, STRIDE) if n <= STRIDE else -(-n // STRIDE) * STRIDE
