"""Scaling laws at the size of a laptop: a sweep of runs, the fit of L(N, D), and Chinchilla's.

    python data/python_stdlib/prepare.py
    python projects/scaling/scaling.py                 # the sweep, then the fits and pictures
    python projects/scaling/scaling.py --chinchilla    # the published tables alone, in a second

Every run is one of train.py. The sweep is resumable: a finished run is read from its metrics, an
interrupted one goes on.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line


from bonsai.files.jsonfile import write_json
from bonsai.planning.costs import meta_model
from bonsai.planning.presets import PRESETS
from bonsai.planning.scaling import (
    APPROACH_1,
    APPROACH_2,
    CHINCHILLA,
    ScalingLaw,
    fit_power_law,
    fit_scaling_law,
)
from bonsai.runs.metrics import read_metrics
from bonsai.system.errors import UserError, run
from bonsai.system.tables import table
from configurator import Config, configure, refuse_idle
from projects.common import COLORS, new_figure, save_figure, train

# the sweep: every size with every budget
sizes = "1x32,2x48,2x64,3x96,4x128"  # layers x channels [list]
budgets = "0.1,0.2,0.4,0.8,1.6"  # millions of tokens [list of float > 0]
vocab_size = 257  # of the data: bytes and the end of text [>= 1]
options = ""  # more for train.py
# what is done
chinchilla = False  # only the published tables
out_dir = "out-scaling"  # a folder for each run, scaling.json, scaling.png [path]
# -----------------------------------------------------------------------------

TOKENS_PER_STEP = 16 * 128  # of config.py


def parse_sweep(c: Config) -> list[tuple[int, int, int]]:
    """(layers, channels, steps) of every run, the cheapest first."""
    try:
        shapes = [tuple(map(int, s.split("x"))) for s in c.sizes.split(",")]
        if not all(len(s) == 2 and min(s) > 0 and s[1] % 16 == 0 for s in shapes):
            raise ValueError
    except ValueError:
        raise UserError(
            f"sizes={c.sizes}: give layers x channels (a multiple of 16), as in 2x64,4x128"
        ) from None
    steps = [max(1, round(1e6 * float(b) / TOKENS_PER_STEP)) for b in c.budgets.split(",")]
    return sorted(
        ((layers, width, s) for layers, width in shapes for s in steps),
        key=lambda r: r[0] * r[1] ** 2 * r[2],
    )


def shape(n_layer: int, n_embd: int) -> dict:
    return {"n_layer": n_layer, "n_embd": n_embd, "n_head": max(1, n_embd // 32)}


def count_parameters(c: Config, n_layer: int, n_embd: int) -> int:
    """Those that are multiplied; the shared embedding is also the head and counts once."""
    fields = {"vocab_size": c.vocab_size, "position": "rope", "norm_gain": False, "bias": False}
    return meta_model("gpt", {**fields, **shape(n_layer, n_embd)}).num_params()


def sweep(c: Config) -> list[dict]:
    """Run what has not been run; returns a row per run: N, D, C, loss."""
    rows, runs = [], parse_sweep(c)
    for i, (n_layer, n_embd, steps) in enumerate(runs):
        folder = Path(c.out_dir) / f"{n_layer}x{n_embd}_{steps}"
        given = [f"--{k}={v}" for k, v in shape(n_layer, n_embd).items()]
        print(f"run {i + 1} of {len(runs)}: {folder.name}", flush=True)
        train(HERE / "config.py", folder, steps, *given, *c.options.split())
        losses = [r["val_loss"] for r in read_metrics(folder) if r.get("iter") == steps]
        if not losses:
            raise UserError(f"{folder} has no final evaluation: delete it and run again")
        N, D = count_parameters(c, n_layer, n_embd), steps * TOKENS_PER_STEP
        rows.append({"N": N, "D": D, "C": 6 * N * D, "loss": losses[-1]})
    return sorted(rows, key=lambda r: (r["N"], r["D"]))


# ---- what the published tables say ----


def chinchilla_rows() -> list[dict]:
    """The power laws that our fit finds in the paper's tables, beside the paper's own exponents."""
    rows = []
    for name, points, a in (("approach 1", APPROACH_1, 0.50), ("approach 2", APPROACH_2, 0.49)):
        N, C, D = zip(*points)
        rows.append({"name": name, "a": fit_power_law(C, N)[1], "b": fit_power_law(C, D)[1]})
        rows[-1] |= {"paper": a, "per": D[3] / N[3]}
    N = [p[0] for p in APPROACH_1]
    per = CHINCHILLA.optimal_tokens(N[3]) / N[3]
    row = {"name": "approach 3: E 1.69, A 406.4, B 410.7, alpha 0.34, beta 0.28"}
    rows.append(row | {"a": CHINCHILLA.exponent, "b": 1 - CHINCHILLA.exponent, "paper": 0.46})
    rows[-1]["per"] = per
    return rows


def chinchilla_fit() -> ScalingLaw:
    """Our fitting code on losses that the paper's formula gives around its optima.

    The paper does not publish its runs; this shows that the fit finds the constants behind them.
    """
    N, D, losses = [], [], []
    for size in [p[0] for p in APPROACH_1[:6]]:
        for ratio in (0.1, 0.3, 1, 3, 10):
            N.append(size)
            D.append(ratio * 20 * size)
            losses.append(CHINCHILLA.loss(N[-1], D[-1]))
    return fit_scaling_law(N, D, losses)


def chinchilla_tables() -> str:
    columns = [("Hoffmann et al. 2022", "name", ""), ("a: N ~ C^a", "a", ".3f")]
    columns += [("paper's a", "paper", ".2f"), ("b: D ~ C^b", "b", ".3f")]
    columns += [("tokens per parameter at 67B", "per", ".1f")]
    lines = [table(chinchilla_rows(), columns), "", "Our fit on points of the paper's L(N, D):"]
    constants = ("E", "A", "B", "alpha", "beta")
    laws = {"paper": CHINCHILLA, "found": chinchilla_fit()}
    rows = [{"law": k, **{c: getattr(v, c) for c in constants}} for k, v in laws.items()]
    spec = [(c, c, ".1f" if c in "AB" else ".3f") for c in constants]
    lines.append(table(rows, [("law", "law", ""), *spec]))
    lines += ["", "What the three approaches would give the GPT family, in tokens:"]
    rows = []
    laws = [fit_power_law([p[0] for p in t], [p[2] for p in t]) for t in (APPROACH_1, APPROACH_2)]
    for name in ("gpt2", "gpt2-xl", "gpt3-13b", "gpt3-175b"):
        N = PRESETS[name].published
        row = {"model": name, **{f"t{i}": k * N**p for i, (k, p) in enumerate(laws, 1)}}
        rows.append(row | {"t3": CHINCHILLA.optimal_tokens(N)})
    spec = [(f"approach {i}", f"t{i}", ".2e") for i in (1, 2, 3)]
    return "\n".join([*lines, table(rows, [("model", "model", ""), *spec])])


# ---- our own sweep ----


def describe_fit(law: ScalingLaw, rows: list[dict]) -> str:
    """The constants, how well they fit, and what they predict for ten times the largest budget."""
    worst = max(abs(law.loss(r["N"], r["D"]) / r["loss"] - 1) for r in rows)
    C = 10 * max(r["C"] for r in rows)
    N, D = law.optimal(C)
    return (
        f"L(N, D) = {law.E:.3f} + {law.A:.4g} / N^{law.alpha:.3f} + "
        f"{law.B:.4g} / D^{law.beta:.3f}\n"
        f"largest error of the fit {worst:.1%}; N_opt ~ C^{law.exponent:.2f}\n"
        f"for {C:.1e} FLOPs, ten times the largest run: {N:.2e} parameters, {D:.2e} tokens, "
        f"{D / N:.0f} per parameter, predicted loss {law.loss(N, D):.3f}"
    )


def draw(law: ScalingLaw, rows: list[dict], path: Path) -> None:
    """Loss by tokens for each size, iso-FLOP curves, and Chinchilla's optima beside their fit."""
    figure = new_figure(11.5, 3.7)
    left, middle, right = figure.subplots(1, 3)
    by_size = {n: [r for r in rows if r["N"] == n] for n in sorted({r["N"] for r in rows})}
    for k, (N, group) in enumerate(by_size.items()):
        color = COLORS[k % len(COLORS)]
        D = [r["D"] for r in group]
        left.plot(D, [r["loss"] for r in group], "o", ms=4, color=color, label=f"{N / 1e3:,.0f}k")
        grid = [D[0] * (D[-1] / D[0]) ** (i / 40) for i in range(41)]
        left.plot(grid, [law.loss(N, d) for d in grid], color=color, lw=1)
    left.set(xscale="log", xlabel="tokens D", ylabel="validation loss (nats per byte)")
    left.set_title("runs (points) and the fit (lines)")
    left.legend(title="parameters", fontsize=7)
    low, high = min(r["C"] for r in rows), max(r["C"] for r in rows)
    for k in range(5):
        C = low * (high / low) ** ((k + 0.5) / 5)
        best, _ = law.optimal(C)
        grid = [best * 10 ** (i / 20 - 1.2) for i in range(49)]
        curve = [law.loss(n, C / 6 / n) for n in grid]
        middle.plot(grid, curve, color=COLORS[k], lw=1.2, label=f"{C:.0e}")
        middle.plot(best, law.loss(best, C / 6 / best), "k.", ms=7)
    middle.set(xscale="log", xlabel="parameters N", title="iso-FLOP curves and their optima")
    middle.legend(title="FLOPs", fontsize=7)
    for k, (name, points) in enumerate((("approach 1", APPROACH_1), ("approach 2", APPROACH_2))):
        right.plot([p[1] for p in points], [p[0] for p in points], "o", ms=4, color=COLORS[k])
        scale, power = fit_power_law([p[1] for p in points], [p[0] for p in points])
        ends = [1e19, 2e28]
        label = f"{name}: C^{power:.2f}"
        right.plot(ends, [scale * c**power for c in ends], color=COLORS[k], lw=1, label=label)
    ends = [1e19, 2e28]
    third = [CHINCHILLA.optimal(c)[0] for c in ends]
    label = f"their L(N, D): C^{CHINCHILLA.exponent:.2f}"
    right.plot(ends, third, color=COLORS[2], lw=1, label=label)
    right.set(xscale="log", yscale="log", xlabel="FLOPs C", ylabel="optimal parameters")
    right.set_title("Chinchilla's tables")
    right.legend(fontsize=7)
    save_figure(figure, path)


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    refuse_idle(c, (c.chinchilla, "sizes budgets vocab_size options", "with --chinchilla"))
    if c.chinchilla:
        print(chinchilla_tables())
        return
    rows = sweep(c)
    columns = [("parameters", "N", ",d"), ("tokens", "D", ",d"), ("FLOPs", "C", ".2e")]
    print(f"\n{table(rows, [*columns, ('val loss', 'loss', '.4f')])}\n")
    try:
        law = fit_scaling_law(*([r[k] for r in rows] for k in ("N", "D", "loss")))
    except ValueError as e:
        raise UserError(f"{e}: more sizes or budgets") from None
    print(describe_fit(law, rows) + "\n\n" + chinchilla_tables())
    write_json(Path(c.out_dir) / "scaling.json", {"runs": rows, "law": vars(law)})
    draw(law, rows, Path(c.out_dir) / "scaling.png")


if __name__ == "__main__":
    run(main)
