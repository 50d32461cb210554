"""Learning from rewards: a GPT that adds is told which of its answers were right, and nothing else.

    python projects/rewards/rewards.py                       # some four minutes on two CPU cores
    python projects/rewards/rewards.py --ways=reinforce --reward=digits
    python projects/rewards/rewards.py --digits=1            # a small version: two minutes

train.py first teaches a model to add, but stops too early (projects/adder). Then it goes on in
three ways, from the same weights and with the same questions. It tries each question several times
and makes right answers likelier and wrong ones less likely ('reinforce'); or it learns its own
right answers by heart ('imitate'); or it is told the answers ('told'). An answer has few digits, so
the chance of a right one is computed exactly for every sum there is, and so is that of one right in
k tries.
"""

import copy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import numpy as np
import torch
from torch.nn import functional as F

from bonsai.files.textfile import check_writable
from bonsai.models.loading import load_model
from bonsai.runs.checkpoint import save_checkpoint
from bonsai.runs.restore import load_checkpoint
from bonsai.system.errors import UserError, end_if_told, run
from bonsai.system.tables import table
from configurator import Config, configure
from projects.adder import adder
from projects.common import COLORS, new_figure, save_figure, train

# what is learnt
digits = 2  # of each number to be added [1 to 2]
held_out = 0  # sums never asked; 0: a quarter of all, at most 500 [>= 0]
base_steps = 0  # of train.py, before there are rewards; 0: 200 for 2 digits, 40 for 1 [>= 0]
# learning from rewards
ways = "reinforce,imitate,told"  # some of these [list]
reward = "answer"  # what earns it: a right answer, or each right digit its share [answer | digits]
steps = 400  # [>= 1]
questions = 32  # in a step [>= 1]
tries = 16  # answers to each question [>= 2]
learning_rate = 2e-4  # of AdamW, after a warm-up of 20 steps; then linearly to 0 [>= 0]
seed = 1337  # of the split, the weights, the questions and the answers [>= 0]
out_dir = ""  # default: out-rewards-2, by the number of digits [path]
# -----------------------------------------------------------------------------

WAYS = {
    "reinforce": "its right answers made likelier, its wrong ones less likely",
    "imitate": "its own right answers learnt",
    "told": "the right answers told",
}
TRIES = (1, 4, 16, 64, 256)  # for the chance that one of so many answers is right


@torch.no_grad()
def chances(model: torch.nn.Module, rows: torch.Tensor, question: int) -> np.ndarray:
    """The probability, at temperature 1, that the model gives the right answer: (N,) float64.

    rows (N, W) int64: whole rows, of which the first `question` tokens are asked. The product of
    the probabilities of the right digits, each after the right digits before it.
    """
    model.eval()
    parts = [log_probability(model, part, question).double() for part in rows.split(4096)]
    return torch.cat(parts).exp().numpy()


def log_probability(model: torch.nn.Module, rows: torch.Tensor, question: int) -> torch.Tensor:
    """log p(answer | question) in nats of rows (N, W), whose first `question` tokens are asked:
    (N,)."""
    logits, _ = model(rows[:, :-1], rows[:, 1:])  # (N, W - 1, V)
    log_p = F.log_softmax(logits[:, question - 1 :].float(), dim=-1)
    return log_p.gather(2, rows[:, question:, None])[..., 0].sum(dim=1)


@torch.no_grad()
def draw_answers(model: torch.nn.Module, asked: torch.Tensor, n: int, noise: torch.Generator):
    """Questions (N, question) with an answer of n tokens drawn to each: (N, question + n).

    Without a cache, which for three digits would save nothing.
    """
    rows = asked
    for _ in range(n):
        logits, _ = model(rows)  # (N, 1, V): of the last position
        p = F.softmax(logits[:, -1].float(), dim=-1)
        rows = torch.cat((rows, torch.multinomial(p, 1, generator=noise)), dim=1)
    return rows


def rewards(said: torch.Tensor, right: torch.Tensor, kind: str) -> torch.Tensor:
    """What answers (N, n) earn, (N,): 1 for a right one, or of 1 the share of right digits."""
    same = said == right
    return same.float().mean(dim=1) if kind == "digits" else same.all(dim=1).float()


def advantages(earned: torch.Tensor) -> torch.Tensor:
    """How much more each answer earned than the other answers to its question: (questions, tries).

    The mean of the others is a baseline that does not depend on the answer itself, so that the
    gradient of the loss below is, on average, exactly that of the expected reward (REINFORCE,
    Williams 1992; leave-one-out: Kool et al. 2019). GRPO (Shao et al. 2024) also divides by the
    standard deviation, which favours questions that are nearly always, or hardly ever, answered
    rightly (Liu et al. 2025).
    """
    n = earned.size(1)
    return (earned - earned.mean(dim=1, keepdim=True)) * n / (n - 1)


def loss_of(c: Config, way: str, model, rows: torch.Tensor, question: int, noise) -> torch.Tensor:
    """The loss of a step. rows (questions, W): sums that are asked, with their right answers."""
    if way == "told":
        return -log_probability(model, rows, question).mean()
    asked = rows.repeat_interleave(c.tries, dim=0)
    answers = draw_answers(model, asked[:, :question], rows.size(1) - question, noise)
    earned = rewards(answers[:, question:], asked[:, question:], c.reward)
    log_p = log_probability(model, answers, question)
    if way == "imitate":  # what earned nothing is not learnt: STaR (Zelikman et al. 2022)
        return -(earned * log_p).sum() / earned.sum().clamp(min=1)
    return -(advantages(earned.view(-1, c.tries)).flatten() * log_p).mean()


