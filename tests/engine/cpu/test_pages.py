"""bonsai/engine/cpu/pages.py: copies of weights in large pages, and where there are none."""

import errno
import mmap

import pytest
import torch

from bonsai.engine.cpu import pages as memory
from bonsai.engine.cpu.pages import PAGE, LargePages


def test_copies_lie_side_by_side_in_large_pages():
    pages = LargePages()
    first, second = torch.randn(1000, 3), torch.arange(77, dtype=torch.int8)
    a, b, c = pages.copy(first), pages.copy(second.view(7, 11).T), pages.copy(first.bfloat16())
    assert torch.equal(a, first) and torch.equal(b, second.view(7, 11).T)
    assert torch.equal(c, first.bfloat16()) and b.is_contiguous()
    if hasattr(mmap, "MADV_HUGEPAGE"):
        assert a.data_ptr() % PAGE == 0 and b.data_ptr() - a.data_ptr() == 12032
    large = pages.copy(torch.ones(40 * PAGE, dtype=torch.uint8))  # more than a chunk
    assert large.sum() == 40 * PAGE and torch.equal(a, first)


def test_without_large_pages_the_tensor_itself_is_taken(monkeypatch):
    x = torch.randn(10)
    monkeypatch.delattr(memory.mmap, "MADV_HUGEPAGE", raising=False)
    assert LargePages().copy(x) is x


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="needs large pages")
def test_without_memory_for_large_pages_the_tensor_itself_is_taken(monkeypatch):
    """A chunk is far larger than the weights of a small model."""

    def refused(*args):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    x = torch.randn(10)
    monkeypatch.setattr(memory.mmap, "mmap", refused)
    assert LargePages().copy(x) is x
