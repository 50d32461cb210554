"""What each technique of the fast recipe buys: the recipe with one of them changed at a time.

    python data/shakespeare_char/prepare.py
    python benchmarks/ablation.py                 # about 9 minutes on two cores
    python benchmarks/ablation.py --only=rope     # the rows whose name begins so

Every row is config/fast_shakespeare_char_cpu.py with the same tokens and seeds; its loss is that of
the whole validation split. Rows that are in the results already are not repeated.
"""

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import torch

from benchmarks.track import SEED, Track
from bonsai import ROOT
from bonsai.system.errors import UserError, run
from bonsai.system.provenance import header
from bonsai.system.tables import table
from configurator import configure

# -----------------------------------------------------------------------------
seeds = 3  # runs of each row [>= 1]
only = ""  # rows whose name begins with this; empty: all
steps = 160  # as the config has it; fewer: a test of this script [>= 1]
out = "out-ablation"  # folder for the runs and results [path]
# -----------------------------------------------------------------------------

ROWS = {
    "the recipe": "",
    # without
    "AdamW instead of Muon, 3e-3": "--optimizer=adamw --learning_rate=3e-3",
    "AdamW instead of Muon, 6e-3": "--optimizer=adamw --learning_rate=6e-3",
    "norm after the embedding: none": "--norm_embedding=False",
    "initial variance: GPT-2's": "--init=gpt2",
    "activation: GELU": "--activation=gelu",
    "positions: learned": "--position=learned",
    "norm of queries and keys: none": "--qk_norm=False",
    "local layers: none": "--attention_window=0",
    "projections that start at 0: none": "--zero_init=False",
    "head: tied to the embedding": "--tie_head=True",
    "logit softcap: none": "--logit_softcap=0.0",
    "schedule: cosine": "--lr_schedule=cosine",
    "batches: random windows": "--batch_order=random",
    # with more
    "norm: RMSNorm": "--norm=rmsnorm",
    "value embeddings": "--value_embeddings=True",
    "residual and x0 lambdas": "--residual_lambdas=True --scalar_lr=0.05",
    "weight decay 0.1, cautious": "--weight_decay=0.1 --cautious_decay=True",
    "clipping at 1": "--grad_clip=1.0",
    "float32": "--dtype=float32",
}
COLUMNS = (
    ("change", "name", ""),
    ("val loss", "loss", ".4f"),
    ("low", "low", ".4f"),
    ("high", "high", ".4f"),
    ("difference", "difference", "+.4f"),
    ("seconds", "seconds", ".1f"),
)


def main() -> None:
    configure(globals())
    names = [name for name in ROWS if name.startswith(only) or name == "the recipe"]
    if len(names) < 2:
        raise UserError(f"only={only} names no row")
    print("\n".join(header(torch.device("cpu"))), flush=True)
    track = Track("ablation", Path(out), "shakespeare_char", 64)
    config = ROOT / "config" / "fast_shakespeare_char_cpu.py"
    rows = []
    for name in names:
        options = f"{config} --lr_decay_iters={steps} {ROWS[name]}".strip()
        runs = [track.run(name, "ours", SEED + k, steps, options) for k in range(seeds)]
        losses = [r["loss"] for r in runs]
        rows.append(
            {
                "name": name,
                "loss": statistics.mean(losses),
                "low": min(losses),
                "high": max(losses),
                "seconds": statistics.median(r["seconds"] for r in runs),
            }
        )
    for row in rows:
        row["difference"] = row["loss"] - rows[0]["loss"]
    print(f"\n{table(rows, COLUMNS)}\n\n{seeds} seeds each; losses are their means and ranges")
    track.save(rows=rows)


if __name__ == "__main__":
    run(main)
