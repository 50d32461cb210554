"""Where it starts: a network of two layers in NumPy that reads handwritten digits.

    python projects/digits/digits.py
    python projects/digits/digits.py --shapes           # the shape of every array, forward and back
    python projects/digits/digits.py --mnist=FOLDER     # MNIST's four files, plain or .gz

Everything that training a GPT needs is here in its smallest form: a forward pass, the loss of
train.py (cross-entropy in nats), gradients, mini-batches, held-out data. Only here the gradients
are written out by hand, in `backprop`; a test checks them against torch's.
"""

import gzip
import math
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import numpy as np

from bonsai.files.access import save_picture
from bonsai.files.textfile import check_writable
from bonsai.system.caches import keep_fonts
from bonsai.system.errors import UserError, end_if_told, run
from configurator import Config, configure, resolve_path

# data
mnist = ""  # a folder with MNIST's files; without, the 1,797 digits of 8 x 8 of scikit-learn [path]
held_out = 0.2  # share of scikit-learn's digits kept for the test (MNIST brings its own) [> 0, < 1]
# the network
hidden = 30  # units between the pixels and the ten digits [>= 1]
# training: plain gradient descent on mini-batches
epochs = 30  # passes over the training digits [>= 1]
batch_size = 10  # [>= 1]
learning_rate = 0.5  # [>= 0]
seed = 1337  # [0 to 4294967295]
# what is shown
shapes = False  # print the shape of every array of one step, then go on
out_dir = "out-digits"  # where digits.png goes [path]


# ---- the network: x (B, P) pixels -> H hidden units -> ten logits ----


