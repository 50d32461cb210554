"""bonsai/engine/cuda/draw_kernel.py against plain torch, by Triton's interpreter on a CPU."""

import pytest
import torch
from helpers.interpreted import interpreted

from bonsai.engine.cuda.kernels import check_draw, plain_draw
from bonsai.engine.sampling import noise
from bonsai.system.hashing import splitmix_tensor


@pytest.fixture(scope="module")
def kernels():
    yield from interpreted("bonsai.engine.cuda.draw_kernel")


@pytest.mark.parametrize("m", [7, 200, 1000, 2500])
@pytest.mark.parametrize("named", [True, False])
def test_a_draw_is_that_of_the_engine(kernels, m, named):
    n, generator = 100, torch.Generator().manual_seed(m)
    numbers = torch.randint(-(2**63), 2**63 - 1, (n, 6), generator=generator)
    keys, steps = numbers[:, 2], numbers[:, 1] % 1000
    columns = torch.stack((keys, steps), dim=1)  # as the columns of a table
    keys, steps = columns[:, 0], columns[:, 1]
    logits = 2 * torch.randn(n, m, generator=generator)
    logits[:, 3] = -torch.inf  # filtered out
    ids = torch.randint(50304, (n, m), generator=generator) if named else None
    places = torch.arange(m).expand(n, m) if ids is None else ids
    best = logits + noise(splitmix_tensor(keys, steps)[:, None], places)
    want = places.gather(1, best.argmax(1, keepdim=True))[:, 0]
    assert kernels.draw(logits, ids, keys, steps).tolist() == want.tolist()


def drawn(kernels, m: int, top_k: list[int], halves: bool) -> tuple[list, list]:
    """A draw of each k by the kernels and by plain torch."""
    n, generator = len(top_k), torch.Generator().manual_seed(m)
    ints = torch.randint(-(2**62), 2**62, (n, 6), generator=generator)
    ints[:, 3] = torch.tensor(top_k)
    floats = 0.3 + torch.rand(n, 5, generator=generator)
    floats[:, 2] = torch.tensor([-torch.inf, -2.0])[torch.arange(n) % 2]
    logits = 3 * torch.randn(n, m + 3, generator=generator)
    if halves:  # many are equal
        logits = logits.to(torch.bfloat16).float()
    logits = logits[:, :m]  # as of a vocabulary with padding
    ids = torch.arange(m).expand(n, -1)
    of_rows = ints[:, 2], ints[:, 0], floats[:, 1], ints[:, 3], floats[:, 2]
    want = plain_draw(logits, ids, *of_rows)
    return kernels.draw(logits, None, *of_rows).tolist(), want.tolist()


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("m, top_k", [(5, [1, 2, 0, 4]), (65, [1, 20, 64, 0]), (2500, [200, 2400])])
def test_a_draw_among_those_that_a_row_keeps(kernels, m, top_k, halves):
    got, want = drawn(kernels, m, top_k, halves)
    assert got == want


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("k", [1, 9, 17, 40, 65, 90])
def test_the_largest_may_be_where_they_are_not_looked_for_first(kernels, monkeypatch, k, halves):
    """Of 16 lanes at most 64 logits are looked at: some are missed, and with more than 64 to keep
    they cannot be enough."""
    monkeypatch.setattr(kernels, "LANES", 16)
    monkeypatch.setattr(kernels, "WARPS", 1)
    got, want = drawn(kernels, 100, [k] * 2, halves)
    assert got == want


def test_the_check_before_they_are_used_passes(kernels):
    check_draw(kernels.draw, torch.device("cpu"))
