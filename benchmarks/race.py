"""Seconds and tokens to the same loss: our fast recipe against nanoGPT, from a checkout of it.

    python data/shakespeare_char/prepare.py
    python benchmarks/race.py --peer=../nanoGPT                 # the race 'cpu'
    python benchmarks/race.py --peer=../nanoGPT --sweep=True    # also tune the peer's AdamW first
    python benchmarks/race.py --race=cpu256                     # nanoGPT's GPU result on a CPU
    python benchmarks/race.py --race=recipe --peer=../nanoGPT   # its CPU recipe, whole programs
    python benchmarks/race.py --race=ablation --only=head       # what a part of the recipe gains
    python benchmarks/race.py --race=ablation_bpe               # the same, with byte-pair tokens

Both programs train on the same .bin with the same seeds, in turn, each run in its own process. The
clock (benchmarks/clock.py) starts when the model and its optimizer have been made, and stops at the
end of the last step; it includes compilation, but no evaluation. The length of a run is fixed
beforehand. Runs are compared by the loss of their last weights on the whole validation split, in
the same windows for both (eval.py).

Only `recipe` is nanoGPT's command word for word: in float32, timed from the start of the process to
its end, with its own evaluations, and judged by the checkpoint that it keeps. `ablation` runs only
ours: the recipe of `cpu` with one change at a time, 9 minutes on two cores; `ablation_bpe` the
recipe of config/fast_gpt2.py at 1.3M parameters, a minute per run. Runs that are in the results
already are not repeated, so an interrupted race can go on.
"""

import runpy
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

from benchmarks.harness import in_turn, known, table
from benchmarks.track import SEED, Arm, Track, scaled, words_of
from bonsai import ROOT
from bonsai.files.access import save_picture
from bonsai.system.caches import keep_fonts
from bonsai.system.errors import UserError, run
from bonsai.system.tables import spread
from configurator import Config, configure, refuse_idle, resolve_path

# -----------------------------------------------------------------------------
race = "cpu"  # a key of RACES below
peer = ""  # folder of a nanoGPT checkout; empty: only ours [path]
seeds = 3  # runs of each; both projects have the same seeds, from 1337 on [>= 1]
sweep = False  # first tune the peer's AdamW: the fewest steps that reach the target, and their rate
dataset = ""  # a prepared folder in data/; empty: the race's own [paths]
block_size = 0  # tokens of the evaluation's windows; 0: the race's own [>= 0]
ours = ""  # settings for our runs, as --key=value words
only = ""  # run only ablations whose name begins with this; empty: all
steps = 0  # of every run; 0: the race's own; fewer are for tests of this program [>= 0]
minutes = 0.0  # start no run after so many; repeat the command to go on; 0: no limit [>= 0]
out = "out-race"  # folder for the runs, their logs and results [path]
plot = ""  # a picture of the curves, as docs/race.png [path]
# -----------------------------------------------------------------------------

SHIPPED = "config/train_shakespeare_char.py --device=cpu --compile=False "
SMALL = "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --dropout=0.0 "


@dataclass
class Race:
    dataset: str
    block_size: int  # tokens of the evaluation's windows
    target: float  # validation loss on the whole split
    config: str  # our config file
    peer: str  # the peer's options, without the number of steps
    peer_steps: int
    peer_full: bool = True  # False: a whole run takes hours, so only some steps are timed
    rate: float = 1e-3  # the peer's rate as shipped
    rates: list[float] = field(default_factory=list)  # rates of the sweep
    lengths: list[int] = field(default_factory=list)  # numbers of steps of the sweep, ascending
    ours: str = ""  # for an ablation: our options besides the config's


CPU = ("shakespeare_char", 64, 1.898, "config/fast_shakespeare_char_cpu.py")
RACES = {
    # nanoGPT's recipe for a CPU, and the loss that it reaches
    "cpu": Race(
        *CPU, f"{SHIPPED}{SMALL}--beta2=0.99", 2000, True, 1e-3,
        [2e-3, 4e-3, 8e-3], [500, 750, 1000, 1150, 1500],
    ),
    # nanoGPT's recipe for a GPU, run on a CPU, and the loss that it reports
    "cpu256": Race(
        "shakespeare_char", 256, 1.4697, "config/fast_shakespeare_char.py", SHIPPED, 5000, False,
    ),
    "recipe": Race(*CPU, f"{SHIPPED}{SMALL}--eval_iters=20 --lr_decay_iters=2000", 2000),
    "ablation": Race(*CPU, "", 0),
    # the recipe itself, with rates for steps of 2,048 tokens, and a float32 stream as on a CPU
    "ablation_bpe": Race(
        "python_stdlib_bpe", 128, 0.0, "config/fast_gpt2.py", "", 0,
        ours="--n_layer=4 --n_head=2 --n_embd=128 --block_size=128 --batch_size=16 "
        "--gradient_accumulation_steps=1 --learning_rate=0.02 --embedding_lr=0.3 --head_lr=0.015 "
        "--table_decay=0.03 --momentum=0.9 --momentum_warmup=0 --max_iters=400 "
        "--bfloat16_stream=False",
    ),
}  # fmt: skip

