"""A GPT that learns to add, or to sort, from rows of digits; then every possible case is checked.

    python projects/adder/adder.py                        # 2 digits, 100% of the 10,000 sums
    python projects/adder/adder.py --digits=3
    python projects/adder/adder.py --task=sort            # 6 digits of 0, 1, 2, as minGPT's demo
    python projects/adder/adder.py --ask=55+45

A sum is a row of digits without signs, the answer backwards, as one adds by hand: 85 + 50 = 135
is 8 5 5 0 5 3 1. The loss counts the answer only (a mask, which is part of the data format), and
train.py trains.
"""

import itertools
import math
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import numpy as np
import torch

from bonsai.data.writer import Writer
from bonsai.engine import SamplingParams, generate
from bonsai.models.loading import load_model
from bonsai.system.errors import UserError, end_if_told, run
from bonsai.tokenizers import CharTokenizer
from configurator import Config, configure, refuse_idle
from projects.common import new_figure, save_figure, train

# what is learnt
task = "add"  # [add | sort]
digits = 2  # of each number to be added [1 to 3]
length = 6  # digits to be sorted [>= 2]
symbols = 3  # which are below this [2 to 10]
held_out = 0  # cases never trained on; 0: a quarter of all, of sums at most 500 [>= 0]
# training; all else is in config.py
steps = 0  # 0: 500 for 2 digits, 2,000 for 3, 300 to sort [>= 0]
batch_size = 512  # rows [>= 1]
seed = 1337  # of the split, the weights and the batches [>= 0]
# afterwards
ask = ""  # such as 55+45, or 210210 to be sorted: answer it with the model that was trained
out_dir = ""  # default: out-adder-add2, or out-adder-sort6of3 [path]
# -----------------------------------------------------------------------------


