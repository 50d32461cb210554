"""bonsai/training/adam.py: when a step is the kernel's, and that it is torch's else.

What the kernel computes is in test_triton_adam.py.
"""

import copy

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from bonsai.training import adam
from bonsai.training.adam import KernelAdamW, fastest_adamw, fits

CPU = torch.device("cpu")


def made(kind: type, dtype=torch.float32, **settings) -> torch.optim.Optimizer:
    """An optimizer of tensors in two groups."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((7, 5), (3,), (6, 4))]
    groups = [{"params": params[:2], "weight_decay": 0.1}, {"params": params[2:]}]
    return kind(groups, **{"lr": 0.01, "fused": True, **settings})


def params_of(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def give_gradients(optimizer: torch.optim.Optimizer, transposed: bool = False) -> None:
    noise = torch.Generator().manual_seed(1)
    for p in params_of(optimizer):
        p.grad = 100 * torch.randn(p.shape, generator=noise).to(p.dtype)
        if transposed and p.dim() == 2:
            p.grad = p.grad.T.contiguous().T


@pytest.fixture
def updates(monkeypatch) -> list:
    """What KernelAdamW would have the kernel do: (group, members, clip)."""
    seen = []
    monkeypatch.setattr(KernelAdamW, "update", lambda self, number, *given: seen.append(given))
    return seen


UNFIT = {  # steps that the kernel is not for: settings, and whether gradients lie otherwise
    "bfloat16": (dict(dtype=torch.bfloat16), False),
    "float64": (dict(dtype=torch.float64), False),
    "amsgrad": (dict(amsgrad=True), False),
    "maximize": (dict(maximize=True), False),
    "a rate that is a tensor": (dict(lr=torch.tensor(0.01)), False),
    "transposed gradients": ({}, True),
}


@pytest.mark.parametrize("max_norm", [0.0, 1.0])
@pytest.mark.parametrize("settings, transposed", UNFIT.values(), ids=UNFIT)
def test_a_step_that_it_is_not_for_is_torchs(updates, settings, transposed, max_norm):
    """Clipped first; then the state is torch's, too."""
    ours, theirs = made(KernelAdamW, **settings), made(torch.optim.AdamW, **settings)
    for _ in range(2):
        for each in (ours, theirs):
            give_gradients(each, transposed)
        norm = ours.clip_gradients(max_norm)
        of_torch = torch.nn.utils.clip_grad_norm_(params_of(theirs), max_norm or torch.inf)
        torch.testing.assert_close(norm, of_torch)
        ours.step(), theirs.step()
    torch.testing.assert_close(params_of(ours), params_of(theirs))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert not updates


@pytest.mark.parametrize("settings, transposed", [*UNFIT.values(), ({}, False)], ids=[*UNFIT, ""])
def test_hooks_of_a_step_are_called_once(updates, settings, transposed):
    """A step that is torch's and one of the kernel's; torch puts hooks around step() of a class."""
    made(adam.AdamW)  # from now on around that of torch's, too
    optimizer, calls = made(KernelAdamW, **settings), []
    hooks = (
        optimizer.register_step_pre_hook(lambda *args: calls.append("before")),
        optimizer.register_step_post_hook(lambda *args: calls.append("after")),
        register_optimizer_step_pre_hook(lambda *args: calls.append("before any")),
        register_optimizer_step_post_hook(lambda *args: calls.append("after any")),
    )
    give_gradients(optimizer, transposed)
    with torch.profiler.profile() as profile:
        optimizer.step()
    for hook in hooks:
        hook.remove()
    assert calls == ["before any", "before", "after", "after any"]
    names = [event.name for event in profile.events()]
    assert names.count("Optimizer.step#KernelAdamW.step") == 1
    assert bool(updates) == ((settings, transposed) == ({}, False))


def test_a_step_of_scaled_gradients_or_with_a_closure_is_torchs(updates):
    """As GradScaler has an optimizer divide gradients that it was not asked to."""
    ours, theirs = made(KernelAdamW), made(torch.optim.AdamW)
    for each in (ours, theirs):
        give_gradients(each)
        each.grad_scale, each.found_inf = torch.tensor(8.0), torch.tensor(0.0)
        each.step()
        each.grad_scale = None
        assert each.step(lambda: 7) == 7
    torch.testing.assert_close(params_of(ours), params_of(theirs))
    assert not updates


