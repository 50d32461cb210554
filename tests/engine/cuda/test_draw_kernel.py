"""bonsai/engine/cuda/draw_kernel.py against plain torch, by Triton's interpreter on a CPU."""

import pytest
import torch
from helpers.interpreted import interpreted

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
