"""bonsai/training/symmetric.py: its products are torch's, by triton's interpreter on a CPU.

They need triton, which torch for CPUs does not bring. The interpreter cannot multiply bfloat16:
that is for tests/benchmarks/test_gpu.py.
"""

import importlib
import itertools
import math

import pytest
import torch
from helpers.interpreted import skip_without_interpreter

TILES = {
    "square": (32, 32, 16, 4, 2),
    "wide": (32, 64, 16, 4, 2),
    "blocks": (32, 32, 16, 4, 2, True),
    "wide blocks": (32, 64, 16, 4, 2, True),
}


@pytest.fixture
def symmetric(monkeypatch):
    """The module with its kernel interpreted, whatever the size of the matrices."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when the kernel is defined
    skip_without_interpreter()
    module = importlib.reload(importlib.import_module("bonsai.training.symmetric"))
    monkeypatch.setattr(module, "SMALLEST", 0)
    # launches go to the device of a tensor, which is none here
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: torch.cuda.device(-1))
    monkeypatch.setattr(module, "tiles_of", lambda device: [module.Tile(*TILES["square"])])
    monkeypatch.setattr(module, "seconds", lambda product: (product(), 1.0 / next(faster))[1])
    faster = itertools.count(1)  # each is faster than the one before
    yield module
    monkeypatch.undo()
    importlib.reload(module)  # compiled again, where there is a GPU


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
@pytest.mark.parametrize("shape", [(2, 64, 64), (1, 96, 160), (3, 40, 24), (1, 136, 16), (2, 8, 8)])
def test_products_are_torchs(symmetric, shape, tile):
    """Whole tiles and parts of them, one tile and several."""
    tile = symmetric.Tile(*tile)
    for dtype in (torch.float32, torch.float16):
        x = noise(*shape).to(dtype)
        exact, error = x.float() @ x.float().mT, 1e-5 if dtype == torch.float32 else 2e-3
        product = symmetric.launch(x, 1.0, 0.0, tile)
        torch.testing.assert_close(product.float(), exact, atol=error * shape[2], rtol=error)
        assert product.dtype == dtype and product.is_contiguous()
        square = exact.to(dtype)
        wanted = 0.7 * square.float() - 0.3 * (square.float() @ square.float())
        product = symmetric.launch(square, -0.3, 0.7, tile).float()
        bound = error * wanted.abs().max().item()
        torch.testing.assert_close(product, wanted, atol=bound, rtol=error)


@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
def test_what_lies_below_the_diagonal_is_the_mirror_image_of_what_is_above(symmetric, tile):
    """Of 9 columns of tiles, all of them there."""
    tile = symmetric.Tile(*tile)
    m = 9 * tile.columns
    product = symmetric.launch(noise(1, m, 8), 1.0, 0.0, tile)[0]
    for i, j in itertools.combinations(range(9), 2):
        low, high = product.unflatten(0, (9, -1))[j], product.unflatten(0, (9, -1))[i]
        low, high = low.unflatten(1, (9, -1))[:, i], high.unflatten(1, (9, -1))[:, j]
        assert torch.equal(low, high.T) and low.abs().min() > 0


def test_the_root_finds_the_column_of_every_tile():
    """In float32, as the kernel takes it, for matrices of up to 2^18 rows."""
    columns = torch.arange(2048)
    ends = columns * (columns + 1) // 2
    for tile, column in ((ends, columns), (ends + columns, columns)):  # the first and the last
        root = ((8.0 * tile.float() + 1.0).sqrt() - 1.0) / 2
        assert torch.equal(root.int(), column.int())


@pytest.mark.parametrize("kind", ["wrong", "fails"])
def test_a_kernel_that_does_not_do_is_refused_in_one_line(symmetric, kind, monkeypatch, capsys):
    """Torch's products are taken for every shape from then on."""
    real = symmetric.launch

    def broken(x, alpha, beta, tile):
        if kind == "fails":
            raise RuntimeError("out of resource:\nshared memory")
        out = real(x, alpha, beta, tile)
        out[:, -1, 0] += 0.5 * math.sqrt(x.size(2))  # half of a typical entry
        return out

    monkeypatch.setattr(symmetric, "launch", broken)
    state = torch.get_rng_state()
    for n in (48, 64):
        x = noise(2, 64, n)
        assert torch.equal(symmetric.symmetric_product(x), torch.bmm(x, x.mT))
    said = capsys.readouterr().err
    assert said.startswith("no symmetric products by Tile(rows=32") and said.count("\n") == 1
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("alike", [True, False])
def test_tiles_that_fail_for_the_same_reason_are_one_line(symmetric, alike, monkeypatch, capsys):
    """Say where there is no compiler."""

    def broken(x, alpha, beta, tile):
        raise RuntimeError("no C compiler" if alike else f"{tile.columns} columns are too many")

    monkeypatch.setattr(symmetric, "launch", broken)
    tiles = [symmetric.Tile(*tile) for tile in TILES.values()]
    monkeypatch.setattr(symmetric, "tiles_of", lambda device: tiles)
    x = noise(2, 64, 48)
    assert torch.equal(symmetric.symmetric_product(x), torch.bmm(x, x.mT))
    assert capsys.readouterr().err.count("\n") == (1 if alike else 2)
    assert len(symmetric.refused) == len(tiles)


