"""Memory for weights in pages of 2 MiB.

A step reads every weight once. In pages of 4 KiB this takes a third longer: the processor has to
look up the address of each page, and does not prefetch beyond its end.
"""

import mmap

import torch

PAGE = 2**21  # bytes of a large page
CHUNK = 32 * PAGE  # bytes that are allocated at once
LINE = 64  # bytes of a cache line


class LargePages:
    """Copies of CPU tensors, side by side in large pages if the system has them (Linux)."""

    def __init__(self):
        self.free = torch.empty(0, dtype=torch.uint8)  # the unused part of the last chunk

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """A contiguous copy of the tensor; the tensor itself if there are no large pages."""
        size = -(-tensor.nbytes // LINE) * LINE
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return tensor
        if size > len(self.free):
            private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory gets small pages
            try:
                memory = mmap.mmap(-1, max(CHUNK, size) + PAGE, private)
                memory.madvise(mmap.MADV_HUGEPAGE)
            except OSError:  # no large pages here, or not enough memory for the chunk
                return tensor
            free = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the mapping alive
            self.free = free[-free.data_ptr() % PAGE :]
        place, self.free = self.free[: tensor.nbytes], self.free[size:]
        return place.view(tensor.dtype).view(tensor.shape).copy_(tensor)
