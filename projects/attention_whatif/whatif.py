"""What if attention were otherwise? The questions a learner asks, answered by training runs.

    python data/python_stdlib/prepare.py
    python projects/attention_whatif/whatif.py     # ten runs, 11 to 20 minutes on one core
    python projects/attention_whatif/whatif.py --only=squared,negated --steps=1000

Every run starts from the same weights and sees the same batches; one thing is changed. After an
interruption the same command goes on with the next run.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import torch
from torch.nn import functional as F

from bonsai.data.batches import Batches, prefetch
from bonsai.data.dataset import Mixture
from bonsai.files.jsonfile import read_json_object, write_json
from bonsai.files.textfile import check_writable
from bonsai.system.errors import UserError, run
from bonsai.system.runtime import setup
from bonsai.system.tables import table
from bonsai.training.schedule import learning_rate_at, set_rates
from bonsai.training.settings import StepSettings
from bonsai.training.step import TrainingStep
from configurator import Config, configure
from model import GPT, GPTConfig
from projects.common import COLORS, loss_by_position, new_figure, save_figure

# data
dataset = "python_stdlib"  # a folder in data/ [paths]
# the model
n_layer = 4  # [>= 1]
n_head = 4  # [>= 1]
n_embd = 128  # [>= 8]
block_size = 128  # [>= 1]
# training: AdamW, a linear warm-up, then a cosine to 0
steps = 400  # [>= 1]
batch_size = 16  # [>= 1]
learning_rate = 1e-3  # [>= 0]
seed = 1337  # [>= 0]
# what is shown
only = ""  # some of the questions, between commas; default: all [list]
windows = 256  # of the validation split, for the losses [>= 1]
out_dir = "out-whatif"  # where whatif.png and whatif.json go [path]
# -----------------------------------------------------------------------------

MOST = 2**28  # bytes of whatif.json, which has the losses of every step


@dataclass
class WhatIf:
    """One question: what is changed about the model."""

    question: str
    scores: Callable = torch.Tensor.matmul  # q (B, nh, T, hs), k^T (B, nh, hs, T) -> (B, nh, T, T)
    visible: Callable = torch.tril  # of (T, T): which keys (columns) a query (row) sees
    residual: bool = True
    fields: dict = field(default_factory=dict)  # of GPTConfig


def after(seen: torch.Tensor) -> torch.Tensor:
    """The mask on the other side: every position sees itself and what comes after it."""
    return seen.triu()


QUESTIONS = {
    "as it is": WhatIf("the model of model.py"),
    "squared": WhatIf(
        "the elements of queries and keys squared before the dot product",
        scores=lambda q, k: q.square() @ k.square(),
    ),
    "negated": WhatIf("the dot products negated", scores=lambda q, k: -(q @ k)),
    "other side": WhatIf("the mask on the other side", visible=after),
    "no mask": WhatIf("no mask at all", visible=lambda seen: seen),
    "no scaling": WhatIf("scores not divided by the root of the head size", fields={"scale": 1.0}),
    "no residual": WhatIf("no residual connections", residual=False),
    "one head": WhatIf("one head as wide as all", fields={"n_head": 1}),
    "many heads": WhatIf("heads of 8 channels", fields={"head_size": 8}),
    "no attention": WhatIf("every position sees itself only", visible=lambda s: s.tril().triu()),
}


def attend(attention: torch.nn.Module, what: WhatIf, x: torch.Tensor, *rest) -> torch.Tensor:
    """What CausalSelfAttention computes, written out, with `what` changed: x (B, T, C) -> same."""
    B, T, _ = x.shape
    nh, hs = attention.nh, attention.hs
    q, k, v = (y.view(B, T, nh, hs).transpose(1, 2) for y in attention.c_attn(x).chunk(3, dim=2))
    scores = what.scores(q, k.transpose(-2, -1)) * attention.scale  # (B, nh, T, T)
    seen = what.visible(torch.ones(T, T, dtype=torch.bool, device=x.device))
    weights = F.softmax(scores.masked_fill(~seen, -math.inf), dim=-1)
    y = (weights @ v).transpose(1, 2).reshape(B, T, nh * hs)  # heads side by side
    return attention.c_proj(y)


def build(c: Config, what: WhatIf, vocab_size: int) -> GPT:
    """The GPT of model.py with the forward passes of its blocks replaced."""
    heads = what.fields.get("n_head", c.n_head)
    if size := what.fields.get("head_size"):
        heads = max(1, c.n_embd // size)
    scale = what.fields.get("scale", 0.0)
    torch.manual_seed(c.seed)
    model = GPT(
        GPTConfig(
            block_size=c.block_size,
            vocab_size=vocab_size,
            n_layer=c.n_layer,
            n_head=heads,
            n_embd=c.n_embd,
            bias=False,
            attention_scale=scale,
        )
    )
    for block in model.transformer.h:
        block.attn.forward = partial(attend, block.attn, what)
        if not what.residual:
            block.forward = partial(straight, block)
    return model


def straight(block: torch.nn.Module, x: torch.Tensor, *rest) -> torch.Tensor:
    """A block without residual connections."""
    return block.mlp(block.ln_2(block.attn(block.ln_1(x))))


def train(c: Config, what: WhatIf, data: Mixture) -> tuple[GPT, list[float]]:
    """A run of `steps` steps; returns the model and the loss of each."""
    model = build(c, what, data.model_vocab_size)
    runtime = setup("cpu", "float32", False)
    schedule = {"warmup_iters": min(50, c.steps // 10), "lr_decay_iters": c.steps, "min_lr": 0.0}
    settings = StepSettings(learning_rate=c.learning_rate, seed=c.seed, **schedule)
    batches = Batches(data, c.block_size, c.batch_size, c.seed, "epoch")
    stream = prefetch(batches, 0, c.batch_size)
    training, losses = TrainingStep(model, settings, runtime), []
    for i in range(c.steps):
        set_rates(training.optimizer, learning_rate_at(i, settings), i, settings)
        losses.append(training(i, stream).item())
    stream.close()
    return model, losses


def runs_so_far(path: Path, about: dict) -> dict[str, dict]:
    """The rows of an earlier call by name, if their runs were those that this call would make."""
    kept = read_json_object(path, MOST) if path.exists() else {}
    rows = kept.get("rows", []) if kept.get("about") == about else []
    return {row["name"]: row for row in rows}


def draw(rows: list[dict], path: Path) -> None:
    """Training losses on the left; at the right the loss where nothing later can be seen."""
    figure = new_figure(9.5, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    for k, row in enumerate(rows):
        losses = torch.tensor(row["curve"])
        smooth = losses.unfold(0, min(20, len(losses)), 1).mean(dim=1)
        left.plot(smooth, color=COLORS[k], lw=1.3, label=row["name"])
    left.set(xlabel="step", ylabel="training loss (nats per token)")
    left.legend(fontsize=8, ncols=2)
    names = [row["name"] for row in rows][::-1]
    right.barh(names, [row["last"] for row in rows][::-1], color="#9db8d2", label="last position")
    right.plot([row["loss"] for row in rows][::-1], names, "o", color="#d1495b", label="all")
    right.set(xlabel="validation loss (nats per token)")
    right.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    right.grid(axis="y", visible=False)
    save_figure(figure, path)


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    chosen = [name.strip() for name in c.only.split(",") if name.strip()] or list(QUESTIONS)
    for name in chosen:
        if name not in QUESTIONS:
            raise UserError(f"only={name!r} is not one of {', '.join(QUESTIONS)}")
    if c.n_embd % c.n_head or c.n_embd % 8:
        raise UserError(f"n_embd={c.n_embd} must be divisible by n_head={c.n_head} and by 8")
    results = Path(c.out_dir) / "whatif.json"
    check_writable(results, "the results")
    data = Mixture.open(c.dataset)
    data.check(c.block_size, data.model_vocab_size)
    about = {**c, **data.fingerprints()}  # what decides about a run
    for other in ("only", "out_dir"):
        del about[other]
    found = runs_so_far(results, about)
    for name in chosen:
        if name in found:
            print(f"{name}: trained before, in {c.out_dir} (delete it to train anew)", flush=True)
            continue
        what, begin = QUESTIONS[name], time.perf_counter()
        model, curve = train(c, what, data)
        losses = loss_by_position(model, data.parts[0].split("val"), c.block_size, c.windows)
        row = {"name": name, "question": what.question, "loss": losses.mean().item()}
        row |= {"last": losses[-1].item(), "seconds": time.perf_counter() - begin, "curve": curve}
        print(f"{name}: validation loss {row['loss']:.4f}, {row['seconds']:.0f} s", flush=True)
        found[name] = row
        write_json(results, {"about": about, "rows": [*found.values()]})
    rows = [found[name] for name in chosen]
    columns = [("what if", "name", ""), ("changed", "question", ""), ("val loss", "loss", ".3f")]
    columns += [("at the last position", "last", ".3f"), ("seconds", "seconds", ".0f")]
    print(f"\n{table(rows, columns)}\n")
    draw(rows, Path(c.out_dir) / "whatif.png")


if __name__ == "__main__":
    run(main)
