"""bonsai/training/eager.py: AdamW without torch's wrappers does the same. What they would load:
tests/programs/test_start.py."""

import copy

import pytest
import torch

from bonsai.training.eager import AdamW


@pytest.mark.parametrize("fused", [False, True])
def test_without_its_wrappers_it_does_the_same(fused):
    first, ends = torch.linspace(-1, 1, 20).view(4, 5), []
    for make in (torch.optim.AdamW, AdamW):
        p = torch.nn.Parameter(first.clone())
        groups = [{"params": [p], "weight_decay": 0.2}]
        optimizer = make(groups, lr=0.1, betas=(0.8, 0.9), eps=1e-3, fused=fused)
        for step in range(6):
            if step == 3:  # goes on from what it has saved
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = make(groups, lr=1.0, fused=fused)
                optimizer.load_state_dict(state)
            (p**3).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert p.grad is None and torch.is_grad_enabled()
        ends.append(p.detach())
    assert torch.equal(*ends) and not torch.equal(ends[0], first)
