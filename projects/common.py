"""What the studies share: a run of train.py, losses by position, and the look of their pictures."""

import subprocess
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from bonsai import ROOT
from bonsai.data.dataset import Split
from bonsai.files.access import save_picture
from bonsai.runs.names import resumable
from bonsai.runs.restore import run_checkpoint, steps_done
from bonsai.system.errors import UserError

COLORS = ("#2f6db3", "#d1495b", "#3a8f5c", "#b07c1f", "#7a5195", "#4c9f9f", "#8c564b", "#666666")
COLORS += ("#e377c2", "#a3b53a")


def train(config: str | Path, out_dir: str | Path, max_iters: int, *options: str) -> None:
    """Run train.py with a config file into out_dir, as a program of its own.

    A finished run is not repeated, an interrupted one goes on: the steps done are in its
    checkpoint. Other options take an out_dir of their own. UserError where the run fails.
    """
    out = Path(out_dir)
    if resumable(out):
        done = steps_done(run_checkpoint(out, newest=True))
        if done >= max_iters:
            print(f"{out} has {done} steps already: not trained again (delete it to train anew)")
            return
    command = [sys.executable, str(ROOT / "train.py"), str(config), "--init_from=auto"]
    command += [f"--out_dir={out}", f"--max_iters={max_iters}", f"--lr_decay_iters={max_iters}"]
    done = subprocess.run([*command, *options])
    if done.returncode:
        raise UserError(f"training into {out} ended with status {done.returncode}")


@torch.no_grad()
def loss_by_position(model: torch.nn.Module, split: Split, T: int, windows: int) -> torch.Tensor:
    """Mean cross-entropy in nats at each position of `windows` windows of T tokens: (T,) fp64."""
    was_training, total = model.training, torch.zeros(T, dtype=torch.float64)
    model.eval()
    starts = split.eval_starts(T)
    starts = starts[starts + T < len(split)]  # whole windows only
    chosen = starts[torch.linspace(0, len(starts) - 1, min(windows, len(starts))).long().numpy()]
    rows = max(1, 4096 // T)
    for i in range(0, len(chosen), rows):
        x, y = map(torch.from_numpy, split.windows(chosen[i : i + rows], T))
        logits, _ = model(x, y)  # (B, T, V)
        losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
        total += losses.view_as(y).double().sum(dim=0)
    model.train(was_training)
    return total / len(chosen)


def new_figure(width: float, height: float):
    """A figure that needs no display, its axes without frames at the top and right."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    matplotlib.rcParams.update({"axes.grid": True, "grid.alpha": 0.25, "font.size": 9})
    matplotlib.rcParams.update({"legend.frameon": False, "axes.titlesize": 10})
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure, path: Path) -> None:
    """Write the picture and say so."""
    save_picture(figure, path, dpi=110)
    print(f"wrote {path}")
