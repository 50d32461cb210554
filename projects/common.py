"""What the studies share: a run of train.py, losses by position, and the look of their pictures."""

import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import torch
from torch.nn import functional as F

from bonsai import ROOT
from bonsai.data.dataset import Mixture
from bonsai.data.split import Split
from bonsai.files.access import file_size, save_picture
from bonsai.runs.names import resumable
from bonsai.runs.restore import load_checkpoint, run_checkpoint
from bonsai.system.caches import keep_fonts
from bonsai.system.errors import ENDS, UserError, end_if_told
from bonsai.system.values import COMMAND_LINE, Setting
from bonsai.training.inherited import OF_THE_COMMAND

# options that do not change what a run has learnt; data are compared by their content
UNCHANGED = {"dataset", "save_interval", "eval_interval", "eval_iters", "log_interval", "keep_last"}
UNCHANGED |= {*OF_THE_COMMAND}

COLORS = ("#2f6db3", "#d1495b", "#3a8f5c", "#b07c1f", "#7a5195", "#4c9f9f", "#8c564b", "#666666")
COLORS += ("#e377c2", "#a3b53a")


def train(config: str | Path, out_dir: str | Path, max_iters: int, *options: str) -> None:
    """Run train.py with a config file into out_dir, as a program of its own.

    A finished run is not repeated, an interrupted one goes on: the steps done are in its
    checkpoint. UserError where the run fails, or where the one that is there is of other data or,
    being finished, of other options. A signal, which train.py saves at, ends this program, too.
    """
    out = Path(out_dir)
    if resumable(out):
        checkpoint = load_checkpoint(run_checkpoint(out, newest=True), optimizer=False)
        done = checkpoint.get("iter_num", 0)
        given = dict(word[2:].split("=", 1) for word in options if "=" in word)
        check_data(out, checkpoint, given.get("dataset", ""))
        if done >= max_iters:
            check_options(out, checkpoint.get("config", {}), given)
            print(f"{out} has {done} steps already: not trained again (delete it to train anew)")
            return
    command = [sys.executable, str(ROOT / "train.py"), str(config), "--init_from=auto"]
    command += [f"--out_dir={out}", f"--max_iters={max_iters}", f"--lr_decay_iters={max_iters}"]
    status = run_and_pass_on([*command, *options])
    if status > 128:  # a signal; the run has said where it stopped
        sys.exit(status)
    if status:
        raise UserError(f"training into {out} ended with status {status}")


def check_data(out: Path, checkpoint: dict, dataset: str) -> None:
    """UserError where a run was trained on other data than these: prepared with another seed they
    have examples in val that it has learnt."""
    before = checkpoint.get("data") or {}
    if not (dataset and before):
        return
    data = Mixture.open(dataset)
    now = data.fingerprints()
    if before.keys() & now.keys():
        is_other = data.changed_since(before)
    else:  # of another name, or a folder that was moved
        is_other = sorted(before.values()) != sorted(now.values())
    if is_other:
        raise UserError(
            f"{out} was trained on other data than {dataset} is now: set another --out_dir, or "
            "delete it to train anew"
        )


def check_options(out: Path, config: dict, given: dict[str, str]) -> None:
    """UserError for an option by which the finished run was not trained."""
    for name in given.keys() - UNCHANGED:
        was, asked = config.get(name), given[name]
        if name in config:
            asked = Setting(name, was, (type(was),)).read(asked, COMMAND_LINE)
        if asked != was:
            raise UserError(
                f"{out} was trained with {name}={was}, not {asked}: set another --out_dir, or "
                "delete it to train anew"
            )


def without_empty(files: list[Path]) -> list[Path]:
    """Those of the files that hold something; how many do not is said."""
    full = [path for path in files if file_size(path)]
    if len(full) < len(files):
        print(f"empty files left out: {len(files) - len(full)}")
    return full


def run_and_pass_on(command: list[str]) -> int:
    """Run a program to its end and return its status. Signals to this one are passed on: it saves
    and ends by itself, while subprocess.run would kill it a moment after a Ctrl-C."""
    before = {}
    end_if_told()
    with subprocess.Popen(command) as process:

        def pass_on(number: int, frame: object) -> None:
            with suppress(ValueError, OSError):  # it has just ended; on Windows it has its own
                process.send_signal(number)

        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, pass_on) for number in ENDS}
        try:
            return process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@torch.no_grad()
def loss_by_position(model: torch.nn.Module, split: Split, T: int, windows: int) -> torch.Tensor:
    """Mean cross-entropy in nats at each position of `windows` windows of T tokens: (T,) fp64; nan
    where a mask leaves no target."""
    was_training, total = model.training, torch.zeros(T, dtype=torch.float64)
    count = torch.zeros(T, dtype=torch.int64)
    model.eval()
    starts = split.eval_starts(T)
    starts = starts[starts + T < len(split)]  # whole windows only
    chosen = starts[torch.linspace(0, len(starts) - 1, min(windows, len(starts))).long().numpy()]
    rows = max(1, 4096 // T)
    for i in range(0, len(chosen), rows):
        end_if_told()
        x, y = map(torch.from_numpy, split.windows(chosen[i : i + rows], T))
        logits, _ = model(x, y)  # (B, T, V)
        losses = F.cross_entropy(
            logits.flatten(0, 1), y.flatten(), reduction="none", ignore_index=-1
        )
        total += losses.view_as(y).double().sum(dim=0)
        count += (y >= 0).sum(dim=0)
    model.train(was_training)
    return total / count


def new_figure(width: float, height: float):
    """A figure that needs no display, its axes without frames at the top and right."""
    keep_fonts()
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
