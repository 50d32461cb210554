"""bonsai/models/loss_kernel.py: which way a loss goes, and what it gives without the kernel."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from bonsai.models import loss_kernel
from bonsai.models.loss_kernel import HALF, losses, plain_losses, product_later, summed_loss

V, N = 101, 23


def given(dtype=torch.float32, second: bool = True):
    """Logits, targets and those of a second loss with its weight; some of each are ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(N, V, generator=generator)).to(dtype)
    targets, after = torch.randint(V, (2, N), generator=generator)
    targets[::4] = after[::6] = -1
    return logits, targets, *((after, torch.tensor(0.5)) if second else (None, None))


def by_autograd(logits, targets, after, further, cap: float):
    """Losses and gradient in float32, by nothing of ours."""
    x = logits.float().requires_grad_()
    bent = cap * torch.tanh(x / cap) if cap else x
    found = F.cross_entropy(bent, targets, ignore_index=-1, reduction="none")
    total = found.sum()
    if after is not None:
        total = total + further * F.cross_entropy(bent, after, ignore_index=-1, reduction="sum")
    return found.detach(), torch.autograd.grad(total, x)[0]


@pytest.mark.parametrize("cap", [0.0, 2.0, 15.0])
@pytest.mark.parametrize("second", [False, True])
def test_plain_losses_and_their_gradient_in_the_logits_place(cap, second, monkeypatch):
    monkeypatch.setattr(loss_kernel, "PART", 5 * V)  # the last part has three rows
    arguments = given(second=second)
    want, gradient = by_autograd(*arguments, cap)
    logits = arguments[0].clone()
    alone = plain_losses(logits, *arguments[1:], cap, False)
    assert torch.equal(logits, arguments[0])
    found = plain_losses(logits, *arguments[1:], cap, True)
    for loss in (alone, found):
        torch.testing.assert_close(loss, want, rtol=1e-6, atol=1e-6)
    assert (logits - gradient).norm() < 1e-5 * gradient.norm()
    assert loss.shape == (N,) and loss.dtype == torch.float32


@pytest.mark.parametrize("gradient", [True, False])
def test_operators_say_what_they_do(gradient):
    """Their shapes without values, that they change no argument, and autograd's part."""
    logits, targets, after, further = given()
    x, weight = logits[:, :8].contiguous(), logits[:12, :8].contiguous()
    targets, after = targets % 12, after % 12
    x.requires_grad_(gradient)
    weight.requires_grad_(gradient)
    told = (x, weight, targets, after, further, 15.0, torch.float32, gradient)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(summed_loss, told, test_utils=tests)
    torch.library.opcheck(product_later, (x.detach(), weight.detach().T, further), test_utils=tests)


def test_what_needs_no_gradient_has_no_product(monkeypatch):
    """Say the head of a model with adapters elsewhere."""
    logits, targets, *_ = given()
    x, weight = logits[:, :8].requires_grad_(), logits[:12, :8].contiguous()
    products = []
    monkeypatch.setattr(
        loss_kernel, "product_later", lambda a, b, scale: products.append(1) or a @ b
    )
    told = (targets % 12, None, None, 0.0, torch.float32, True)
    summed_loss(x, weight, *told)[0].backward()
    assert len(products) == 1 and weight.grad is None
    want = F.cross_entropy(x.detach() @ weight.T, targets % 12, reduction="sum")
    assert summed_loss(x, weight, *told)[0].item() == pytest.approx(want.item(), rel=1e-6)


# ---- with a kernel, in whose place plain torch stands ----


@pytest.fixture
def kernel(monkeypatch):
    """In the place of triton_loss: its launch can be replaced, `calls` has the shapes it got."""

    def launch(logits, *rest):
        module.calls.append(tuple(logits.shape))
        return plain_losses(logits, *rest)

    module = SimpleNamespace(launch=launch, calls=[])
    monkeypatch.setitem(sys.modules, "bonsai.models.triton_loss", module)
    monkeypatch.setattr(loss_kernel, "has_kernel", lambda device: True)
    monkeypatch.setattr(loss_kernel, "checked", set())
    monkeypatch.setattr(loss_kernel, "refused", set())
    return module


@pytest.mark.parametrize("cap", [0.0, 0.5, 15.0])
@pytest.mark.parametrize("dtype", HALF)
def test_a_kernel_is_taken_and_checked_once(kernel, dtype, cap, capsys):
    state = torch.get_rng_state()
    for gradient in (True, False):
        for _ in range(3):
            losses(*given(dtype), cap, gradient)
    assert kernel.calls.count((N, V)) == 6 and len(kernel.calls) == 8
    assert not loss_kernel.refused and not capsys.readouterr().err
    assert torch.equal(state, torch.get_rng_state())


def test_logits_in_float32_are_torchs(kernel):
    losses(*given(), 0.0, True)
    assert not kernel.calls


@pytest.mark.parametrize("kind", ["fails", "wrong loss", "wrong gradient", "lost row"])
def test_a_kernel_that_does_not_do_is_refused_in_one_line(kernel, kind, capsys):
    """And plain torch is taken for all from then on."""

    def broken(logits, *rest):
        if kind == "fails":
            raise RuntimeError("out of resource:\nshared memory")
        before = logits[-1].clone()
        found = plain_losses(logits, *rest)
        if kind == "wrong gradient":
            logits *= 1.1
        if kind == "lost row":
            logits[-1] = before
        return found + 0.05 if kind == "wrong loss" else found

    kernel.launch = broken
    for cap in (0.0, 15.0):
        arguments = given(torch.bfloat16)
        want, gradient = by_autograd(*arguments, cap)
        torch.testing.assert_close(losses(*arguments, cap, True), want, rtol=1e-5, atol=1e-5)
        assert (arguments[0] - gradient).norm() < 0.01 * gradient.norm()
    said = capsys.readouterr().err
    assert said.startswith("no fused loss on cpu") and said.count("\n") == 1


def test_without_cuda_there_is_none():
    assert not loss_kernel.has_kernel(torch.device("cpu"))
