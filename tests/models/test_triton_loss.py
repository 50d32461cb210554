"""bonsai/models/triton_loss.py against plain torch, by Triton's interpreter on a CPU.

That needs triton, which torch for CPUs does not bring; tests/benchmarks/test_gpu.py has the rest.
"""

import pytest
import torch
from helpers.interpreted import interpreted

from bonsai.models.loss_kernel import HALF, plain_losses


@pytest.fixture(scope="module")
def kernel():
    """The module, with so small blocks that a row has several, and a program several rows."""
    for module in interpreted("bonsai.models.triton_loss"):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in dict(BLOCK=64, PROGRAMS=3, WARPS=1).items():
                patch.setattr(module, name, value)
            yield module


def given(V: int, dtype: torch.dtype, second: bool, N: int = 11):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(N, V, generator=generator)).to(dtype)
    targets, after = torch.randint(V, (2, N), generator=generator)
    targets[::4] = after[::2] = -1
    logits[0, V // 2] = torch.nan  # of an ignored row: as if it were not there
    return logits, targets, *((after, torch.tensor(0.5)) if second else (None, None))


@pytest.mark.parametrize("V", [5, 64, 101, 320])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("cap", [0.0, 2.0, 15.0, 200.0])
@pytest.mark.parametrize("second", [False, True])
def test_losses_and_gradient_are_torchs(kernel, V, dtype, cap, second):
    logits, *rest = given(V, dtype, second)
    ours, plain = logits.clone(), logits.float()
    found, want = kernel.launch(ours, *rest, cap, True), plain_losses(plain, *rest, cap, True)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    assert (ours.float() - plain).norm() < 4e-3 * plain.norm() and not ours[0].any()
    alone = logits.clone()
    torch.testing.assert_close(kernel.launch(alone, *rest, cap, False), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone, logits, equal_nan=True, rtol=0, atol=0)


def test_large_logits_do_not_overflow(kernel):
    logits, *rest = given(101, torch.bfloat16, False)
    logits, want = 1000 * logits, 1000 * logits.float()
    found = kernel.launch(logits, *rest, 0.0, True)
    torch.testing.assert_close(found, plain_losses(want, *rest, 0.0, False), rtol=1e-2, atol=1e-2)
    assert logits.isfinite().all()


def test_what_is_not_finite_is_seen(kernel):
    """Also an id outside of the vocabulary, instead of memory that is not the row's."""
    logits, targets, *_ = given(101, torch.bfloat16, False)
    logits[1, 60], logits[2, 70], targets[3] = torch.nan, torch.inf, 101
    found = kernel.launch(logits, targets, None, None, 0.0, True)
    assert found.isnan().tolist() == [False, True, True, True, *7 * [False]]
    assert logits[1:4].isnan().any(1).all() and logits[4:].isfinite().all()


@pytest.mark.parametrize("length", [112, 128, 107])
def test_rows_that_are_apart(kernel, length):
    """Aligned to 16 bytes or not; only what fills up the last of those is written on."""
    logits, *rest = given(101, torch.bfloat16, True)
    wide = torch.full((11, length), 7.0).bfloat16()
    wide[:, :101] = logits
    for cap in (0.0, 15.0):
        logits, ours = logits.clone(), wide.clone()
        found = kernel.launch(ours[:, :101], *rest, cap, True)
        assert torch.equal(found, kernel.launch(logits, *rest, cap, True))
        assert torch.equal(ours[:, :101], logits)
        assert (ours[:, 104 if length % 16 == 0 else 101 :] == 7).all()
        logits = wide[:, :101]


def test_of_no_rows_there_are_none(kernel):
    logits, targets, *_ = given(64, HALF[0], False)
    assert kernel.launch(logits[:0], targets[:0], None, None, 0.0, True).shape == (0,)


@pytest.mark.parametrize(
    "kind, capability, cuda, want",
    [
        ("cpu", None, None, False),
        ("cuda", (9, 0), None, False),  # AMD
        ("cuda", (7, 0), "12.8", False),  # V100
        ("cuda", (7, 5), "12.8", True),  # T4
        ("cuda", (9, 0), "12.8", True),
    ],
)
def test_where_there_are_instructions_for_it(kernel, kind, capability, cuda, want, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert kernel.has_instructions(torch.device(kind)) == want