def learn(
    c: Config, way: str, model: torch.nn.Module, rows: torch.Tensor, held: np.ndarray
) -> list:
    """Train the model in place. Returns the chances (N,) before, after each tenth, at the end."""
    question, every = 2 * c.digits, max(1, c.steps // 10)
    noise = torch.Generator().manual_seed(c.seed)
    order = torch.Generator().manual_seed(c.seed)  # the same questions, whatever the way
    pool = torch.from_numpy(np.flatnonzero(~held))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.0)
    curve = [(0, chances(model, rows, question))]
    for step in range(c.steps):
        end_if_told()
        rate = min((step + 1) / 20, 1 - step / c.steps) * c.learning_rate
        for group in optimizer.param_groups:
            group["lr"] = rate
        model.train()
        asked = rows[pool[torch.randint(len(pool), (c.questions,), generator=order)]]
        optimizer.zero_grad()
        loss_of(c, way, model, asked, question, noise).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == c.steps:
            p = chances(model, rows, question)
            curve.append((step + 1, p))
            print(
                f"{way}, step {step + 1}: right with probability {p[held].mean():.3f}", flush=True
            )
    return curve


def one_of(p: np.ndarray, k: int) -> float:
    """The mean chance that at least one of k answers is right: pass@k, exactly."""
    return float((1 - (1 - p) ** k).mean())


def draw(c: Config, curves: dict[str, list], held: np.ndarray, path: Path) -> None:
    """The chance over the steps; its map before and after the first way, with a point for each sum;
    the chance that one of several tries is right."""
    figure = new_figure(13, 3.6)
    left, *maps, right = figure.subplots(1, 4, width_ratios=(1.1, 1, 1, 1.1))
    several = np.unique(np.geomspace(1, 1024, 30).astype(int))
    (first, curve), *_ = curves.items()
    before, after = curve[0][1], curve[-1][1]
    for axes, p, title in zip(maps, (before, after), ("before", f"after: {first}")):
        image = axes.imshow(p.reshape(10**c.digits, -1), origin="lower", vmin=0, vmax=1)
        axes.set(xlabel="second number", title=f"{title}, {p.mean():.3f}")
        axes.grid(False)
    maps[0].set_ylabel("first number")
    figure.colorbar(image, ax=maps, label="probability of the right answer", shrink=0.8)
    right.plot(several, [one_of(before, k) for k in several], color="#888888", label="before")
    for color, (way, curve) in zip(COLORS, curves.items()):
        at, p = [step for step, _ in curve], curve[-1][1]
        left.plot(at, [p[~held].mean() for _, p in curve], color=color, label=way)
        left.plot(at, [p[held].mean() for _, p in curve], ":", color=color)
        right.plot(several, [one_of(p, k) for k in several], color=color, label=way)
    left.set(xlabel="step (dotted: sums never asked)", ylabel="probability of the right answer")
    right.set(xlabel="tries", ylabel="probability that one is right", xscale="log")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    save_figure(figure, path)


def save(folder: Path, model: torch.nn.Module, like: dict, steps: int) -> None:
    """The model as a checkpoint, for sample.py and eval.py."""
    kept = {key: value for key, value in like.items() if key not in ("model", "optimizer")}
    save_checkpoint(folder, {**kept, "model": model.state_dict(), "iter_num": steps})


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    chosen = [name.strip() for name in c.ways.split(",") if name.strip()]
    for name in chosen or [""]:
        if name not in WAYS:
            raise UserError(f"ways={name!r} is not one of {', '.join(WAYS)}")
    out = Path(c.out_dir or f"out-rewards-{c.digits}")
    check_writable(out / "rewards.png", "the picture")
    rows = adder.sums(c.digits)
    task = Config(task="add", held_out=c.held_out, seed=c.seed)
    held = adder.hold_out(task, len(rows))
    adder.prepare(out / "data", rows, 2 * c.digits, held)
    count = c.base_steps or {1: 40, 2: 200}[c.digits]
    options = [f"--dataset={out.resolve() / 'data'}", f"--block_size={rows.shape[1] - 1}"]
    options += [f"--seed={c.seed}", f"--eval_interval={count}"]
    train(HERE.parent / "adder" / "config.py", out / "base", count, *options)
    base, checkpoint = load_model("best", out / "base").model, load_checkpoint(out / "base/ckpt.pt")
    ids, curves, results = torch.from_numpy(rows).long(), {}, []
    for way in chosen:
        model = copy.deepcopy(base)
        curves[way] = learn(c, way, model, ids, held)
        save(out / way, model, checkpoint, c.steps)
        if not results:
            results.append(result(c, "before", curves[way][0][1], held, base, rows))
        results.append(result(c, way, curves[way][-1][1], held, model, rows))
    columns = [("", "name", ""), ("right", "right", ".3f"), ("sums never asked", "held", ".3f")]
    columns += [("likeliest answer right", "greedy", ".3f"), ("sums below 0.01", "lost", ",d")]
    columns += [(f"one of {k}", f"one of {k}", ".4f") for k in TRIES[1:]]
    print(f"\n{table(results, columns)}\n")
    draw(c, curves, held, out / "rewards.png")


def result(c: Config, name: str, p: np.ndarray, held: np.ndarray, model, rows: np.ndarray) -> dict:
    """A row of the table, from the chances p (N,) of all sums."""
    greedy = adder.right(model, rows, 2 * c.digits)
    row = {"name": name, "right": p[~held].mean(), "held": p[held].mean(), "greedy": greedy.mean()}
    row["lost"] = int((p < 0.01).sum())
    return row | {f"one of {k}": one_of(p, k) for k in TRIES[1:]}


if __name__ == "__main__":
    run(main)
