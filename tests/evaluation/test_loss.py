"""bonsai/evaluation/loss.py against brute force, window by window."""

import math

import numpy as np
import pytest
import torch
from helpers.evaluated import BLOCK, runtime, tiny
from torch.nn import functional as F

from bonsai.data.dataset import Mixture, open_dataset
from bonsai.evaluation.loss import bits_per_byte, mixture_loss, split_loss
from bonsai.system.errors import UserError


@pytest.fixture(scope="module")
def data(workplace):
    return lambda kind: open_dataset(str(workplace / "data" / kind))


@torch.no_grad()
def brute_force(model, ids, keep, starts, T) -> tuple[float, int]:
    """Mean loss over the kept targets of windows, one token at a time."""
    model.eval()
    total, count = 0.0, 0
    for start in starts:
        for end in range(start + 1, min(start + T + 1, len(ids))):
            if keep[end]:
                logits, _ = model(torch.tensor(ids[None, start:end]))
                total -= F.log_softmax(logits[0, -1].double(), dim=-1)[ids[end]].item()
                count += 1
    model.train()
    return total / count, count


@pytest.mark.parametrize("kind", ["meta", "llmc", "rows"])
@pytest.mark.parametrize("T", [16, 7])
def test_split_loss_is_that_of_brute_force(data, kind, T):
    split, model = data(kind).split("val"), tiny()
    ids = split.read(0, len(split)).astype(np.int64)
    keep = split.read(0, len(split), masks=True) if split.mask_files else np.ones(len(ids))
    stride = split.row_length or T
    starts = range(0, len(ids) - 1, stride)
    # in data of rows a window ends where its row does
    seen = stride - 1 if split.row_length else T
    want, count = brute_force(model, ids, keep, starts, min(T, seen))
    if kind != "rows":
        assert count == len(ids) - 1  # every token but the first, the short window's too
    for batch_size in (5, 1000):
        loss, tokens = split_loss(model, split, runtime(), T, batch_size)
        assert tokens == count
        assert loss == pytest.approx(want, abs=1e-5)
    assert model.training  # as it was


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_windows(data, world_size):
    split, model = data("meta").split("val"), tiny()
    whole = split_loss(model, split, runtime(), BLOCK, 5)
    sums = []
    for rank in range(world_size):
        part = runtime(rank, world_size)
        part.sum = lambda tensor: sums.append(tensor.clone()) or tensor
        split_loss(model, split, part, BLOCK, 5)
    loss, count = sum(sums).tolist()
    assert (loss / count, count) == (pytest.approx(whole[0], abs=1e-6), whole[1])


@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_model_sees_one_kind_of_batch(data, training):
    """One shape and layout, with gradients where it is being trained: nothing is compiled twice."""
    split, model, seen = data("meta").split("val"), tiny().train(training), set()

    def note(_, args):
        kinds = [(tuple(t.shape), t.stride(), torch.is_grad_enabled()) for t in args]
        seen.update(kinds)

    model.register_forward_pre_hook(note)
    plain = split_loss(model, split, runtime(), BLOCK, 7)
    assert len({shape for shape, *_ in seen}) == 2  # the last batch is smaller
    assert not any(grad for *_, grad in seen)
    seen.clear()
    padded = split_loss(model, split, runtime(compile=True), BLOCK, 7)
    assert seen == {((7, BLOCK), (BLOCK, 1), training)}
    assert padded == (pytest.approx(plain[0], abs=1e-6), plain[1])
    seen.clear()
    split_loss(model, split, runtime(compile=True), BLOCK, 7, windows=2)
    assert seen == {((7 if training else 2, BLOCK), (BLOCK, 1), training)}
    assert model.training == training


def test_some_windows_are_always_the_same_ones(data):
    split, model = data("meta").split("val"), tiny()
    some = split_loss(model, split, runtime(), BLOCK, 5, windows=4)
    again = split_loss(model, split, runtime(), BLOCK, 2, windows=4)
    assert again == (pytest.approx(some[0], abs=1e-6), some[1])
    assert 3 * BLOCK < some[1] <= 4 * BLOCK
    many = split_loss(model, split, runtime(), BLOCK, 5, windows=10**6)
    assert many == split_loss(model, split, runtime(), BLOCK, 5)


def test_ids_that_no_meta_states_are_checked(data):
    part = data("nanogpt")
    Mixture([part]).check(BLOCK, 10)
    with pytest.raises(UserError, match=r"val\.bin: the data hold the id .* vocabulary ends at 9"):
        split_loss(tiny(vocab_size=10), part.split("val"), runtime(), BLOCK, 5)


def test_a_mixture_is_the_mean_by_weight(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    mixture, model = Mixture.open("meta:3,more:1"), tiny()
    args = (runtime(), BLOCK, 5)
    a, b = (split_loss(model, part.split("val"), *args)[0] for part in mixture.parts)
    assert mixture_loss(model, mixture, "val", *args) == pytest.approx(0.75 * a + 0.25 * b)


def test_bits_per_byte():
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8)
    assert bits_per_byte(math.log(16), 4.0) == pytest.approx(1)
    assert bits_per_byte(1.0, None) is None
