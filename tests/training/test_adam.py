"""bonsai/training/adam.py: AdamW as a pure function is torch's, in Muon's hands too."""

import copy

import pytest
import torch
from helpers.waiting import Waiting

from bonsai.training.adam import adamw_in_place, moments_of, rates_after
from bonsai.training.muon import POLAR_EXPRESS, Muon

GROUPS = [
    dict(kind="adamw", lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8),
    dict(kind="adamw", lr=0.03, weight_decay=0.0, betas=(0.8, 0.95), eps=1e-10),
]
MATRICES = dict(kind="muon", lr=0.02, weight_decay=0.1, cautious=True, momentum=0.95)


def made() -> tuple[list[torch.nn.Parameter], Muon]:
    """Tensors in two groups beside a matrix, and their optimizer."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((7, 5), (3,), (6, 4), (4, 4))]
    groups = [
        {"params": params[:2], **GROUPS[0]},
        {"params": params[2:3], **GROUPS[1]},
        {"params": params[3:], "coefficients": POLAR_EXPRESS, **MATRICES},
    ]
    return params, Muon(groups, torch.float32)


def train(params: list, optimizer: Muon, first: int, last: int, broken: int = -1) -> None:
    """Steps first ... last - 1; in one of them a gradient is not finite."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        if step == broken:
            params[1].grad[0], params[2].grad[0, 0] = torch.inf, torch.nan
        norm = optimizer.clip_gradients(1.0)
        optimizer.found_inf = (~torch.isfinite(norm)).float()
        optimizer.step()


@pytest.mark.parametrize("broken", [-1, 0, 3])
def test_torchs_adamw_agrees(broken):
    """Where a gradient is not finite neither changes anything, the count of steps included."""
    (ours, optimizer), (theirs, other) = made(), made()
    assert optimizer.adamw_in_place is None  # on a CPU it is torch's
    optimizer.adamw_in_place = adamw_in_place
    for first, last in ((0, 1), (1, 4), (4, 10)):
        before = copy.deepcopy([ours, optimizer.state_dict()["state"]])
        train(ours, optimizer, first, last, broken)
        train(theirs, other, first, last, broken)
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
        if (first, broken) == (0, 0):
            assert all(torch.equal(a, b) for a, b in zip(before[0], ours))
    states = [o.state_dict()["state"] for o in (optimizer, other)]
    for a, b in zip(*(s.values() for s in states)):
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-6)


def test_a_run_goes_on_with_either():
    """Moments that one has saved are the other's."""
    for begins in (True, False):
        (params, optimizer), (whole, other) = made(), made()
        optimizer.adamw_in_place = adamw_in_place if begins else None
        train(params, optimizer, 0, 3)
        train(whole, other, 0, 6)
        later, second = made()
        for p, now in zip(later, params):
            p.data.copy_(now.detach())
        second.load_state_dict(optimizer.state_dict())
        second.adamw_in_place = None if begins else adamw_in_place
        train(later, second, 3, 6)
        for a, b in zip(later, whole):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_one_graph_for_all_tensors():
    """Rates and counts are tensors, and lengths are open: that they move compiles nothing anew."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    params, optimizer = made()
    how = dict(backend=backend, fullgraph=True, dynamic=True)
    optimizer.adamw_in_place = torch.compile(adamw_in_place, **how)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
        train(params, optimizer, step, step + 1)
    assert len(graphs) == 1


def test_a_step_waits_for_nothing():
    """Least of all for the norm, with which the host would wait for the whole backward pass."""
    params, optimizer = made()
    optimizer.adamw_in_place = adamw_in_place
    train(params, optimizer, 0, 1)  # makes the moments
    with Waiting():
        train(params, optimizer, 1, 2)


def test_counts_of_a_checkpoint_come_to_the_weights():
    p = torch.zeros(3, device="meta")
    state = {"step": torch.ones(()), "exp_avg": p, "exp_avg_sq": p}
    moments = moments_of(state, p)
    assert moments.step.device.type == "meta" and state["step"] is moments.step
    rates = rates_after([moments_of({}, torch.zeros(3))], GROUPS[0], torch.ones(()))
    assert rates.lr == rates.decay == rates.fresh == rates.fresh_square == 0
    assert rates.mean_share > 0 and rates.square_share > 0  # nothing is divided by 0