def sums(n: int) -> np.ndarray:
    """Every sum of two numbers of n digits as a row: a, b, a + b backwards: (100^n, 3n + 1)."""
    a, b = np.divmod(np.arange(100**n), 10**n)
    parts = [a // 10**i % 10 for i in reversed(range(n))]
    parts += [b // 10**i % 10 for i in reversed(range(n))]
    parts += [(a + b) // 10**i % 10 for i in range(n + 1)]
    return np.stack(parts, axis=1)


def sortings(n: int, below: int) -> np.ndarray:
    """Every row of n digits, and after it the same sorted: (below^n, 2n)."""
    rows = np.array(list(itertools.product(range(below), repeat=n)))
    return np.concatenate((rows, np.sort(rows, axis=1)), axis=1)


def cases(c: Config) -> tuple[np.ndarray, int]:
    """All rows of the task (N, row_length), and how many tokens of a row are the question."""
    if c.task == "add":
        return sums(c.digits), 2 * c.digits
    return sortings(c.length, c.symbols), c.length


def hold_out(c: Config, count: int) -> np.ndarray:
    """Which of `count` cases are held out: (count,) of bool."""
    n = c.held_out or (min(500, count // 4) if c.task == "add" else count // 4)
    if not 0 < n < count:
        raise UserError(f"held_out={n}: of {count:,} cases some must be held out and some not")
    chosen = np.random.default_rng(c.seed).permutation(count)[:n]
    return np.isin(np.arange(count), chosen)


def prepare(folder: Path, rows: np.ndarray, question: int, held: np.ndarray) -> None:
    """Write the data set: whole rows, of which the question is context only."""
    tokenizer = CharTokenizer("0123456789")
    mask = np.tile(np.arange(rows.shape[1]) >= question, (len(rows), 1))
    with Writer(folder, tokenizer, row_length=rows.shape[1], masks=True) as writer:
        for split, which in (("train", ~held), ("val", held)):
            writer.add(
                split, rows[which].ravel(), mask=mask[which].ravel(), documents=int(which.sum())
            )
        writer.finish()


@torch.no_grad()
def right(model: torch.nn.Module, rows: np.ndarray, question: int) -> np.ndarray:
    """Which rows (N, W) the model answers rightly, greedily: (N,) of bool.

    One pass over the whole rows: an answer is right exactly if every digit is the likeliest one
    after the right digits before it.
    """
    model.eval()
    right_rows = []
    for part in np.array_split(rows, -(-len(rows) // 4096)):
        end_if_told()
        ids = torch.from_numpy(part).long()
        logits, _ = model(ids[:, :-1], ids[:, 1:])  # (B, W - 1, V)
        said = logits[:, question - 1 :].argmax(dim=-1)
        right_rows.append((said == ids[:, question:]).all(dim=1).numpy())
    return np.concatenate(right_rows)


def answer(c: Config, model: torch.nn.Module, text: str) -> str:
    """What the model says to 55+45 (or to 210210, for sorting), token by token."""
    if c.task == "add":
        match = re.fullmatch(r"\s*(\d+)\s*\+\s*(\d+)\s*", text, re.ASCII)
        if not match or max(len(n) for n in match.groups()) > c.digits:
            raise UserError(
                f"ask={text!r}: ask for a sum of numbers of {c.digits} digits, as 55+45"
            )
        question = "".join(n.zfill(c.digits) for n in match.groups())
        n = c.digits + 1
    else:
        allowed = "0123456789"[: c.symbols]
        if len(text) != c.length or set(text) - set(allowed):
            raise UserError(f"ask={text!r}: give {c.length} digits out of {allowed} to be sorted")
        question, n = text, c.length
    params = SamplingParams(max_new_tokens=n, temperature=0)
    ids = [row[0] for row in generate(model, [int(digit) for digit in question], params)]
    said = "".join(map(str, ids))
    return f"{text} = {int(said[::-1])}" if c.task == "add" else f"{text} -> {said}"


def draw(c: Config, maps: dict[int, np.ndarray], held: np.ndarray, path: Path) -> None:
    """Error maps, {step: which are right}: a point for a case, at the halves of its question."""
    count = len(held)
    side = c.symbols ** (c.length // 2) if c.task == "sort" else 10**c.digits
    half = "half" if c.task == "sort" else "number"
    colors = np.array([[0.91, 0.94, 0.97], [0.6, 0.74, 0.88], [0.82, 0.29, 0.36], [0.3, 0, 0.05]])
    figure = new_figure(2.6 * len(maps) + 0.5, 3.7)  # of maps, their titles and the legend
    grid = figure.subplots(1, len(maps), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (step, ok) in zip(grid, maps.items()):
        kind = np.where(ok, held.astype(int), 2 + held)
        axes.imshow(colors[kind].reshape(side, -1, 3), origin="lower", interpolation="nearest")
        axes.set_title(f"step {step:,}: {ok.sum():,} of {count:,} right", fontsize=9)
        axes.set_xlabel(f"second {half}")
        axes.grid(False)
    names = ("right", "right, held out", "wrong", "wrong, held out")
    marks = [
        grid[0].plot([], [], "s", color=color, label=name)[0] for color, name in zip(colors, names)
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=4)
    grid[0].set_ylabel(f"first {half}")
    save_figure(figure, path)


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    refuse_idle(
        c,
        (c.task == "add", "length symbols", "with --task=add"),
        (c.task == "sort", "digits", "with --task=sort"),
    )
    if c.length * math.log10(c.symbols) > 6:
        raise UserError(
            f"symbols={c.symbols}, length={c.length}: that is more than a million cases"
        )
    name = f"add{c.digits}" if c.task == "add" else f"sort{c.length}of{c.symbols}"
    out = Path(c.out_dir or f"out-adder-{name}")
    if not c.ask:
        rows, question = cases(c)
        held = hold_out(c, len(rows))
        prepare(out / "data", rows, question, held)
        count = c.steps or (300 if c.task == "sort" else {1: 300, 2: 500, 3: 2000}[c.digits])
        options = [f"--dataset={out.resolve() / 'data'}", f"--block_size={rows.shape[1] - 1}"]
        options += [f"--batch_size={c.batch_size}", f"--seed={c.seed}"]
        options += [f"--save_interval={max(1, count // 10)}"]
        train(HERE / "config.py", out / "run", count, *options)
    model = load_model("best", out / "run").model
    if c.ask:
        print(answer(c, model, c.ask))
        return
    kept = {int(p.stem[5:]): p for p in sorted((out / "run").glob("step_*.pt"))}
    maps = {}
    for step, path in kept.items():  # a million sums take a minute: not again once all are right
        if step == max(kept) or not maps or not maps[max(maps)].all():
            maps[step] = right(load_model(str(path), out).model, rows, question)
            print(f"step {step:,}: {maps[step].sum():,} of {len(rows):,} right", flush=True)
    ok = maps[max(maps)]
    for kind, which in (("trained on", ~held), ("held out", held)):
        print(f"{kind}: {ok[which].sum():,} of {which.sum():,} right ({ok[which].mean():.2%})")
    for row in rows[~ok][:20]:
        text = "".join(map(str, row[:question]))
        text = f"{text[: c.digits]}+{text[c.digits :]}" if c.task == "add" else text
        print(f"wrong: {answer(c, model, text)}")
    if c.task == "add" and c.digits > 1:
        print(f"the sum that minGPT got wrong: {answer(c, model, '55+45')}")
    learning = [step for step, ok in maps.items() if not ok.all()][-4:]
    draw(
        c, {step: maps[step] for step in sorted({*learning, max(maps)})}, held, out / f"{name}.png"
    )


if __name__ == "__main__":
    run(main)
