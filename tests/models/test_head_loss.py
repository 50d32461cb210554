"""The loss in chunks, and by a kernel's operator: that of the whole logits, its gradients too.

On a CPU the operator is plain torch; here it takes float32, too, to be compared to the last digits.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from bonsai.models import head_loss as module
from bonsai.models import loss_kernel
from bonsai.models.head_loss import chunked_head_loss, kernel_head_loss
from bonsai.models.kernels import to_device
from bonsai.models.table import build_model
from model import GPT, GPTConfig, head_loss

V, C, N = 101, 24, 37
CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("ours", [chunked_head_loss, kernel_head_loss])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Five rows at a time, from the first logit on."""
    monkeypatch.setattr(module, "MOST", {"cpu": 5 * V})
    monkeypatch.setattr(module, "HALF", (*module.HALF, torch.float32))
    monkeypatch.setattr(loss_kernel, "PART", 7 * V)


def model_of(cap: float = 0.0, tie: bool = False) -> GPT:
    torch.manual_seed(0)
    config = GPTConfig(16, V, 1, 2, C, logit_softcap=cap, tie_head=tie)
    model = GPT(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)  # so that the cap bends and the softmax is not flat
    return model


def rows(ignored=()) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, N, C, generator=generator, requires_grad=True)
    targets = torch.randint(V, (1, N), generator=generator)
    targets[0, list(ignored)] = -1
    return x, targets


def results(loss_of, model, x, targets, dtype=torch.float32, scale=1.0):
    x.grad = model.lm_head.weight.grad = None
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = loss_of(model, x, targets)
    (scale * loss).backward()
    return loss.detach(), x.grad, model.lm_head.weight.grad


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@BOTH
@pytest.mark.parametrize("cap", [0.0, 2.0, 15.0])
@pytest.mark.parametrize("ignored", [(), (0, 7, 36), range(5, 10), range(1, N)])
def test_it_is_the_loss_of_the_whole_and_so_are_its_gradients(ours, cap, ignored):
    model, (x, targets) = model_of(cap), rows(ignored)
    want = results(head_loss, model, x, targets, scale=3.0)
    loss, dx, dw = results(ours, model, x, targets, scale=3.0)
    assert loss.item() == pytest.approx(want[0].item(), rel=1e-6)
    assert distance(dx, want[1]) < 1e-5 and distance(dw, want[2]) < 1e-5
    assert not dx[0, list(ignored)].any()  # what is ignored moves nothing
    with torch.no_grad():
        assert ours(model, x, targets).item() == pytest.approx(loss.item(), rel=1e-6)


@BOTH
@pytest.mark.parametrize("ignored", [(), (1, 7, 36), range(5, 30)])
@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_a_second_loss_adds_to_the_gradients_alone(ours, ignored, dtype, error):
    """Of the token after next, in rows of their own: not across their ends."""
    model, (x, targets) = model_of(15.0), rows(ignored)
    x = x.detach()[:, 1:].reshape(3, 12, C).requires_grad_()
    targets = targets[:, 1:].reshape(3, 12)
    alone = results(ours, model, x, targets, dtype)
    model.further = torch.tensor(0.4)
    want = results(head_loss, model, x, targets, dtype)
    loss, dx, dw = results(ours, model, x, targets, dtype)
    assert loss.item() == pytest.approx(want[0].item(), rel=1e-6 if error < 1e-3 else 1e-3)
    assert loss.item() == alone[0].item()
    assert distance(dx, want[1]) < error and distance(dw, want[2]) < error
    if not ignored:
        assert distance(dx, alone[1]) > 0.05
    with torch.no_grad():
        value = ours(model, x, targets).item()
    assert value == pytest.approx(loss.item(), rel=1e-6 if error < 1e-3 else 0.01)


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cap", [0.0, 15.0])
def test_in_half_precision_it_is_as_near_to_the_truth(ours, dtype, cap):
    model, (x, targets) = model_of(cap), rows()
    truth = results(head_loss, copy.deepcopy(model).double(), *rows_in_double(x, targets))
    whole = results(head_loss, model, x, targets, dtype)
    found = results(ours, model, x, targets, dtype)
    for a, b, c in zip(found, whole, truth):
        assert a.dtype == b.dtype
        assert distance(a.double(), c) < 1.5 * distance(b.double(), c) + 1e-3


def rows_in_double(x, targets):
    return x.detach().double().requires_grad_(), targets


@BOTH
def test_small_gradients_do_not_vanish_in_float16(ours):
    """Of a mean over many targets the unscaled ones are below what float16 can say."""
    model = model_of()
    x = torch.randn(1, 40_000, C, requires_grad=True)
    targets = torch.randint(V, (1, 40_000))
    want = results(head_loss, model, x, targets)
    found = results(ours, model, x, targets, torch.float16)
    assert distance(found[1], want[1]) < 0.01 and distance(found[2], want[2]) < 0.01


