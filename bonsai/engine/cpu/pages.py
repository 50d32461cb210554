"""Memory for weights in pages of 2 MiB.

A step reads every weight once. In pages of 4 KiB, each of which the processor has to look up, and
beyond which it does not look ahead, that takes a third longer.
"""

import mmap

import torch

PAGE = 2**21  # bytes of a large page
CHUNK = 32 * PAGE  # what is asked of the system at once
LINE = 64  # bytes that the processor reads at once


class LargePages:
    """Copies of CPU tensors side by side in large pages, where the system has them (Linux)."""

    def __init__(self):
        self.free = torch.empty(0, dtype=torch.uint8)  # what is left of the last chunk

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """A contiguous copy; the tensor itself where there are no large pages."""
        size = -(-tensor.nbytes // LINE) * LINE
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return tensor
        if size > len(self.free):
            private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory has small pages
            try:
                memory = mmap.mmap(-1, max(CHUNK, size) + PAGE, private)
                memory.madvise(mmap.MADV_HUGEPAGE)
            except OSError:  # a system without them, or without room for so much at once
                return tensor
            free = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the memory
            self.free = free[-free.data_ptr() % PAGE :]
        place, self.free = self.free[: tensor.nbytes], self.free[size:]
        return place.view(tensor.dtype).view(tensor.shape).copy_(tensor)
