"""bonsai/engine/cuda/attention.py: which attention goes through the kernel."""

import torch

from bonsai.engine.cuda import attention
from bonsai.engine.cuda.attention import attend_one_query
from model import attention as plain


def test_without_a_kernel_all_is_as_before(monkeypatch):
    """On a CPU, where nothing asks for the kernels."""
    monkeypatch.setattr(attention, "kernels", lambda: 1 / 0)
    q, k, v = torch.randn(2, 3, 1, 16), *torch.randn(2, 2, 3, 9, 16)
    mask = torch.zeros(2, 1, 1, 9).masked_fill(torch.arange(9) > 5, -torch.inf)
    attend, calls = attend_one_query(lambda *args: (calls.append(args), plain(*args))[1]), []
    for seen in (mask, mask == 0, None):
        given = (q, k, v, seen, 0, 0.3, 0.0)
        assert torch.equal(attend(*given), plain(*given)) and calls.pop() == given
