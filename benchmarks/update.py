"""Milliseconds of the update at the end of a step: clipping, AdamW, Muon.

    python benchmarks/update.py                     # on a GPU three models, on a CPU a small one
    python benchmarks/update.py --sizes=124M,fast_124M --out=results

Ours is the update of train.py after the last backward pass; the other one is torch's
clip_grad_norm_ and fused AdamW on the same parameters. Gradients are random and stay the same. The
fast recipe has a row for its matrices, which Muon updates, and one for all other parameters, which
AdamW updates. Repeats alternate, and each is timed from an idle device to an idle device.

GB/s counts only the memory traffic that AdamW needs: weight, both moments and gradient are read,
and all but the gradient written, 28 bytes per number; 4 more if the norm is computed first.
"""

import gc
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import torch

from benchmarks.harness import Results, in_turn, known, seconds_of, spread, table
from bonsai.models.kernels import to_device
from bonsai.models.table import build_model
from bonsai.planning import recipe
from bonsai.system.devices import pick_device
from bonsai.system.errors import run
from bonsai.system.runtime import Runtime, setup
from bonsai.training.muon import Muon
from bonsai.training.optimizers import build_optimizer, clip_gradients
from bonsai.training.settings import StepSettings
from configurator import Config, configure
from model import GPTConfig

# -----------------------------------------------------------------------------
sizes = "auto"  # rows, from SIZES below; auto: char on a CPU, 124M,355M,fast_124M on a GPU [list]
repeats = 5  # the table has their median [>= 1]
updates = 20  # in a repeat [>= 1]
device = "auto"  # cpu, cuda, cuda:1, mps; auto: the first of cuda, mps, cpu that is there
dtype = "auto"  # of Muon's products; auto: as in train.py [auto | float32 | bfloat16 | float16]
compile: bool | str = "auto"  # Muon's products; auto: on CUDA [auto | on | off]
seed = 1337  # of the weights and gradients [>= 0]
out = ""  # folder for update.json and .txt; rows in it are not measured again [path]
force = False  # measure them again
# -----------------------------------------------------------------------------

# name: layers, heads, channels, vocabulary; whether it has the fast recipe
SIZES = {
    "toy": ((1, 2, 32, 65), False),
    "fast_toy": ((1, 2, 32, 65), True),
    "char": ((6, 6, 384, 65), False),
    "124M": ((12, 12, 768, 50304), False),
    "355M": ((24, 16, 1024, 50304), False),
    "fast_124M": ((12, 6, 768, 50304), True),
}
AUTO = {"cpu": "char", "cuda": "124M,355M,fast_124M"}
CLASSIC, MATRICES, REST = "all", "matrices", "all else"
COLUMNS = (
    ("model", "size", ""),
    ("updated", "part", ""),
    ("numbers", "numbers", ",d"),
    ("by", "optimizer", ""),
    ("ms", "ours.median", ".2f"),
    ("spread", "ours.spread", ".1%"),
    ("GB/s", "ours_gb", ",.0f"),
    ("torch's, ms", "torch.median", ".2f"),
    ("spread", "torch.spread", ".1%"),
    ("GB/s", "torch_gb", ",.0f"),
    ("n", "ours.n", "d"),
)


def settings_of(size: str) -> tuple[dict, StepSettings]:
    """The model's fields, and the optimizer's settings."""
    (n_layer, n_head, n_embd, vocab_size), fast = SIZES[size]
    shape = dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd, vocab_size=vocab_size)
    shape |= dict(block_size=1024, bias=False, dropout=0.0)
    given = vars(recipe) if fast else {}
    model = {f.name: given[f.name] for f in fields(GPTConfig) if f.name in given}
    step = {f.name: given[f.name] for f in fields(StepSettings) if f.name in given}
    return {**model, **shape}, StepSettings(**step)


def adamw_by_torch(groups: list[dict], max_norm: float) -> Callable[[], None]:
    """Torch's clipping and fused AdamW for these groups of our optimizer."""
    names = ("params", "lr", "weight_decay", "betas", "eps")
    optimizer = torch.optim.AdamW([{n: g[n] for n in names} for g in groups], fused=True)
    params = [p for group in groups for p in group["params"]]

    def update() -> None:
        if max_norm:
            torch.nn.utils.clip_grad_norm_(params, max_norm)
        optimizer.step()

    return update


def measure(c: Config, size: str, part: str, runtime: Runtime) -> dict:
    """Milliseconds of an update, ours and torch's."""
    shape, settings = settings_of(size)
    torch.manual_seed(c.seed)
    model = to_device(build_model("gpt", shape), runtime.device)
    optimizer = build_optimizer(model, settings, runtime)
    if isinstance(optimizer, Muon):
        kind = "muon" if part == MATRICES else "adamw"
        groups = [group for group in optimizer.param_groups if group["kind"] == kind]
        optimizer = Muon(groups, optimizer.dtype, runtime.compile)
    groups = optimizer.param_groups
    params = [p for group in groups for p in group["params"]]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    bad = torch.zeros((), device=runtime.device)

    def ours() -> None:
        clip_gradients(optimizer, settings.grad_clip)
        optimizer.found_inf = bad  # as in train.py, although all gradients are finite here
        optimizer.step()

    contestants = {"ours": ours}
    if part != MATRICES:
        contestants["torch"] = adamw_by_torch(groups, settings.grad_clip)
    for update in contestants.values():  # the first updates compile, and allocate the moments
        update()
        update()
    ms: dict[str, list[float]] = {name: [] for name in contestants}
    for _, name in in_turn(contestants, c.repeats):
        update = contestants[name]
        seconds = seconds_of(
            lambda update=update: [update() for _ in range(c.updates)], runtime.synchronize
        )
        ms[name].append(1e3 * seconds / c.updates)
    numbers = sum(p.numel() for p in params)
    row = {"numbers": numbers, **{name: spread(values) for name, values in ms.items()}}
    if part != MATRICES:
        moved = numbers * (28 + 4 * bool(settings.grad_clip))
        row |= {f"{name}_gb": moved / row[name]["median"] / 1e6 for name in contestants}
    adam = optimizer.adam if isinstance(optimizer, Muon) else optimizer
    return {"optimizer": "Muon" if part == MATRICES else type(adam).__name__, **row}


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    where, _ = pick_device(c.device)
    chosen = AUTO["cuda" if where.type == "cuda" else "cpu"] if c.sizes == "auto" else c.sizes
    known("sizes", chosen.split(","), SIZES)
    results = Results("update", c.out, where, COLUMNS, again=c.force)
    runtime = setup(str(where), c.dtype, c.compile)
    print(runtime.summary, flush=True)
    rows = []
    for size in chosen.split(","):
        for part in (MATRICES, REST) if SIZES[size][1] else (CLASSIC,):
            key = {"size": size, "part": part, "updates": c.updates, "repeats": c.repeats}
            key["dtype"] = runtime.dtype
            print(f"{size}, {part}: {c.repeats} x {c.updates} updates ...", flush=True)
            work = (c, size, part, runtime)
            rows.append(results.measure(key, lambda work=work: measure(*work)))
            gc.collect()
            if where.type == "cuda":
                torch.cuda.empty_cache()
    results.finish(table(rows, COLUMNS))


if __name__ == "__main__":
    run(main)
