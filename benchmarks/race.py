"""Seconds and tokens to the same loss: our fast recipe against nanoGPT, from a checkout of it.

    python data/shakespeare_char/prepare.py
    python benchmarks/race.py --peer=../nanoGPT                 # the race 'cpu'
    python benchmarks/race.py --peer=../nanoGPT --sweep=True    # also tune the peer's AdamW first
    python benchmarks/race.py --race=cpu256                     # nanoGPT's GPU result on a CPU

Both programs train on the same .bin, in turn, with the same seeds, each as a process of its own.
The clock (benchmarks/clock.py) runs from the opening of the data to the end of the last step, with
compilation and without evaluation. A run's length is set beforehand; what counts is the loss of its
last weights on the whole validation split, in windows that are the same for both (eval.py). Runs
that are in the results already are not repeated, so an interrupted race goes on.
"""

import runpy
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import torch

from benchmarks.track import SEED, Track
from bonsai import ROOT
from bonsai.files.access import save_picture
from bonsai.system.errors import UserError, run
from bonsai.system.provenance import header
from bonsai.system.tables import table
from configurator import configure, resolve_path

# -----------------------------------------------------------------------------
race = "cpu"  # a key of RACES below
peer = ""  # folder of a nanoGPT checkout; empty: ours alone [path]
seeds = 3  # runs of each; theirs and ours have the same seeds, 1337 and up [>= 1]
sweep = False  # first tune the peer's AdamW: the fewest steps and their best rate to the target
dataset = ""  # a prepared folder in data/; empty: the race's own [paths]
block_size = 0  # of the evaluation's windows; 0: the race's own [>= 0]
ours = ""  # settings for our runs, as --key=value words
steps = 0  # of every run; fewer than the race's own: a test of this script [>= 0]
minutes = 0.0  # start no run later than this; the same command goes on; 0: no limit [>= 0]
out = "out-race"  # folder for the runs, their logs and results [path]
plot = ""  # a picture of the curves, as docs/race.png [path]
# -----------------------------------------------------------------------------

SHIPPED = "config/train_shakespeare_char.py --device=cpu --compile=False --log_interval=1 "
RECIPE = SHIPPED + (
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --dropout=0.0 --beta2=0.99"
)
GPT2 = "config/train_gpt2.py --wandb_log=False --log_interval=1 --dtype=bfloat16"


@dataclass
class Race:
    dataset: str
    block_size: int  # of the evaluation's windows
    target: float  # whole-split validation loss
    config: str  # ours
    peer: str  # the peer's options, but the steps
    peer_steps: int
    peer_full: bool = True  # False: it takes hours; some steps are timed instead
    rate: float = 1e-3  # the peer's rate as it ships
    rates: list[float] = field(default_factory=list)  # of the sweep
    lengths: list[int] = field(default_factory=list)  # of the sweep, rising
    ours: str = ""  # our options beside the config's
    our_lengths: list[int] = field(default_factory=list)  # rising; empty: the config's max_iters


RACES = {
    # nanoGPT's recipe for a CPU, and the loss it reaches
    "cpu": Race(
        "shakespeare_char", 64, 1.898, "config/fast_shakespeare_char_cpu.py",
        RECIPE, 2000, True, 1e-3, [2e-3, 4e-3, 8e-3], [500, 750, 1000, 1150, 1500],
    ),
    # nanoGPT's recipe for a GPU, and the loss it reports, on a CPU
    "cpu256": Race(
        "shakespeare_char", 256, 1.4697, "config/fast_shakespeare_char.py", SHIPPED, 5000, False,
    ),
    # GPT-2 (124M) on one GPU: the loss that nanoGPT reaches at the end of its run is the target
    "gpu": Race(
        "race_text", 1024, 0.0, "config/fast_gpt2.py", GPT2, 250, True, 6e-4,
        [1.2e-3, 2.4e-3], [250],
        "--gradient_accumulation_steps=4 --momentum_warmup=50", [150, 200, 300, 400],
    ),
}  # fmt: skip

COLUMNS = (
    ("run", "name", ""),
    ("seed", "seed", "d"),
    ("steps", "steps", "d"),
    ("tokens", "tokens", ",d"),
    ("seconds", "seconds", ".1f"),
    ("first step", "first", ".2f"),
    ("tokens/s", "rate", ",.0f"),
    ("val loss", "loss", ".4f"),
)


