"""bonsai/training/triton_adam.py against torch's AdamW, by Triton's interpreter on a CPU.

That needs triton, which torch for CPUs does not bring; tests/benchmarks/test_gpu.py has the rest.
"""

import copy

import pytest
import torch
from helpers.interpreted import interpreted
from helpers.waiting import Waiting

from bonsai.system.runtime import setup
from bonsai.training import adam
from bonsai.training.adam import KernelAdamW, fastest_adamw
from bonsai.training.muon import Muon
from bonsai.training.optimizers import clip_gradients
from bonsai.training.orthogonal import POLAR_EXPRESS
from bonsai.training.settings import StepSettings
from bonsai.training.step import TrainingStep
from model import GPT, GPTConfig

SETTINGS = (
    dict(lr=0.01, weight_decay=0.1, betas=(0.9, 0.999), eps=1e-8),
    dict(lr=0.03, weight_decay=0.0, betas=(0.0, 0.95), eps=1e-10),
)
# of chunks of 64 and blocks of 16: one number, parts of a block, whole ones, several chunks, none
SHAPES = ((1,), (7, 5), (64,), (16, 8), (0,), (331,), (3, 64, 2), (15,))


@pytest.fixture(scope="module")
def kernel():
    """The module, with so small chunks that a tensor has several."""
    for module in interpreted("bonsai.training.triton_adam"):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in dict(CHUNK=64, BLOCK=16).items():
                patch.setattr(module, name, value)
            patch.setattr(adam, "has_kernel", lambda device: True)
            patch.setattr(adam, "refused", {torch.device("cpu"): ""})  # was tried, and may be used
            yield module


@pytest.fixture
def launches(kernel, monkeypatch) -> list:
    """The tables of all launches of a test."""
    seen, real = [], kernel.launch
    monkeypatch.setattr(kernel, "launch", lambda *given: seen.append(given[0]) or real(*given))
    return seen


def drawn(shape: tuple, seed: int, offset: int = 0) -> torch.Tensor:
    """Noise, 4 bytes times `offset` behind where memory is aligned."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    memory = torch.empty(noise.numel() + offset + 4)
    return memory[offset : offset + noise.numel()].view(shape).copy_(noise)


def made(kind: type, offset: int = 0) -> torch.optim.Optimizer:
    """An optimizer of tensors of all shapes in two groups."""
    params = [torch.nn.Parameter(drawn(s, i, offset)) for i, s in enumerate(SHAPES)]
    groups = [{"params": params[::2], **SETTINGS[0]}, {"params": params[1::2], **SETTINGS[1]}]
    return kind(groups, fused=True)


def params_of(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def train(optimizer, first: int, last: int, max_norm: float, broken: int = -1, offset=0) -> None:
    """Steps first ... last - 1; in one of them a gradient is not finite, in all one is missing."""
    params = params_of(optimizer)
    for step in range(first, last):
        for i, p in enumerate(params):
            p.grad = None if i == step else drawn(p.shape, 100 * step + i, offset)
        if step == broken:
            params[-1].grad[0], params[1].grad.view(-1)[:1] = torch.inf, torch.nan
        optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
        norm = clip_gradients(optimizer, max_norm)
        optimizer.found_inf = (~torch.isfinite(norm)).float()
        optimizer.step()


def assert_same(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    a, b = ([p.detach() for p in params_of(each)] for each in (ours, theirs))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), atol=1e-6, rtol=1e-5)


ALIGNED, CLIPPED = (0, 0), (1.0, -1)
KINDS = [(clip, broken, ALIGNED) for clip in (0.0, 1.0, 1e3) for broken in (-1, 0, 2)]
KINDS += [(*CLIPPED, offsets) for offsets in ((1, 0), (0, 3), (2, 2))]


@pytest.mark.parametrize("max_norm, broken, offsets", KINDS)
def test_torchs_adamw_after_its_clipping_agrees(launches, max_norm, broken, offsets):
    """Weights and state. offsets: of weights, of gradients, from aligned memory."""
    ours, theirs = made(KernelAdamW, offsets[0]), made(torch.optim.AdamW)
    train(theirs, 0, 5, max_norm, broken)
    train(ours, 0, 5, max_norm, broken, offsets[1])
    assert_same(ours, theirs)
    assert len(launches) == 5 * len(SETTINGS)


def test_a_step_that_is_not_finite_changes_nothing(kernel):
    ours = made(KernelAdamW)
    train(ours, 0, 2, 1.0)
    before = copy.deepcopy([params_of(ours), ours.state_dict()["state"]])
    train(ours, 2, 3, 1.0, broken=2)
    after = [params_of(ours), ours.state_dict()["state"]]
    torch.testing.assert_close(after, before, atol=0, rtol=0)


def test_where_nobody_looks_what_is_not_finite_spreads_as_with_torch(kernel):
    """Of a norm that is not a number no gradient stays one."""
    ours, theirs = made(KernelAdamW), made(torch.optim.AdamW)
    for each in (ours, theirs):
        params = params_of(each)
        for i, p in enumerate(params):
            p.grad = drawn(p.shape, i)
        params[0].grad.fill_(torch.nan)
        if each is ours:
            each.clip_gradients(1.0)
        else:
            torch.nn.utils.clip_grad_norm_(params, 1.0)
        each.step()
        assert all(p.isnan().all() for p in params)


@pytest.mark.parametrize("begins", [KernelAdamW, torch.optim.AdamW])
def test_a_run_goes_on_with_either(kernel, begins):
    (ends,) = {KernelAdamW, torch.optim.AdamW} - {begins}
    first, later, whole = made(begins), made(ends), made(ends)
    train(first, 0, 3, 1.0)
    train(whole, 0, 6, 1.0)
    with torch.no_grad():
        for p, now in zip(params_of(later), params_of(first)):
            p.copy_(now)
    later.load_state_dict(copy.deepcopy(first.state_dict()))
    train(later, 3, 6, 1.0)
    assert_same(later, whole)


def test_gradients_that_somebody_else_has_clipped_are_not_clipped_again(launches):
    """As by code for nanoGPT's optimizer."""
    ours, theirs = made(KernelAdamW), made(torch.optim.AdamW)
    for each in (ours, theirs):
        for i, p in enumerate(params_of(each)):
            p.grad = 100 * drawn(p.shape, i)
        torch.nn.utils.clip_grad_norm_(params_of(each), 1.0)
        each.step()
    assert_same(ours, theirs)
    assert len(launches) == len(SETTINGS)