def test_one_that_does_is_taken_and_checked_once(symmetric, monkeypatch, capsys):
    real, count = symmetric.launch, []
    monkeypatch.setattr(symmetric, "launch", lambda *given: count.append(1) or real(*given))
    x = noise(2, 64, 48)
    for _ in range(3):
        torch.testing.assert_close(symmetric.symmetric_product(x), x @ x.mT)
    assert len(count) == 5 and not capsys.readouterr().err  # checked, timed, and taken three times


@pytest.mark.parametrize("times", [(1.0, 0.97, 0.96), (1.0, 0.5, 0.4), (1.0, 0.4, 0.5)])
def test_what_measures_fastest_is_taken_for_a_shape(symmetric, times, monkeypatch):
    """Clearly: what might be chosen in one run and not in the next is left to torch."""
    tiles = [symmetric.Tile(*TILES[name]) for name in ("square", "wide")]
    took = iter(times)
    monkeypatch.setattr(symmetric, "tiles_of", lambda device: tiles)
    monkeypatch.setattr(symmetric, "seconds", lambda product: next(took))
    used, real = [], symmetric.launch
    x = noise(2, 64, 48)
    monkeypatch.setattr(symmetric, "refusal", lambda *given: "")
    monkeypatch.setattr(symmetric, "launch", lambda *given: used.append(given[3]) or real(*given))
    for _ in range(2):
        torch.testing.assert_close(symmetric.symmetric_product(x), x @ x.mT)
    best = min(range(3), key=lambda i: times[i])
    assert used == ([] if times[best] > 0.95 else [tiles[best - 1]] * 2)


def test_shapes_that_it_does_not_suit_are_torchs(symmetric, monkeypatch):
    monkeypatch.setattr(symmetric, "launch", None)
    x = noise(2, 64, 47)
    assert torch.equal(symmetric.symmetric_product(x), torch.bmm(x, x.mT))
    monkeypatch.setattr(symmetric, "SMALLEST", 65)
    x = noise(2, 64, 48)
    assert torch.equal(symmetric.symmetric_product(x), torch.bmm(x, x.mT))


def test_muon_orthogonalizes_by_it(symmetric):
    """Also compiled, where it is one call."""
    from bonsai.training.orthogonal import POLAR_EXPRESS, orthogonalize

    stacks = [noise(2, 32, 64), noise(1, 64, 32)]
    plain = orthogonalize(stacks, POLAR_EXPRESS, torch.float32)
    compiled = torch.compile(orthogonalize, backend="aot_eager", fullgraph=True)
    for function in (orthogonalize, compiled):
        orthogonal = function(stacks, POLAR_EXPRESS, torch.float32, symmetric.symmetric_product)
        for a, b in zip(orthogonal, plain):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
