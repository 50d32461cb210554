"""bonsai/training/symmetric.py: its products are torch's, by triton's interpreter on a CPU.

They need triton, which torch for CPUs does not bring. The interpreter cannot multiply bfloat16:
that is for tests/benchmarks/test_gpu.py.
"""

import importlib
import math

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")


@pytest.fixture
def symmetric(monkeypatch):
    """The module with its kernel interpreted, whatever the size of the matrices."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when the kernel is defined
    module = importlib.reload(importlib.import_module("bonsai.training.symmetric"))
    for name, value in dict(SMALLEST=0, BLOCK=32, DEPTH=16).items():
        monkeypatch.setattr(module, name, value)
    yield module
    monkeypatch.undo()
    importlib.reload(module)  # compiled again, where there is a GPU


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(2, 64, 64), (1, 96, 160), (3, 40, 24), (1, 33, 17), (2, 1, 5)])
def test_products_are_torchs(symmetric, shape, dtype):
    """Whole blocks and parts of them, one block and several."""
    x = noise(*shape).to(dtype)
    exact, error = x.float() @ x.float().mT, 1e-5 if dtype == torch.float32 else 2e-3
    product = symmetric.launch(x, 1.0, 0.0)
    torch.testing.assert_close(product.float(), exact, atol=error * shape[2], rtol=error)
    assert product.dtype == dtype and product.is_contiguous()
    square = exact.to(dtype)
    wanted = 0.7 * square.float() - 0.3 * (square.float() @ square.float())
    product = symmetric.launch(square, -0.3, 0.7).float()
    torch.testing.assert_close(product, wanted, atol=error * wanted.abs().max().item(), rtol=error)


def test_what_lies_below_the_diagonal_is_its_mirror_image(symmetric):
    product = symmetric.launch(noise(1, 96, 40), 1.0, 0.0)[0]
    for i, j in ((32, 0), (64, 0), (64, 32)):
        low, high = product[i : i + 32, j : j + 32], product[j : j + 32, i : i + 32]
        assert torch.equal(low, high.T) and low.abs().sum() > 0


@pytest.mark.parametrize("kind", ["wrong", "fails"])
def test_a_kernel_that_does_not_do_is_refused_in_one_line(symmetric, kind, monkeypatch, capsys):
    """And torch's products are taken for every shape from then on."""
    real = symmetric.launch

    def broken(x, alpha, beta):
        if kind == "fails":
            raise RuntimeError("out of resource:\nshared memory")
        out = real(x, alpha, beta)
        out[:, -1, 0] += 0.5 * math.sqrt(x.size(2))  # half of a typical entry
        return out

    monkeypatch.setattr(symmetric, "launch", broken)
    state = torch.get_rng_state()
    for n in (48, 64):
        x = noise(2, 64, n)
        assert torch.equal(symmetric.symmetric_product(x), torch.bmm(x, x.mT))
    said = capsys.readouterr().err
    assert said.startswith("no symmetric products on cpu") and said.count("\n") == 1
    assert torch.equal(state, torch.get_rng_state())


def test_one_that_does_is_taken_and_checked_once(symmetric, monkeypatch, capsys):
    real, count = symmetric.launch, []
    monkeypatch.setattr(symmetric, "launch", lambda *given: count.append(1) or real(*given))
    x = noise(2, 64, 48)
    for _ in range(3):
        torch.testing.assert_close(symmetric.symmetric_product(x), x @ x.mT)
    assert len(count) == 4 and not capsys.readouterr().err


def test_shapes_that_it_does_not_suit_are_torchs(symmetric, monkeypatch):
    monkeypatch.setattr(symmetric, "launch", None)
    x = noise(2, 64, 47)
    assert torch.equal(symmetric.symmetric_product(x), torch.bmm(x, x.mT))
    monkeypatch.setattr(symmetric, "SMALLEST", 65)
    x = noise(2, 64, 48)
    assert torch.equal(symmetric.symmetric_product(x), torch.bmm(x, x.mT))


def test_muon_orthogonalizes_by_it(symmetric):
    """Also compiled, where it is one call."""
    from bonsai.training.muon import POLAR_EXPRESS, orthogonalize

    stacks = [noise(2, 32, 64), noise(1, 64, 32)]
    plain = orthogonalize(stacks, POLAR_EXPRESS, torch.float32)
    compiled = torch.compile(orthogonalize, backend="aot_eager", fullgraph=True)
    for function in (orthogonalize, compiled):
        orthogonal = function(stacks, POLAR_EXPRESS, torch.float32, symmetric.symmetric_product)
        for a, b in zip(orthogonal, plain):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
