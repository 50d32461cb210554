"""The training batches, as a pure function of (data, seed, step).

So a run that is resumed sees the batches that it would have seen, and no state of a random
generator has to be saved.
"""

import math
import queue
import threading
from collections.abc import Iterator

import numpy as np
import torch

from bonsai.data.dataset import Mixture
from bonsai.data.split import Split
from bonsai.system.errors import UserError
from bonsai.system.hashing import GAMMA, MIX1


class Batches:
    """Which windows belong to each step, and their inputs and targets.

    rows: windows in one optimizer step, over all processes together.
    ramp: number of first steps that have fewer rows: a quarter in the first half of them, one half
        in the second.
    order: 'random' draws windows with replacement, like nanoGPT; 'epoch' takes every window once
        per pass, shuffled, on a grid that is shifted from pass to pass. In a mixture each row draws
        its data set by weight; 'epoch' then only means that no window of a data set comes twice in
        one pass over it.
    noise: the share of the inputs (not of the targets) that are replaced by random ids below
        vocab_size, by others in each pass (Xie et al. 2017, arXiv 1703.02573).
    """

    def __init__(
        self,
        data: Mixture,
        block_size: int,
        rows: int,
        seed: int,
        order: str = "random",
        ramp: int = 0,
        noise: float = 0.0,
        vocab_size: int = 0,
    ):
        if order not in ("random", "epoch"):
            raise UserError(f"batch_order={order} is not one of random, epoch")
        if not 0 <= noise < 1:
            raise UserError(f"token_noise={noise} must be at least 0 and below 1")
        self.parts = [part.split("train") for part in data.parts]
        self.masked = any(part.mask_files for part in self.parts)
        self.weights = np.cumsum([part.weight for part in data.parts])
        self.T, self.rows, self.seed, self.order = block_size, rows, seed, order
        self.ramp, self.noise, self.vocab_size = ramp, noise, vocab_size

    def rows_at(self, step: int) -> int:
        """Rows of a step."""
        return self.rows // ramped(step, self.ramp)

    def rows_before(self, step: int) -> int:
        """Rows of all steps before this one."""
        quarter, half = min(step, -(-self.ramp // 2)), min(step, self.ramp)
        return (
            quarter * (self.rows // 4)
            + (half - quarter) * (self.rows // 2)
            + (step - half) * self.rows
        )

    def starts(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """For each row of a step: the number of its data set, and the token at which its window
        begins."""
        rng = np.random.default_rng((self.seed, step))
        rows = self.rows_at(step)
        which = np.zeros(rows, dtype=np.int64)
        if len(self.parts) > 1:
            which = np.searchsorted(self.weights[:-1], rng.random(rows), side="right")
        if self.order == "random":
            places = [self._places(part) for part in self.parts]
            starts = rng.integers(0, np.array(places)[which])
            strides = np.array([part.row_length or 1 for part in self.parts])
            return which, starts * strides[which]
        index = np.arange(rows) + self.rows_before(step)
        starts = np.zeros(rows, dtype=np.int64)
        for p, part in enumerate(self.parts):
            starts[which == p] = self._epoch_starts(part, p, index[which == p])
        return which, starts

    def _places(self, part: Split) -> int:
        """The number of places (tokens, or rows of data of rows) at which a window can begin."""
        if part.row_length:
            return len(part) // part.row_length
        return len(part) - self.T  # so that the last one leaves a target for every input

    def _epoch_starts(self, part: Split, p: int, index: np.ndarray) -> np.ndarray:
        """Where the windows with numbers `index` begin, in an endless sequence of shuffled passes
        over data set number p."""
        windows = self._places(part) if part.row_length else (len(part) - 1) // self.T
        shifts = not part.row_length and windows > 1
        windows -= shifts  # leaves room for the shift
        starts = np.empty_like(index)
        for epoch in np.unique(index // windows):
            key = np.random.default_rng((self.seed, p, int(epoch))).integers(0, 2**32, 5, np.uint64)
            here = index // windows == epoch
            place = shuffled(index[here] % windows, windows, key[:4])
            shift = int(key[4] % np.uint64(self.T)) if shifts else 0
            starts[here] = place * (part.row_length or self.T) + shift
        return starts

    def rows_of(self, step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets (len(rows), T) of the given rows of a step."""
        which, starts = (a[rows] for a in self.starts(step))
        x = np.empty((len(rows), self.T), dtype=np.int64)
        y = np.empty((len(rows), self.T), dtype=np.int64)
        for p in np.unique(which):
            x[which == p], y[which == p] = self.parts[p].windows(starts[which == p], self.T)
        if self.noise:
            for i, row in enumerate(rows):
                rng = np.random.default_rng((self.seed, step, int(row)))
                replaced = rng.random(self.T) < self.noise
                x[i, replaced] = rng.integers(0, self.vocab_size, replaced.sum())
        return x, y

    def divisors(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list:
        """For each micro-batch of this process a number by which its mean loss is to be divided.

        The quotients are summed, and the processes average their sums: the result is the mean over
        all targets of the step. If every token is a target, the number is how many micro-batches
        this process has. With masks a micro-batch is weighted by its number of targets, and one
        without any is divided by infinity. All this follows from the data, without waiting for the
        device or for other processes.
        """
        n = self.rows_at(step) // batch_size
        share = range(rank, n, world_size)
        if not self.masked:
            return [len(share)] * len(share)
        which, starts = self.starts(step)
        targets = np.zeros(n, dtype=np.int64)
        for m in range(n):
            rows = slice(m * batch_size, (m + 1) * batch_size)
            for p in np.unique(which[rows]):
                here = starts[rows][which[rows] == p]
                targets[m] += self.parts[p].targets(here, self.T)
        total = int(targets.sum()) / world_size
        return [total / int(targets[m]) if targets[m] else math.inf for m in share]


def ramped(step: int, ramp: int) -> int:
    """By what to divide in the first `ramp` steps: 4 in their first half, then 2; after them 1."""
    return 4 if 2 * step < ramp else 2 if step < ramp else 1


def shuffled(index: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Where a random permutation of 0 ... n - 1 sends each index, without storing the permutation.

    A Feistel network of four rounds permutes the numbers below the next power of four. Applying it
    again until the value is below n makes it a permutation of those below n (cycle walking, Black &
    Rogaway 2002). Memory does not grow with n.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    out = index.astype(np.uint64)
    todo = np.ones(len(out), dtype=bool)
    while todo.any():
        a, b = out[todo] >> half, out[todo] & low
        for k in key:
            mixed = (b + k) * np.uint64(GAMMA)  # wraps around, as it should
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(MIX1)
            a, b = b, a ^ (mixed >> np.uint64(32)) & low
        out[todo] = a << half | b
        todo = out >= n
    return out.astype(np.int64)


def prefetch(
    batches: Batches,
    step: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    pin: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """This process's micro-batches (x, y), each (batch_size, T) int64, from `step` on, for ever.

    A process has rows_at(step) / (batch_size world_size) of them in a step. Its number m takes
    batch_size rows of the step, beginning with row (m world_size + rank) batch_size: the data of a
    step do not depend on how many processes share it. A thread reads two micro-batches ahead; pin:
    into pinned memory, from which copies to a GPU need not be waited for. An error in the thread is
    raised where its batch would have been used.
    """
    ready: queue.Queue = queue.Queue(maxsize=2)
    stop = threading.Event()

    def wanted() -> bool:
        return not stop.is_set() and threading.main_thread().is_alive()

    def put(item) -> None:
        while wanted():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def read() -> None:
        try:
            s = step
            while wanted():
                for m in range(batches.rows_at(s) // (batch_size * world_size)):
                    first = (m * world_size + rank) * batch_size
                    x, y = batches.rows_of(s, np.arange(first, first + batch_size))
                    if y.max() < 0:  # no target: the mean loss would be NaN, even over infinity
                        y = x  # any targets will do, as it is divided by infinity: see divisors
                    pair = torch.from_numpy(x), torch.from_numpy(y)
                    put(tuple(t.pin_memory() for t in pair) if pin else pair)
                s += 1
        except BaseException as e:  # raised below, where the batches are used
            put(e)

    # not a daemon: one that is inside torch when the interpreter ends would abort the process
    thread = threading.Thread(target=read, name="batches")
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
