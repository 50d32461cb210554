"""projects/digits: the gradients against autograd, the accuracy, the shapes, the mistakes."""

import gzip
import sys

import numpy as np
import pytest
import torch
from helpers.programs import ROOT, assert_one_line_error, run_command

from bonsai.system.errors import UserError
from projects.digits import digits

SCRIPT = str(ROOT / "projects" / "digits" / "digits.py")


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    w = digits.init_weights((64, 30, 10), rng)
    w = {name: a + 0.1 * rng.standard_normal(a.shape) for name, a in w.items()}  # biases too
    return w, rng.random((7, 64)), rng.integers(0, 10, 7)


def by_autograd(w, x, y):
    t = {name: torch.tensor(a, requires_grad=True) for name, a in w.items()}
    h = torch.sigmoid(torch.tensor(x) @ t["W1"] + t["b1"])
    loss = torch.nn.functional.cross_entropy(h @ t["W2"] + t["b2"], torch.tensor(y))
    loss.backward()
    return loss.item(), {name: a.grad.numpy() for name, a in t.items()}


def test_gradients_are_those_of_autograd(batch):
    loss, gradients = digits.backprop(*batch)
    expected_loss, expected = by_autograd(*batch)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert set(gradients) == set(expected)
    for name in expected:
        assert np.abs(gradients[name] - expected[name]).max() < 1e-12


def test_a_step_is_that_of_torchs_sgd(batch):
    w, x, y = batch
    _, gradients = by_autograd(w, x, y)
    goal = {name: w[name] - 0.3 * gradients[name] for name in w}
    before = digits.backprop(w, x, y)[0]
    assert digits.update_mini_batch(w, x, y, 0.3) == before
    for name in w:
        assert np.allclose(w[name], goal[name], rtol=0, atol=1e-12)
    assert digits.backprop(w, x, y)[0] < before


def test_large_inputs_do_not_overflow(batch):
    w, x, y = batch
    loss, gradients = digits.backprop({**w, "W2": 1e4 * w["W2"]}, x, y)
    assert np.isfinite(gradients["W2"]).all() and 0 < loss < 1000


def test_more_than_95_of_100_digits(tmp_path):
    """The golden number: 97.2% after 30 epochs, a second."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    done = run_command([sys.executable, SCRIPT, "--shapes", "--out_dir=out"], tmp_path)
    assert done.rc == 0, done
    last = next(line for line in done.stdout.splitlines() if line.startswith("epoch 30"))
    assert 95 < float(last.split("held out ")[1].rstrip("%")) < 99.5
    assert "1,438 digits to learn from, 359 held out" in done.stdout
    assert "d_W1   (64, 30)" in done.stdout and "probs  (10, 10)" in done.stdout
    assert (tmp_path / "out" / "digits.png").stat().st_size > 5000


def write_mnist(folder):
    """Pictures that say their digit: a bright row for each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count, opened in (("train", 300, open), ("t10k", 100, gzip.open)):
        labels = rng.integers(0, 10, count).astype(np.uint8)
        images = rng.integers(0, 60, (count, 28, 28)).astype(np.uint8)
        images[np.arange(count), 2 * labels] = 250
        end = ".gz" if opened is gzip.open else ""
        for kind, a in (("images-idx3", images), ("labels-idx1", labels)):
            with opened(folder / f"{name}-{kind}-ubyte{end}", "wb") as f:
                head = bytes([0, 0, 8, a.ndim]) + np.array(a.shape, ">u4").tobytes()
                f.write(head + a.tobytes())


def test_mnist_files_by_path(tmp_path):
    write_mnist(tmp_path / "mnist")
    done = run_command([sys.executable, SCRIPT, "--mnist=mnist", "--epochs=8"], tmp_path)
    assert done.rc == 0 and "300 digits to learn from, 100 held out, 784 pixels" in done.stdout
    assert "epoch 8: " in done.stdout and "held out 100.00%" in done.stdout
    (tmp_path / "mnist" / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03 cut short")
    done = run_command([sys.executable, SCRIPT, "--mnist=mnist"], tmp_path)
    assert_one_line_error(done, "train-images-idx3-ubyte", "damaged")


@pytest.mark.parametrize("held_out", [1e-4, 0.9999])
def test_some_digits_are_held_out_and_some_are_not(held_out):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    with pytest.raises(UserError, match="of 1,797 digits some must be held out and some not"):
        digits.main(held_out=held_out)


@pytest.mark.parametrize(
    "option, hint", [("--mnist=nosuch", "four files"), ("--epochs=0", "at least 1")]
)
def test_mistakes_are_one_line(tmp_path, option, hint):
    assert_one_line_error(run_command([sys.executable, SCRIPT, option], tmp_path), hint)