@pytest.mark.parametrize("unscaled", [True, False])
def test_gradients_that_a_scaler_has_scaled(launches, unscaled):
    """It divides them before they are clipped; one whose scale was too high is no step. Where they
    are still to be divided torch does."""
    optimizers, scales = (made(KernelAdamW), made(torch.optim.AdamW)), []
    for each in optimizers:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        params = params_of(each)
        for step in range(3):
            for i, p in enumerate(params):
                p.grad = 8 * drawn(p.shape, 100 * step + i)
            if step == 1:
                params[-1].grad[3] = torch.inf
            scaler.scale(torch.zeros(()))  # makes its tensors
            if unscaled:
                scaler.unscale_(each)
                clip_gradients(each, 1.0)
            scaler.step(each)
            scaler.update(8.0)
        scales.append(scaler.get_scale())
    assert_same(*optimizers)
    assert len(launches) == (3 * len(SETTINGS) if unscaled else 0)
    assert all(s["step"] == 2 for s in optimizers[0].state.values())


def test_a_training_step_by_it(launches, monkeypatch):
    """Of a model, compared with torch's."""
    settings = StepSettings(learning_rate=1e-2, weight_decay=0.1, grad_clip=0.5)
    runtime, steps = setup("cpu", "float32", False), []
    # without biases: the keys' has no gradient but rounding's, and AdamW moves it as far as any
    shape = dict(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=16, bias=False)
    for has_kernel in (True, False):
        monkeypatch.setattr(adam, "has_kernel", lambda device, has=has_kernel: has)
        torch.manual_seed(0)
        model = GPT(GPTConfig(**shape))
        step = TrainingStep(model, settings, runtime)
        idx = torch.arange(9).repeat(4, 1)
        losses = [step(n, [(idx[:, :-1], idx[:, 1:])]).item() for n in range(4)]
        steps.append((losses, float(step.norm), list(model.parameters())))
    assert len(launches) == 4 * 2
    torch.testing.assert_close(*steps, atol=1e-5, rtol=1e-5)