def test_the_kernel_is_told_what_there_is(updates):
    """Groups without a gradient are left out, and so are parameters; one step is clipped, not the
    next; until then gradients stay as they are."""
    optimizer = made(KernelAdamW)
    give_gradients(optimizer)
    first, second, third = params_of(optimizer)
    second.grad = None
    before = first.grad.clone()
    norm = optimizer.clip_gradients(1.0)
    torch.testing.assert_close(norm, torch.cat([first.grad.view(-1), third.grad.view(-1)]).norm())
    assert optimizer.step() is None and torch.equal(first.grad, before)
    third.grad = None
    optimizer.step()
    groups = optimizer.param_groups
    assert [(given[0] is groups[0], given[2]) for given in updates] == [
        (True, (norm, 1.0)), (False, (norm, 1.0)), (True, None)
    ]  # fmt: skip
    for (_, members, _), p in zip(updates, (first, third, first)):
        ((weight, grad, mean, square, count),) = members
        state = optimizer.state[p]
        assert weight is p and mean is state["exp_avg"] and square is state["exp_avg_sq"]
        assert grad is p.grad or p is third
        assert count is state["step"] and count == 0 and not mean.any() and not square.any()
    assert second not in optimizer.state
    optimizer.clip_gradients(1.0)
    optimizer.clip_gradients(0.0)
    optimizer.step()
    assert updates[-1][2] is None


def test_what_does_not_lie_as_a_weight_does_not_fit():
    """By its address the kernel would read what is not there, or elsewhere."""
    right = [torch.zeros(6, 4) for _ in range(4)] + [torch.zeros(())]
    assert fits([right]) and fits([])
    longer, meta = torch.zeros(6, 8), torch.zeros(6, 4, device="meta")
    wrong = [torch.zeros(4), longer[:, ::2], meta, torch.zeros(6, 4).to_sparse(), right[0].double()]
    for place in range(5):
        for other in wrong + [torch.zeros(2)]:
            changed = [*right[:place], other, *right[place + 1 :]]
            assert not fits([right, changed]), (place, other)


def test_a_copy_goes_on(updates):
    """Of an optimizer torch copies groups and state alone."""
    optimizer = made(KernelAdamW)
    give_gradients(optimizer)
    optimizer.clip_gradients(1.0)
    twin = copy.deepcopy(optimizer)
    give_gradients(twin)
    twin.step()
    assert type(twin) is KernelAdamW and updates[0][2] is None


def test_where_torchs_is_taken(monkeypatch):
    """On a CPU, and of what is no fused AdamW of torch's, or is on no device."""
    plain = made(torch.optim.AdamW)
    assert fastest_adamw(plain) is plain
    monkeypatch.setattr(adam, "has_kernel", lambda device: True)
    monkeypatch.setattr(adam, "refused", {CPU: ""})
    assert type(fastest_adamw(plain)) is KernelAdamW
    kinds = (
        made(torch.optim.AdamW, fused=None),
        torch.optim.AdamW([{"params": []}], fused=True),
        made(type("Another", (torch.optim.AdamW,), {})),
        torch.optim.SGD(params_of(plain), lr=0.1),
        fastest_adamw(plain),
    )
    for optimizer in kinds:
        assert fastest_adamw(optimizer) is optimizer


def test_the_kernels_has_the_groups_and_defaults_of_torchs(monkeypatch):
    monkeypatch.setattr(adam, "has_kernel", lambda device: True)
    monkeypatch.setattr(adam, "refused", {CPU: ""})
    plain = made(torch.optim.AdamW, betas=(0.8, 0.9), eps=1e-5)
    ours = fastest_adamw(plain)
    assert ours.state_dict() == plain.state_dict() and ours.defaults == plain.defaults
    assert params_of(ours) == params_of(plain) and ours._step_supports_amp_scaling
    assert not getattr(ours, "sharded", False)  # over processes DistributedDataParallel averages


@pytest.mark.parametrize("kind", ["wrong", "fails"])
def test_a_kernel_that_does_not_do_is_refused_in_one_line(kind, monkeypatch, capsys):
    """Once for a device, and the run's noise stays as it is."""

    def update(self, number, group, members, clip):
        if kind == "fails":
            raise RuntimeError("out of resource:\nregisters")
        for weight, *_ in members:
            weight.data += 0.01

    monkeypatch.setattr(adam, "has_kernel", lambda device: True)
    monkeypatch.setattr(adam, "refused", {})
    monkeypatch.setattr(KernelAdamW, "update", update)
    plain, state = made(torch.optim.AdamW), torch.get_rng_state()
    for _ in range(2):
        assert fastest_adamw(plain) is plain
    said = capsys.readouterr().err
    why = "RuntimeError out of resource" if kind == "fails" else "its weights differ from torch's"
    assert said.startswith(f"no AdamW kernel of ours on cpu, torch's is used, slower: {why}")
    assert said.count("\n") == 1 and torch.equal(state, torch.get_rng_state())