KEPT = "--table_decay=0.0 "  # tables keep what they have learnt
VALUES = f"{KEPT}--bigram_embeddings=0 --further_weight=0.0 --neuron_beta=0.0 "
FIRST = f"{VALUES}--value_embeddings=False "  # the recipe's first edition
ABLATIONS_BPE = {
    "the recipe": "",
    "no decay of tables": KEPT,
    "twice the tokens": "--max_iters=800",
    "no decay of tables, twice the tokens": f"{KEPT}--max_iters=800",
    "stream in bfloat16": "--bfloat16_stream=True",
    "first edition": FIRST,
    "first edition, 1.5 times the tokens": f"{FIRST}--max_iters=600",
    # value embeddings alone, from the second edition, and with one more change
    "values": VALUES,
    "values, bigram embeddings": f"{VALUES}--bigram_embeddings=5",
    "values, bigram embeddings, 1 row per token": f"{VALUES}--bigram_embeddings=1",
    "values, NorMuon": f"{VALUES}--neuron_beta=0.95",
    "values, residual and x0 lambdas": f"{VALUES}--residual_lambdas=True",
    "values, second loss": f"{VALUES}--further_weight=0.5",
    "values, batch ramp": f"{VALUES}--gradient_accumulation_steps=4 --batch_size=4 "
    "--batch_ramp=160 --max_iters=500",
    "values, window ramp": f"{VALUES}--window_ramp=268",
    "values, local layers": f"{VALUES}--attention_window=32 --window_pattern=LD",
}
ABLATIONS = {
    "the recipe": "",
    # parts left out
    "bigram embeddings: none": "--bigram_embeddings=0",
    "bigram embeddings: 5 rows per token": "--bigram_embeddings=5",
    "AdamW instead of Muon, 6e-3": "--optimizer=adamw --learning_rate=6e-3",
    "norm after the embedding: none": "--norm_embedding=False",
    "initial variance: GPT-2's": "--init=gpt2",
    "activation: GELU": "--activation=gelu",
    "positions: learned": "--position=learned",
    "norm of queries and keys: none": "--qk_norm=False",
    "local layers: none": "--attention_window=0",
    "projections that start at 0: none": "--zero_init=False",
    "head: tied to the embedding": "--tie_head=True",
    "schedule: cosine": "--lr_schedule=cosine",
    "batches: random windows": "--batch_order=random",
    # parts added
    "layers: 1": "--n_layer=1",
    "layers: 4": "--n_layer=4",
    "value embeddings": "--value_embeddings=True",
    "second loss": "--further_weight=0.5",
    "NorMuon": "--neuron_beta=0.95",
}

CHANGED = {"ablation": ABLATIONS, "ablation_bpe": ABLATIONS_BPE}

RUNS = (
    ("run", "name", ""), ("seed", "seed", "d"), ("steps", "steps", "d"), ("tokens", "tokens", ",d"),
    ("seconds", "seconds", ".1f"), ("first step", "first", ".2f"), ("tokens/s", "rate", ",.0f"),
    ("val loss", "loss", ".4f"),
)  # fmt: skip
WHOLE_RUNS = (
    ("project", "name", ""), ("seed", "seed", ""), ("seconds", "seconds", ".1f"),
    ("step kept", "kept", "d"), ("val loss", "loss", ".4f"),
)  # fmt: skip
CHANGES = (
    ("change", "name", ""), ("val loss", "loss.mean", ".4f"), ("low", "loss.low", ".4f"),
    ("high", "loss.high", ".4f"), ("difference", "difference", "+.4f"),
    ("seconds", "seconds.median", ".1f"),
)  # fmt: skip


def arms_of(c: Config, spec: Race, track: Track) -> list[Arm]:
    """The arms to run with every seed, ours first. The sweep, which tunes one, runs here."""
    if c.race in CHANGED:
        changed, arms = CHANGED[c.race], []
        names = [n for n in changed if n.startswith(c.only) or n == "the recipe"]
        if len(names) < 2:
            raise UserError(f"only={c.only} is the beginning of none of: {', '.join(changed)}")
        for name in names:
            options = f"{spec.ours} {changed[name]}"
            count = c.steps or our_steps(spec, options)
            options = f"{ROOT / spec.config} --lr_decay_iters={count} {options}"
            arms.append(Arm(name, "ours", count, options))
        return arms
    if c.race == "recipe":
        options, count = spec.peer, c.steps or spec.peer_steps
        if count != spec.peer_steps:
            options += f" --lr_decay_iters={count} --warmup_iters={min(100, count // 2)}"
            options += f" --eval_interval={min(250, count)} --always_save_checkpoint=True"
        ours = Arm("ours", "ours", count, f"{options} --dtype=float32", True)
        return [ours, Arm("nanoGPT", "peer", count, options, True)][: 2 if c.peer else 1]
    options = f"{ROOT / spec.config} {c.ours}".strip()
    arms = [Arm("ours", "ours", c.steps or our_steps(spec, c.ours), options)]
    if c.peer:
        count = c.steps or (spec.peer_steps if spec.peer_full else 20)
        arms.append(Arm("nanoGPT", "peer", count, f"{spec.peer} {scaled(spec.rate, count)}"))
        if c.sweep and spec.lengths:
            rate, count = tune(track, spec, c.steps)
            arms.append(Arm("nanoGPT, tuned", "peer", count, f"{spec.peer} {scaled(rate, count)}"))
    return arms


