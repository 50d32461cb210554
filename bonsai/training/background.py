"""Checkpoints that a thread writes while training continues, from a copy in the host's memory.

Copies of a GPU's tensors take pinned memory, up to twice the size of a checkpoint, which the
process keeps for the next copy.
"""

import copy
import threading
from collections.abc import Callable, Iterator

import torch

from bonsai.planning.memory import GIB, out_of_memory
from bonsai.system.errors import one_line
from bonsai.system.host_memory import free_host_bytes
from bonsai.system.runtime import Runtime


class BackgroundWriter:
    """Writes in a thread of its own, one checkpoint at a time.

    An error in the thread is raised, once, by the next `check` or `wait`. say: is told, once, why
    a checkpoint could not be written in a thread.
    """

    def __init__(self, runtime: Runtime, say: Callable[[str], object] = lambda line: None):
        self.runtime, self.say = runtime, say
        self.held = 0  # bytes of the largest state that was copied
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def write(self, save: Callable[[dict], None], state: dict) -> None:
        """After `wait`, copy a state and call save(copy) in the thread. If there is no memory for
        the copy, call save(state) here."""
        self.wait()
        if why_not := self._start(save, state):
            self.say(f"training waits while a checkpoint is written: {why_not}")
            self.say = lambda line: None
            save(state)

    def _start(self, save: Callable[[dict], None], state: dict) -> str:
        """Start the thread. Returns why that is not possible, or ''."""
        try:
            size = sum(s.nbytes() for s in storages_in(state).values())
            if too_large := self._too_large(size):
                return too_large
            copied = on_host(state)
            self.runtime.synchronize()  # the copies of a GPU's tensors are only queued
            # no daemon: Python's end waits for it, and a file that was begun is finished
            self.thread = threading.Thread(target=self._run, args=(save, copied), name="saving")
            self.thread.start()
        except (RuntimeError, MemoryError) as e:
            self.thread = None
            # AcceleratorError: no memory can be pinned, or the GPU has failed, as `save` will say
            if not (out_of_memory(e) or isinstance(e, torch.AcceleratorError)):
                raise
            return one_line(str(e) or "out of memory")[:200]
        self.held = max(self.held, size)
        return ""

    def _too_large(self, size: int) -> str:
        """Why a state of so many bytes cannot be copied; '' if it can. torch rounds the size of
        each piece of pinned memory up to a power of two, and keeps it for the next copy."""
        if (need := 2 * (size - self.held)) <= 0:
            return ""
        if (free := free_host_bytes()) is None:
            return "this system does not say how much memory is free for a copy"
        if need <= free:
            return ""
        return f"a copy takes {need / GIB:.2f} GiB of this host's memory, {free / GIB:.2f} are free"

    def _run(self, save: Callable[[dict], None], state: dict) -> None:
        try:
            save(state)
        except BaseException as e:  # check() and wait() raise it
            self.error = e

    def check(self) -> None:
        """Raise the error of a write that has failed. Does not wait."""
        if self.thread is not None and not self.thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written. Raises the error of a write that has failed."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        error, self.error = self.error, None
        if error is not None:
            raise error


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """All tensors in nested dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)


def storages_in(state: dict) -> dict[int, torch.UntypedStorage]:
    """The memory of all tensors in a state, each piece once, by the key that torch.save uses."""
    storages = (tensor.untyped_storage() for tensor in tensors_in(state))
    return {storage._cdata: storage for storage in storages}


def on_host(state: dict) -> dict:
    """A deep copy of a state with all tensors on the host.

    torch.save writes the same for it as for the state: tensors that share memory do so in the copy,
    too. Copies from a GPU, into pinned memory, are only queued: wait for the device before use.
    """
    copies = {}
    for key, storage in storages_in(state).items():
        there = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        here = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=storage.is_cuda)
        copies[key] = here.copy_(there, non_blocking=True).untyped_storage()
    copied = {}  # deepcopy's memo: it takes what this has for an object's id, and copies the rest
    for t in tensors_in(state):
        whole = copies[t.untyped_storage()._cdata]
        shape = t.storage_offset(), t.size(), t.stride()
        copied[id(t)] = torch.empty(0, dtype=t.dtype).set_(whole, *shape)
    return copy.deepcopy(state, copied)
