"""GPT-2 (124M) on one GPU: seconds to the loss that nanoGPT reaches on the same text.

    python data/custom/prepare.py --input=text.xz --endings=.xz --name=race_text --tokenizer=gpt2
    python benchmarks/race_gpu.py --peer=../nanoGPT

Each run is a process of its own, timed as in benchmarks/race.py. In this order:

- nanoGPT is tuned: every pair of a batch size and a learning rate runs for a third of the tokens,
  and is judged by its last training losses. Beside these runs, two steps of each program that is
  timed later are run, so that its compiled code is in the caches of both projects.
- On the same number of tokens: nanoGPT as shipped, with warm-up and decay scaled to the run, then
  ours, then nanoGPT with the best pair.
- Ours again, in shorter runs that should end at each of nanoGPT's two final losses. Their length is
  estimated from our long run: the place where its smoothed training loss falls below that loss. The
  verdict also has the seconds to that place ("read off").

Runs that are in the results already are not repeated, so an interrupted race can go on.
"""

import re
import runpy
import statistics
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import torch

from benchmarks.harness import table
from benchmarks.track import SEED, Arm, Track, scaled, words_of
from bonsai import ROOT
from bonsai.planning.memory import GIB
from bonsai.system.errors import UserError, run
from configurator import Config, configure, resolve_path

# -----------------------------------------------------------------------------
peer = ""  # folder of a nanoGPT checkout; empty: only ours [path]
dataset = "race_text"  # a prepared folder in data/ [paths]
tokens = 14745600  # of a run: 30 steps of nanoGPT as shipped [>= 1]
shipped = "12x40"  # nanoGPT's rows by micro-batches of a step, as shipped
batches = "24x5,30x2"  # pairs to tune over: 122,880 and 61,440 tokens per step [list]
rates = "6e-4,1.2e-3,2.4e-3"  # learning rates to tune over; shipped: 6e-4 [list of float > 0]
theirs = ""  # settings for nanoGPT's runs, as --key=value words
ours = "--gradient_accumulation_steps=4 --momentum_warmup=50"  # for ours, besides the config's
at_once = 0  # tuning runs that share the GPU, as only losses count; 0: one per 30 GiB [>= 0]
block_size = 1024  # tokens of a row, in training and evaluation [>= 1]
minutes = 0.0  # start no run after so many; repeat the command to go on; 0: no limit [>= 0]
out = "out-race-gpu"  # folder for the runs, their logs and race.json and .txt [path]
# -----------------------------------------------------------------------------

RUNS = (
    ("run", "name", ""), ("steps", "steps", "d"), ("tokens", "tokens", ",d"),
    ("seconds", "seconds", ".1f"), ("first step", "first", ".1f"), ("tokens/s", "rate", ",.0f"),
    ("loss", "loss", ".4f"),
)  # fmt: skip

TUNING = tuple(column for column in RUNS if column[0] in ("run", "steps", "tokens", "loss"))