def peer_options(spec: Race, rate: float, count: int) -> str:
    """The peer's settings at a rate and a length: warm-up and decay are scaled with the run."""
    warmup = min(100, max(1, count // 20))
    return (
        f"{spec.peer} --learning_rate={rate} --min_lr={rate / 10} --lr_decay_iters={count} "
        f"--warmup_iters={warmup}"
    )


def tune(track: Track, spec: Race) -> tuple[float, int]:
    """The peer's best: the fewest steps that reach the target with one seed, and their rate."""
    for count in [steps] if steps else spec.lengths:
        runs = {
            rate: track.run(f"sweep {rate:g}", "peer", SEED, count, peer_options(spec, rate, count))
            for rate in spec.rates
        }
        best = min(runs, key=lambda rate: runs[rate]["loss"])
        if runs[best]["loss"] <= spec.target:
            return best, count
    return best, count


def shortest(track: Track, lengths: list[int], options: str, goal: float) -> int:
    """The fewest of our steps that reach the goal with one seed."""
    for count in lengths:
        run = track.run("ours", "ours", SEED, count, f"{options} --lr_decay_iters={count}")
        if run["loss"] <= goal:
            break
    return count


def summary(runs: list[dict]) -> dict:
    """Mean loss, with its range, and median seconds of the runs of one name."""
    losses, seconds = [r["loss"] for r in runs], [r["seconds"] for r in runs]
    return {
        "name": runs[0]["name"],
        "n": len(runs),
        "steps": runs[0]["steps"],
        "tokens": runs[0]["tokens"],
        "loss": statistics.mean(losses),
        "low": min(losses),
        "high": max(losses),
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
    }


def draw(runs: list[dict], target: float, path: Path) -> None:
    """Training loss (smoothed) over seconds, and the final validation losses as points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=130, layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(r["name"] for r in runs))
    for r in runs:
        color = f"C{names.index(r['name'])}"
        smooth, mean = [], r["curve"][0]
        for loss in r["curve"]:
            mean += 0.1 * (loss - mean)
            smooth.append(mean)
        axes.plot(r["ends"][: len(smooth)], smooth, color=color, alpha=0.5, linewidth=1)
        label = r["name"] if r is next(q for q in runs if q["name"] == r["name"]) else None
        axes.plot(r["seconds"], r["loss"], "o", color=color, label=label)
    axes.axhline(target, color="gray", linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("seconds since the data were opened (log)")
    axes.set_ylabel("cross-entropy, nats per token")
    axes.set_title("lines: training loss, smoothed; points: whole validation split", fontsize=10)
    axes.legend()
    save_picture(figure, path)


def main() -> None:
    configure(globals())
    if race not in RACES:
        raise UserError(f"race={race} is not one of {', '.join(RACES)}")
    spec = RACES[race]
    print("\n".join(header(torch.device("cpu"))), flush=True)
    track = Track(race, Path(out), dataset or spec.dataset, block_size or spec.block_size, minutes)
    options = f"{ROOT / spec.config} {spec.ours} {ours}".strip()
    arms = [("ours", "ours", steps or our_steps(spec), options)]
    if peer:
        track.add_peer(resolve_path(peer))
        count = steps or (spec.peer_steps if spec.peer_full else 20)
        arms.append(("nanoGPT", "peer", count, peer_options(spec, spec.rate, count)))
        if sweep and spec.lengths:
            rate, count = tune(track, spec)
            arms.append(("nanoGPT, tuned", "peer", count, peer_options(spec, rate, count)))
    if spec.our_lengths and not steps:
        goal = spec.target
        if not goal and peer:  # the loss of the peer as it ships
            goal = track.run(*arms[1][:2], SEED, *arms[1][2:])["loss"]
        arms[0] = ("ours", "ours", shortest(track, spec.our_lengths, options, goal), options)
    runs = []
    for k in range(seeds):
        for name, project, count, options in arms[:: -1 if k % 2 else 1]:
            runs.append(track.run(name, project, SEED + k, count, options))
    runs.sort(key=lambda r: ([a[0] for a in arms].index(r["name"]), r["seed"]))
    print(f"\n{table(runs, COLUMNS)}\n")

    found = [summary([r for r in runs if r["name"] == name]) for name, *_ in arms]
    for s in found:
        print(
            f"{s['name']}: val loss {s['loss']:.4f} ({s['low']:.4f} to {s['high']:.4f}, "
            f"n={s['n']}) after {s['tokens']:,} tokens and {s['seconds']:.1f} s "
            f"({s['fastest']:.1f} to {s['slowest']:.1f})"
        )
    target = spec.target or next((s["loss"] for s in found if s["name"] == "nanoGPT"), 0.0)
    mine = found[0]
    reached = "reached" if mine["loss"] <= target else "NOT reached"
    print(f"target {target:.4f}: {reached}")
    for s in found[1:]:
        if not spec.peer_full:
            hours = s["seconds"] / s["steps"] * spec.peer_steps / 3600
            print(f"{s['name']}'s own {spec.peer_steps} steps would take about {hours:.1f} hours")
            continue
        print(
            f"{s['name']}: {s['seconds'] / mine['seconds']:.1f} times the seconds, "
            f"{s['tokens'] / mine['tokens']:.1f} times the tokens"
        )
    track.save(summary=found, target=target)
    if plot:
        draw(runs, target, Path(plot))


def our_steps(spec: Race) -> int:
    """max_iters of our config, or of --ours."""
    given = [w.split("=")[1] for w in ours.split() if w.startswith("--max_iters=")]
    return int(given[-1]) if given else runpy.run_path(str(ROOT / spec.config))["max_iters"]


if __name__ == "__main__":
    run(main)
