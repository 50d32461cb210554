"""bonsai/training/orthogonal.py: singular values near 1, and updates that change no argument."""

import sys
from types import SimpleNamespace

import pytest
import torch

from bonsai.training.orthogonal import (
    POLAR_EXPRESS,
    Fixed,
    Rates,
    even_out,
    fastest_product,
    muon_update,
    orthogonalize,
    plain_product,
)

# Jordan et al. 2024: the same coefficients five times, singular values in 0.7 ... 1.2
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 16, 48), (2, 48, 16)])
def test_singular_values_come_near_1(shape):
    torch.manual_seed(0)
    g = torch.randn(shape)
    wanted = torch.linalg.svd(g, full_matrices=False)
    wanted = wanted.U @ wanted.Vh
    for coefficients, low, high in ((NEWTON_SCHULZ, 0.3, 1.3), (POLAR_EXPRESS, 0.75, 1.2)):
        (orthogonal,) = orthogonalize([g], coefficients, torch.float32)
        values = torch.linalg.svdvals(orthogonal)
        assert low < values.min() and values.max() < high
        assert (orthogonal - wanted).norm() / wanted.norm() < 0.3


def test_tall_ones_lie_down_beside_wide_ones():
    """Stacks of one shape, turned, are orthogonalized as one, each as it would be alone."""
    torch.manual_seed(0)
    stacks, products = [torch.randn(2, 16, 48), torch.randn(3, 48, 16)], []

    def counted(x, *given):
        products.append(x)
        return plain_product(x, *given)

    together = orthogonalize(stacks, POLAR_EXPRESS, torch.float32, counted)
    assert len(products) == 2 * len(POLAR_EXPRESS)
    for g, orthogonal in zip(stacks, together):
        (alone,) = orthogonalize([g], POLAR_EXPRESS, torch.float32)
        torch.testing.assert_close(orthogonal, alone, atol=1e-5, rtol=1e-5)


def test_products_by_half_the_work_are_for_cuda_with_triton(monkeypatch):
    """And for bfloat16 on a GPU that multiplies it."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert fastest_product(cpu, torch.bfloat16) is plain_product
    assert fastest_product(cuda, torch.float32) is plain_product
    capability, kernel = (7, 5), object()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    name = "bonsai.training.symmetric"
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(symmetric_product=kernel))
    assert fastest_product(cuda, torch.bfloat16) is plain_product
    capability = (9, 0)
    assert fastest_product(cuda, torch.bfloat16) is kernel
    monkeypatch.setitem(sys.modules, name, None)  # as where importing it fails
    assert fastest_product(cuda, torch.bfloat16) is plain_product


def update_of(kinds: list[torch.Tensor], **changed):
    """Weights, gradients, momenta, squares as muon_update takes them, a stack of each shape."""
    given = dict(lr=0.02, decay=0.1, momentum=0.9, fresh=0.1, on=1.0) | changed
    rates = Rates(*(torch.tensor(v) for v in given.values()))
    return muon_update(*kinds, rates, Fixed(POLAR_EXPRESS, torch.float32, True, True, 0.9))


def stacks_of(*shapes) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    kinds = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(3)]
    return [*kinds, [torch.rand((*shape[:2], 1), generator=generator) for shape in shapes]]


def test_the_update_changes_nothing_that_it_was_given():
    kinds = stacks_of((2, 8, 24), (3, 24, 8))
    before = [[t.clone() for t in tensors] for tensors in kinds]
    weights, momenta, squares = update_of(kinds)
    for tensors, same in zip(kinds, before):
        assert all(torch.equal(a, b) for a, b in zip(tensors, same))
    for new, old in ((weights, kinds[0]), (momenta, kinds[2]), (squares, kinds[3])):
        assert [t.shape for t in new] == [t.shape for t in old]
        assert not any(torch.equal(a, b) for a, b in zip(new, old))


def test_a_share_of_the_matrices_moves_as_in_the_whole():
    """What makes sharding right: matrix by matrix, those of zeros that fill a share up included."""
    kinds = stacks_of((5, 8, 24), (3, 24, 8))
    whole = update_of(kinds)
    padded = [[torch.cat([t, torch.zeros(1, *t.shape[1:])]) for t in tensors] for tensors in kinds]
    share = update_of([[t[len(t) // 2 :] for t in tensors] for tensors in padded])
    for new, part in zip(whole, share):
        for a, b in zip(new, part):
            torch.testing.assert_close(a[(len(a) + 1) // 2 :], b[:-1], atol=1e-6, rtol=1e-5)
            assert not b[-1].any()


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf, 3e38])
def test_with_on_0_the_update_is_what_was_there(spoilt):
    kinds = stacks_of((2, 8, 24), (3, 24, 8))
    kinds[1][0][0] = spoilt
    kinds[1][1][1, 2, 3] = -spoilt
    for new, old in zip(update_of(kinds, on=0.0), (kinds[0], kinds[2], kinds[3])):
        assert all(torch.equal(a, b) for a, b in zip(new, old))


def test_evened_out_updates_move_every_neuron_alike():
    """From the first step on; the norm of a matrix's update stays, and its direction by neuron."""
    torch.manual_seed(0)
    u = torch.randn(2, 6, 10) * torch.tensor([1e-4, 0.01, 0.1, 1.0, 5.0, 20.0])[:, None]
    even, square = even_out(u, torch.zeros(2, 6, 1), torch.tensor(0.1))
    torch.testing.assert_close(square, 0.1 * u.square().mean(-1, keepdim=True))
    torch.testing.assert_close(even.norm(dim=(1, 2)), u.norm(dim=(1, 2)))
    rows, before = even.norm(dim=2), u.norm(dim=2)
    torch.testing.assert_close(rows[:, 1:], rows[:, 5:].expand(-1, 5), rtol=1e-3, atol=0)
    torch.testing.assert_close(even / rows[..., None], u / before[..., None])
    nothing, _ = even_out(torch.zeros(1, 3, 4), torch.zeros(1, 3, 1), torch.tensor(0.1))
    assert not nothing.any()