def rows_by_micro_batches(c: Config, name: str) -> list[tuple[int, int]]:
    """The pairs in a setting like 24x5,30x2. Raises UserError."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*(,[1-9]\d*x[1-9]\d*)*", c[name]):
        raise UserError(f"{name}={c[name]} must be rows by micro-batches of a step, such as 24x5")
    return [tuple(map(int, word.split("x"))) for word in c[name].split(",")]


def peer_arm(c: Config, name: str, batch: str, rate: float, share: int = 1) -> Arm:
    """nanoGPT with batches of ROWSxMICRO-BATCHES, on 1 / share of the tokens."""
    rows, micro = map(int, batch.split("x"))
    count = max(1, c.tokens // share // (rows * micro * c.block_size))
    options = f"config/train_gpt2.py --wandb_log=False --dtype=bfloat16 --batch_size={rows}"
    options += f" --gradient_accumulation_steps={micro} {scaled(rate, count)} {c.theirs}"
    return Arm(name, "peer", count, options.strip(), probe=share > 1)


def our_arm(c: Config, name: str, count: int = 0) -> Arm:
    """config/fast_gpt2.py. count: steps; 0: as many as there are tokens for."""
    config = ROOT / "config" / "fast_gpt2.py"
    set_there = runpy.run_path(str(config))
    given = dict(word[2:].split("=", 1) for word in words_of(c, "ours"))
    rows, micro = (
        int(given.get(name, set_there[name]))
        for name in ("batch_size", "gradient_accumulation_steps")
    )
    count = count or max(1, c.tokens // (rows * micro * c.block_size))
    return Arm(name, "ours", count, f"{config} {c.ours} --lr_decay_iters={count}")


def room_for() -> int:
    """How many runs of 124M fit into the GPU's memory together."""
    if not torch.cuda.is_available():
        return 1
    return max(1, torch.cuda.get_device_properties(0).total_memory // (30 * GIB))


def read_off(run: dict, goal: float) -> int:
    """The first step after which a run's smoothed training loss is at most `goal`, or the last."""
    curve = run["curve"]
    for i in range(len(curve)):
        if statistics.mean(curve[max(0, i - 4) : i + 5]) <= goal:
            return i + 1
    return len(curve)


def to_the_loss(c: Config, track: Track, long: dict, name: str, goal: float) -> dict:
    """Our run that ends at a loss of `goal` or below, or the last one tried. The first try has
    three quarters of the steps that were read off, because a run that ends has a lower loss than a
    longer one at the same step."""
    count = max(1, read_off(long, goal) * 3 // 4)
    for _ in range(4):
        found = track.run(our_arm(c, name, count), SEED)
        if found["loss"] <= goal or count >= long["steps"]:
            break
        count = min(long["steps"], max(count + 1, count * 5 // 4))
    return found


def verdict(long: dict, pairs: list[tuple[dict, dict]]) -> str:
    """The results in words. pairs: a run of nanoGPT, and ours to its loss. long: our run on as many
    tokens."""
    lines = []
    for theirs, own in pairs:
        goal, step = theirs["loss"], read_off(long, theirs["loss"])
        reached = "reached" if own["loss"] <= goal else "NOT reached"
        lines.append(
            f"{theirs['name']}: {goal:.4f} after {theirs['seconds']:.1f} s; ours {reached} in "
            f"{own['seconds']:.1f} s, {theirs['seconds'] / own['seconds']:.1f} times less, "
            f"{theirs['tokens'] / own['tokens']:.1f} times fewer tokens; read off our long run "
            f"{long['ends'][step - 1]:.1f} s; on equal text ours {long['loss'] - goal:+.4f}"
        )
    return "\n".join(lines)


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    for name in ("shipped", "batches"):
        rows_by_micro_batches(c, name)
    for name in ("ours", "theirs"):
        words_of(c, name)
    track = Track("race", c.out, c.dataset, c.block_size, c.minutes, RUNS)
    if not c.peer:
        rows = [track.run(our_arm(c, "ours"), SEED)]
        return track.results.finish(table(rows, RUNS))
    track.add_peer(resolve_path(c.peer))
    pairs = [(b, float(rate)) for b in c.batches.split(",") for rate in c.rates.split(",")]
    tuning = [
        peer_arm(c, f"tuning: {batch} rows, rate {rate:g}", batch, rate, 3) for batch, rate in pairs
    ]
    first = [peer_arm(c, "as shipped", c.shipped, 6e-4), our_arm(c, "ours", 2)]
    compiling = [replace(a, name=f"compiling: {a.name}", steps=2, probe=True) for a in first]
    *grid, _, _ = track.run_together([*tuning, *compiling], SEED, c.at_once or room_for())
    best = min(zip(pairs, grid), key=lambda pair: pair[1]["loss"])[0]
    shipped = track.run(peer_arm(c, "nanoGPT as shipped", c.shipped, 6e-4), SEED)
    long = track.run(our_arm(c, "ours, equal text"), SEED)
    name = f"nanoGPT tuned: {best[0]} rows, rate {best[1]:g}"
    tuned = track.run(peer_arm(c, name, *best), SEED)
    own = [
        to_the_loss(c, track, long, f"ours, to the loss {name}", theirs["loss"])
        for name, theirs in (("tuned", tuned), ("as shipped", shipped))
    ][::-1]
    rows = [shipped, tuned, long, *own]
    text = f"{table(rows, RUNS)}\n\n{verdict(long, [(shipped, own[0]), (tuned, own[1])])}\n\n"
    text += f"a third of the tokens, losses of training:\n\n{table(grid, TUNING)}"
    track.results.finish(text)


if __name__ == "__main__":
    run(main)