@BOTH
def test_a_shared_head_gets_both_gradients(ours):
    tied = model_of(tie=True)
    idx, targets = torch.randint(V, (2, 3, 16), generator=torch.Generator().manual_seed(2))
    tied(idx, targets)[1].backward()
    want = tied.transformer.wte.weight.grad.clone()
    tied.zero_grad()
    tied.head_loss = ours
    logits, loss = tied(idx, targets, return_logits=False)
    loss.backward()
    assert logits is None and distance(tied.transformer.wte.weight.grad, want) < 1e-5


@BOTH
def test_a_loss_that_is_not_finite_is_seen(ours):
    model, (x, targets) = model_of(), rows((3,))
    with torch.no_grad():
        x[0, 3] = torch.nan  # of an ignored target: as if it were not there
    loss, dx, _ = results(ours, model, x, targets)
    want = results(head_loss, model, x, targets)[0].item()
    assert loss.item() == pytest.approx(want, rel=1e-6)
    with torch.no_grad():
        x[0, 4] = torch.nan
    loss, dx, dw = results(ours, model, x, targets)
    assert loss.isnan() and dx.isnan().any() and dw.isnan().any()


@BOTH
@pytest.mark.parametrize("further", [None, 0.4])
@pytest.mark.parametrize("cap", [0.0, 15.0])
def test_without_targets_nothing_moves(ours, cap, further):
    """The loss is NaN, the gradients are zeros, as those of torch: with other micro-batches it
    spoils no step. To a compiler, too."""
    torch._dynamo.reset()
    model = model_of(cap)
    model.further = None if further is None else torch.tensor(further)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for loss_of in (head_loss, ours, compiled):
        loss, dx, dw = results(loss_of, model, *rows(range(N)))
        assert loss.isnan() and not dx.any() and not dw.any()
    with torch.no_grad():
        assert ours(model, *rows(range(N))).isnan()


@BOTH
def test_a_compiler_takes_it_in_one_graph(ours):
    torch._dynamo.reset()
    model, (x, targets) = model_of(15.0), rows((3,))
    model.further = torch.tensor(0.4)
    want = results(ours, model, x, targets)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for a, b in zip(results(compiled, model, x, targets), want):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(compiled(model, x, targets), want[0])


class Largest(TorchDispatchMode):
    """The most elements that a tensor has had."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("name", ["gpt", "megabyte", "spacebyte"])
def test_no_tensor_is_as_large_as_the_logits(name, monkeypatch):
    fields = dict(n_layer=1, n_head=1, n_embd=16, block_size=64, vocab_size=997)
    if name != "gpt":
        fields |= dict(local_layer=2, local_head=1, local_embd=16, patch_size=4)
    monkeypatch.setattr(module, "MOST", {"cpu": 20 * 997})
    model = to_device(build_model(name, fields), CPU)
    idx = torch.randint(256, (4, 64))
    logits = idx.numel() * 997
    for return_logits in (True, False):
        with Largest() as largest:
            out, loss = model(idx, idx, return_logits=return_logits)
            loss.backward()
        assert (out is None) != return_logits
        assert (largest.elements >= logits) == return_logits
    with Largest() as largest, torch.no_grad():
        assert model(idx, idx, return_logits=False)[1].item() == pytest.approx(loss.item())
    assert largest.elements < logits


def test_few_logits_are_computed_as_they_were(monkeypatch):
    """Bit for bit: what small models have computed so far stays."""
    monkeypatch.undo()
    model, (x, targets) = model_of(15.0), rows()
    a, b = (results(f, model, x, targets) for f in (chunked_head_loss, head_loss))
    assert all(torch.equal(i, j) for i, j in zip(a, b))


@BOTH
def test_a_head_that_is_no_plain_layer_is_taken_as_it_is(ours):
    """Say one with an adapter: its own product counts."""
    model, (x, targets) = model_of(), rows()
    model.lm_head = nn.Sequential(nn.Linear(C, 4, bias=False), nn.Linear(4, V))
    a, b = (f(model, x, targets).item() for f in (ours, head_loss))
    assert a == b


@BOTH
def test_second_derivatives_are_refused(ours):
    """They would lack the head's part, as the gradients are computed in the forward pass."""
    model, (_, targets) = model_of(), rows()
    model.head_loss, ids = ours, targets[:, :16]
    params = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH), pytest.raises(RuntimeError, match=r"return_logits|autograd"):
        _, loss = model(ids, ids, return_logits=False)
        first = torch.autograd.grad(loss, params, create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in first), params)