def our_steps(spec: Race, options: str) -> int:
    """max_iters from the options, or else from our config."""
    given = [w.split("=")[1] for w in options.split() if w.startswith("--max_iters=")]
    return int(given[-1]) if given else runpy.run_path(str(ROOT / spec.config))["max_iters"]


def tune(track: Track, spec: Race, steps: int) -> tuple[float, int]:
    """The peer's best rate and number of steps: the fewest that reach the target with one seed."""
    for count in [steps] if steps else spec.lengths:
        losses = {}
        for rate in spec.rates:
            arm = Arm(f"sweep {rate:g}", "peer", count, f"{spec.peer} {scaled(rate, count)}")
            losses[rate] = track.run(arm, SEED)["loss"]
        best = min(losses, key=losses.get)
        if losses[best] <= spec.target:
            break
    return best, count


def summary(runs: list[dict]) -> dict:
    """Mean loss, with its range, and median seconds, of the runs of one arm."""
    losses = [r["loss"] for r in runs]
    loss = {**spread(losses), "mean": statistics.mean(losses)}
    same = {key: runs[0][key] for key in ("name", "steps", "tokens")}
    return {**same, "n": len(runs), "loss": loss, "seconds": spread([r["seconds"] for r in runs])}


def verdict(spec: Race, summaries: list[dict]) -> str:
    """The results: a line for each arm, and lines that compare the others with ours."""
    lines = [
        "{name}: val loss {loss[mean]:.4f} ({loss[low]:.4f} to {loss[high]:.4f}, n={n}) after "
        "{tokens:,} tokens and {seconds[median]:.1f} s ({seconds[low]:.1f} to {seconds[high]:.1f})"
        "".format(**s)
        for s in summaries
    ]
    ours = summaries[0]
    reached = "reached" if ours["loss"]["mean"] <= spec.target else "NOT reached"
    lines.append(f"target {spec.target:.4f}: {reached}")
    for s in summaries[1:]:
        seconds = s["seconds"]["median"]
        if not spec.peer_full:
            hours = seconds / s["steps"] * spec.peer_steps / 3600
            lines.append(f"{s['name']}'s own {spec.peer_steps} steps would take {hours:.1f} hours")
            continue
        ratio, tokens = seconds / ours["seconds"]["median"], s["tokens"] / ours["tokens"]
        apart = ours["loss"]["mean"] - s["loss"]["mean"]
        lines.append(f"{s['name']}: {ratio:.1f} times the seconds, {tokens:.1f} times the tokens")
        lines.append(f"ours to it: {1 / ratio:.3f} of the time, loss {apart:+.4f}")
    return "\n".join(lines)


def draw(runs: list[dict], target: float, path: Path) -> None:
    """Training loss (smoothed) over seconds, and the final validation losses as points."""
    keep_fonts()
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
    axes.set_xlabel("seconds of training (log)")
    axes.set_ylabel("cross-entropy, nats per token")
    axes.set_title("lines: training loss, smoothed; points: whole validation split", fontsize=10)
    axes.legend()
    save_picture(figure, path)


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    known("race", [c.race], RACES)
    spec = RACES[c.race]
    refuse_idle(
        c,
        (not c.peer, "sweep", "without --peer"),
        (not spec.lengths, "sweep", f"in the race {c.race}"),
        (c.race not in CHANGED, "only", f"in the race {c.race}, which is not an ablation"),
    )
    words_of(c, "ours")
    dataset, T = c.dataset or spec.dataset, c.block_size or spec.block_size
    track = Track(c.race, c.out, dataset, T, c.minutes)
    if c.peer:
        track.add_peer(resolve_path(c.peer))
    arms = {arm.name: arm for arm in arms_of(c, spec, track)}
    runs = {name: [] for name in arms}
    for k, name in in_turn(arms, c.seeds):
        runs[name].append(track.run(arms[name], SEED + k))
    summaries = [summary(of_one) for of_one in runs.values()]
    for s in summaries:
        s["difference"] = s["loss"]["mean"] - summaries[0]["loss"]["mean"]
    every = [r for of_one in runs.values() for r in of_one]
    if c.race in CHANGED:
        text = f"{table(summaries, CHANGES)}\n\n{c.seeds} seeds each; losses are means and ranges"
    else:
        columns = WHOLE_RUNS if c.race == "recipe" else RUNS
        text = f"{table(every, columns)}\n\n{verdict(spec, summaries)}"
    track.results.finish(text, name=c.race, summary=summaries, target=spec.target)
    if c.plot:
        draw(every, spec.target, Path(c.plot))


if __name__ == "__main__":
    run(main)
