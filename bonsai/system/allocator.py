"""Keeps the memory that a training step has freed in the process, for the next step."""

import ctypes
import os
import sys

# of malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = (2**30, 32 * 2**20)  # bytes; older versions of glibc refuse the first


def keep_freed_memory() -> bool:
    """Tell glibc's malloc not to give freed memory back to the system; returns whether it will.

    Every step allocates the same tensors again. If their memory is given back, its pages have to be
    mapped and cleared again: thousands of page faults, up to a third of a small step. The peak
    memory of a run stays the same. Limits of malloc that the environment sets are not changed.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    kept = any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST)
    return bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1)) and kept