def test_tensors_of_more_than_2_to_the_31_numbers(kernel):
    """All of it that there is in memory is the chunk that begins at number 2^31, of 40 numbers."""
    begin, count = 2**31, torch.tensor(2.0)
    weight, grad, mean, square = (drawn((64,), seed) for seed in range(4))
    square = square.abs()
    before, right = weight.clone(), torch.nn.Parameter(weight.clone())
    theirs = torch.optim.AdamW([right], **SETTINGS[0], fused=True)
    right.grad = grad
    theirs.state[right] = dict(step=count - 1, exp_avg=mean.clone(), exp_avg_sq=square.clone())
    theirs.step()
    starts = [t.data_ptr() - 4 * begin for t in (weight, grad, mean, square)]
    row = [*starts, count.data_ptr(), begin + 40, -begin // kernel.CHUNK]
    table = kernel.Table([], torch.tensor([row]), torch.zeros(1, dtype=torch.int32))
    kernel.launch(table, SETTINGS[0], torch.zeros(()))
    torch.testing.assert_close(weight[:40], right[:40].detach(), atol=1e-6, rtol=1e-6)
    assert torch.equal(weight[40:], before[40:])


def test_a_table_is_made_anew_where_something_has_moved(kernel):
    optimizer = made(KernelAdamW)
    train(optimizer, 10, 11, 1.0)
    first = optimizer.tables[0]
    optimizer.clip_gradients(1.0)
    optimizer.step()
    assert optimizer.tables[0] is first
    params = optimizer.param_groups[0]["params"]
    kept, params[1].grad = params[1].grad, torch.ones_like(params[1])
    optimizer.step()
    second = optimizer.tables[0]
    assert second is not first and second.owners is first.owners and kept is not None
    params[3].grad = None
    optimizer.step()
    assert len(optimizer.tables[0].owners) < len(first.owners)
    assert second.tensors.shape == (4, 7) and first.owners.tolist() == sorted(first.owners)


def test_a_step_waits_for_nothing(kernel, monkeypatch):
    optimizer = made(KernelAdamW)
    train(optimizer, 10, 11, 1.0)  # makes moments and tables
    monkeypatch.setattr(kernel, "launch", lambda *given: None)  # by the interpreter it does wait
    for p in params_of(optimizer):
        p.grad = torch.ones_like(p)
    with Waiting():
        optimizer.clip_gradients(1.0)
        optimizer.found_inf = torch.zeros(())
        optimizer.step()


@pytest.mark.parametrize("max_norm", [0.0, 1.0])
@pytest.mark.parametrize("broken", [-1, 0, 3])
def test_muons_other_parameters(launches, monkeypatch, max_norm, broken):
    """They are its, and its moments are torch's: a run goes on with either."""

    def muon(params) -> Muon:
        groups = [
            {"kind": "adamw", "params": params[i : i + 2], **SETTINGS[i // 2]} for i in (0, 2)
        ]
        matrices = dict(kind="muon", lr=0.02, weight_decay=0.1, cautious=True, momentum=0.95)
        groups.append({"params": params[4:], "coefficients": POLAR_EXPRESS, **matrices})
        return Muon(groups, torch.float32)

    def steps(params, optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            for i, p in enumerate(params):
                p.grad = drawn(p.shape, 100 * step + i)
            if step == broken:
                params[1].grad.view(-1)[0], params[4].grad[0, 0] = torch.inf, torch.nan
            norm = optimizer.clip_gradients(max_norm)
            optimizer.found_inf = (~torch.isfinite(norm)).float()
            optimizer.step()

    def made() -> tuple[list, Muon]:
        shapes = ((331,), (7, 5), (1,), (16, 8), (4, 4), (8, 4))
        params = [torch.nn.Parameter(drawn(s, i)) for i, s in enumerate(shapes)]
        return params, muon(params)

    ours, optimizer = made()
    later, second = made()
    assert type(optimizer.adam) is KernelAdamW
    with monkeypatch.context() as patch:
        patch.setattr(adam, "has_kernel", lambda device: False)
        theirs, other = made()
        assert not isinstance(other.adam, KernelAdamW)
    steps(theirs, other, 0, 3)
    for p, now in zip(later, theirs):
        p.data.copy_(now.detach())
    second.load_state_dict(other.state_dict())
    steps(theirs, other, 3, 6)
    assert not launches
    steps(ours, optimizer, 0, 6)
    steps(later, second, 3, 6)
    assert len(launches) == 2 * (6 + 3)
    for params, each in ((ours, optimizer), (later, second)):
        torch.testing.assert_close(params, theirs, atol=1e-5, rtol=1e-5)
        states = (each.state_dict()["state"], other.state_dict()["state"])
        torch.testing.assert_close(*states, atol=1e-5, rtol=1e-5)


@pytest.fixture
def untried(kernel, monkeypatch):
    """The module as it is, before it has been tried on a device."""
    for name, value in dict(CHUNK=8192, BLOCK=1024).items():
        monkeypatch.setattr(kernel, name, value)
    monkeypatch.setattr(adam, "refused", {})
    return kernel


def test_it_is_taken_where_it_gives_what_torch_gives(untried, capsys):
    plain, state = made(torch.optim.AdamW), torch.get_rng_state()
    ours = fastest_adamw(plain)
    assert type(ours) is KernelAdamW and not capsys.readouterr().err
    assert ours.state_dict() == plain.state_dict() and ours.defaults == plain.defaults
    assert torch.equal(state, torch.get_rng_state())


def test_one_that_gives_something_else_is_not(untried, capsys, monkeypatch):
    real = untried.launch

    def wrong(table, group, *rest):
        real(table, {**group, "lr": 1.01 * group["lr"]}, *rest)

    monkeypatch.setattr(untried, "launch", wrong)
    for _ in range(2):
        plain = made(torch.optim.AdamW)
        assert fastest_adamw(plain) is plain
    said = capsys.readouterr().err
    assert said.startswith("no AdamW kernel of ours on cpu") and said.count("\n") == 1