def init_weights(sizes: tuple[int, int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights N(0, 1/inputs), so that a unit's input has about variance 1; biases 0."""
    pixels, units, classes = sizes
    return {
        "W1": rng.standard_normal((pixels, units)) / np.sqrt(pixels),  # (P, H)
        "b1": np.zeros(units),  # (H,)
        "W2": rng.standard_normal((units, classes)) / np.sqrt(units),  # (H, 10)
        "b2": np.zeros(classes),  # (10,)
    }


def forward(w: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x (B, P) -> hidden activations (B, H) and the probabilities of the ten digits (B, 10)."""
    z = x @ w["W1"] + w["b1"]  # (B, P) @ (P, H) = (B, H)
    h = 1 / (1 + np.exp(-z))  # the logistic function, unit by unit
    logits = h @ w["W2"] + w["b2"]  # (B, H) @ (H, 10) = (B, 10)
    e = np.exp(logits - logits.max(axis=1, keepdims=True))  # largest exponent 0: no overflow
    return h, e / e.sum(axis=1, keepdims=True)  # softmax


def cross_entropy(probs: np.ndarray, y: np.ndarray) -> float:
    """Mean of -log P(true digit) in nats: what train.py's loss is, ten digits for V tokens."""
    of_truth = probs[np.arange(len(y)), y]
    return float(-np.log(np.maximum(of_truth, 1e-300)).mean())  # 0 after rounding is no infinity


def backprop(
    w: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray
) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of a batch x (B, P), y (B,), and its gradient for every weight, by the chain rule.

    The d of an array is the derivative of the loss by it and has its shape.
    """
    h, probs = forward(w, x)
    # softmax and cross-entropy together have a simple derivative: what was said less what is true
    d_logits = probs.copy()  # (B, 10)
    d_logits[np.arange(len(y)), y] -= 1
    d_logits /= len(y)  # the loss is a mean
    d_h = d_logits @ w["W2"].T  # (B, 10) @ (10, H) = (B, H)
    d_z = d_h * h * (1 - h)  # the logistic function's derivative
    gradients = {
        "W1": x.T @ d_z,  # (P, B) @ (B, H) = (P, H)
        "b1": d_z.sum(axis=0),
        "W2": h.T @ d_logits,  # (H, B) @ (B, 10) = (H, 10)
        "b2": d_logits.sum(axis=0),
    }
    return cross_entropy(probs, y), gradients


def update_mini_batch(w: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray, rate: float) -> float:
    """One step downhill on a mini-batch, in place; returns its loss before the step."""
    loss, gradients = backprop(w, x, y)
    for name, gradient in gradients.items():
        w[name] -= rate * gradient
    return loss


def accuracy(w: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """Share of the digits whose likeliest reading is the true one."""
    return float((forward(w, x)[1].argmax(axis=1) == y).mean())


def train(c: Config, x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray):
    """Train a new network; returns its weights and the held-out accuracy after every epoch."""
    rng = np.random.default_rng(c.seed)
    w, curve = init_weights((x.shape[1], c.hidden, 10), rng), []
    for epoch in range(c.epochs):
        end_if_told()
        order, losses = rng.permutation(len(x)), []
        for start in range(0, len(x), c.batch_size):
            rows = order[start : start + c.batch_size]
            losses.append(update_mini_batch(w, x[rows], y[rows], c.learning_rate))
        curve.append(accuracy(w, x_test, y_test))
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}, held out {curve[-1]:.2%}")
    return w, curve


# ---- data ----


def load_digits(c: Config) -> tuple[np.ndarray, ...]:
    """x (N, P) in 0..1 and y (N,) for training, then for the test."""
    if c.mnist:
        folder = resolve_path(c.mnist)
        parts = []
        for name in ("train", "t10k"):
            images = read_idx(folder, f"{name}-images-idx3-ubyte")
            parts += [images.reshape(len(images), -1) / 255]
            parts += [read_idx(folder, f"{name}-labels-idx1-ubyte").astype(np.int64)]
        return tuple(parts)
    try:
        from sklearn import datasets
    except ImportError:
        raise UserError(
            "the digits come with scikit-learn: pip install scikit-learn, or give --mnist=FOLDER"
        ) from None
    digits = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))  # the same split for all seeds
    x, y = digits.data[order] / 16, digits.target[order]
    n = round(len(x) * c.held_out)
    if n in (0, len(x)):
        hint = "some must be held out and some not"
        raise UserError(f"held_out={c.held_out}: of {len(x):,} digits {hint}")
    return x[n:], y[n:], x[:n], y[:n]


def read_idx(folder: Path, name: str) -> np.ndarray:
    """An array of MNIST's format: two zeros, type 8 (bytes), dimensions, their sizes, the bytes."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            opened = gzip.open if path.suffix == ".gz" else open
            try:
                with opened(path, "rb") as f:
                    data = f.read()
            except (OSError, EOFError) as e:
                raise UserError(f"cannot read {path}: {e}") from None
            dims = 3 if "images" in name else 1
            head = 4 + 4 * dims
            sizes = [int.from_bytes(data[i : i + 4], "big") for i in range(4, head, 4)]
            if data[:4] != bytes([0, 0, 8, dims]) or len(data) != head + math.prod(sizes):
                raise UserError(f"{path} is not one of MNIST's files, or it is damaged")
            return np.frombuffer(data, np.uint8, offset=head).reshape(sizes)
    raise UserError(f"no {name} (or {name}.gz) in {folder}: put MNIST's four files there")


# ---- what is shown ----


def describe_shapes(c: Config, x: np.ndarray, y: np.ndarray) -> str:
    """Every array of one training step, with its shape."""
    w = init_weights((x.shape[1], c.hidden, 10), np.random.default_rng(c.seed))
    x, y = x[: c.batch_size], y[: c.batch_size]
    h, probs = forward(w, x)
    _, gradients = backprop(w, x, y)
    arrays = {"x": x, "y": y, **w, "h": h, "probs": probs}
    arrays |= {f"d_{name}": gradient for name, gradient in gradients.items()}
    return "\n".join(f"{name:6} {a.shape!s:10} {a.dtype}" for name, a in arrays.items())


def draw(
    c: Config, w: dict[str, np.ndarray], curve: list[float], x: np.ndarray, y: np.ndarray
) -> Path:
    """The accuracy by epoch, and the held-out digits that the network is most wrong about."""
    keep_fonts()
    from matplotlib.figure import Figure

    probs = forward(w, x)[1]
    worst = np.argsort(probs[np.arange(len(y)), y])[:12]
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.2))
    axes = left.subplots()
    axes.plot(range(1, len(curve) + 1), [100 * a for a in curve], color="#2f6db3", marker="o", ms=2)
    axes.set(xlabel="epoch", ylabel="held-out digits read rightly, %")
    axes.set_title(f"{curve[-1]:.2%} at the end", fontsize=10)
    axes.grid(alpha=0.25)
    right.suptitle("the hardest: true digit, what was read", fontsize=10)
    side = round(x.shape[1] ** 0.5)
    for i, cell in zip(worst, right.subplots(2, 6).flat):
        cell.imshow(x[i].reshape(side, side), cmap="gray_r")
        read = probs[i].argmax()
        cell.set_title(f"{y[i]}, {read}", fontsize=9, color="#d1495b" if read != y[i] else "black")
        cell.axis("off")
    path = Path(c.out_dir) / "digits.png"
    save_picture(figure, path, dpi=110)
    return path


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    check_writable(Path(c.out_dir) / "digits.png", "the picture")
    x, y, x_test, y_test = load_digits(c)
    print(f"{len(x):,} digits to learn from, {len(x_test):,} held out, {x.shape[1]} pixels each")
    if c.shapes:
        print(describe_shapes(c, x, y))
    start = time.perf_counter()
    w, curve = train(c, x, y, x_test, y_test)
    seconds = time.perf_counter() - start
    print(f"{sum(a.size for a in w.values()):,} weights, {seconds:.1f} s of training")
    print(f"wrote {draw(c, w, curve, x_test, y_test)}")


if __name__ == "__main__":
    run(main)
