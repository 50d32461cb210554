"""What a run shows and leaves behind: console lines, a progress bar, and files to look at.

log.txt         every console line, headed by command, commit, versions and hardware
metrics.jsonl   a line per logged step and per evaluation
config.json     all settings
loss.png        the loss curve
"""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

from bonsai.dataset import ROOT
from bonsai.errors import UserError
from bonsai.runtime import Runtime, device_name

PLOT_SECONDS = 60  # loss.png is drawn anew at most this often while training goes on


def versions() -> dict[str, str]:
    from bonsai import __version__

    torch_version = str(torch.__version__)  # a plain string: checkpoints hold plain values only
    return {"bonsai": __version__, "torch": torch_version, "python": platform.python_version()}


def commit() -> str:
    """The commit of this repository, with a '+' when files differ from it, or 'unknown'."""
    try:
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
        done = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def header(device: torch.device) -> list[str]:
    """What a log or a table needs at its head to be repeated."""
    v = " ".join(f"{k} {n}" for k, n in versions().items())
    return [
        f"command: {shlex.join(['python', *sys.argv])}",
        f"commit: {commit()}, {v}, {platform.platform(terse=True)}",
        f"hardware: {device_name(device)}",
    ]


class Report:
    """The voice of a training run. On processes other than the first every call does nothing."""

    def __init__(self, out_dir: Path, settings: dict, runtime: Runtime, start: int, evaluated: int):
        """start: steps already done; evaluated: the step last evaluated before (for a resume)."""
        self.on = runtime.master
        self.folder, self.settings = Path(out_dir), settings
        self.bar, self.wandb, self.plotted = None, None, time.monotonic()
        if not self.on:
            return
        if settings.get("eval_only"):  # looks at a run and leaves its files as they are
            self.log = self.metrics = open(os.devnull, "w")  # noqa: SIM115
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            config = json.dumps(settings, indent=1, default=str)
            (self.folder / "config.json").write_text(config + "\n", encoding="utf-8")
            self.log = open(self.folder / "log.txt", "a", encoding="utf-8")  # noqa: SIM115
            self.log.write("\n".join(header(runtime.device)) + "\n")
            forget_after(self.folder / "metrics.jsonl", start, evaluated)
            metrics = self.folder / "metrics.jsonl"
            self.metrics = open(metrics, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as e:
            reason = f"cannot write into {self.folder} ({e.strerror})"
            raise UserError(f"{reason}: free some space or set another --out_dir") from None
        if sys.stdout.isatty():
            from tqdm import tqdm

            total = settings["max_iters"]
            self.bar = tqdm(total=total, initial=start, unit="it", file=sys.stdout, leave=False)

    def say(self, line: str, quiet: bool = False) -> None:
        """Print a line and log it; quiet: not on a terminal that has a progress bar."""
        if not self.on:
            return
        if self.bar is None:
            print(line, flush=True)
        elif not quiet:
            self.bar.write(line, file=sys.stdout)
        self.log.write(line + "\n")
        self.log.flush()

    def step(self, row: dict, mfu: float | None) -> None:
        """A logged training step: row has iter, loss, lr, grad_norm, ms, tokens_per_s."""
        if not self.on:
            return
        self.record(row)
        mfu_text = f"{100 * mfu:.2f}%" if mfu is not None else "n/a"
        line = f"iter {row['iter']}: loss {row['loss']:.4f}, time {row['ms']:.2f}ms, mfu {mfu_text}"
        self.say(line, quiet=True)
        if self.bar is not None:
            self.bar.n = row["iter"] + 1
            shown = {"loss": f"{row['loss']:.4f}", "tok/s": f"{row['tokens_per_s']:,.0f}"}
            self.bar.set_postfix(shown, refresh=False)
            self.bar.refresh()

    def evaluation(self, row: dict) -> None:
        """An evaluation: row has iter, train_loss, val_loss, val_bpb, lr, mfu."""
        if not self.on:
            return
        self.record(row)
        bpb = f", {row['val_bpb']:.4f} bits per byte" if row.get("val_bpb") else ""
        losses = f"train loss {row['train_loss']:.4f}, val loss {row['val_loss']:.4f}"
        self.say(f"step {row['iter']}: {losses}{bpb}")
        if self.wandb is not None:
            self.wandb.log(
                {
                    "iter": row["iter"],
                    "train/loss": row["train_loss"],
                    "val/loss": row["val_loss"],
                    "lr": row["lr"],
                    "mfu": 100 * row["mfu"] if row["mfu"] is not None else -1.0,
                }
            )
        if time.monotonic() - self.plotted > PLOT_SECONDS:
            self.plot()

    def record(self, row: dict) -> None:
        self.metrics.write(json.dumps(row) + "\n")
        self.metrics.flush()

    def start_wandb(self, run_id: str | None) -> str | None:
        """Begin a Weights & Biases run, or go on with `run_id`; returns its id."""
        if not self.on or not self.settings["wandb_log"]:
            return run_id
        try:
            import wandb

            self.wandb = wandb.init(
                project=self.settings["wandb_project"],
                name=self.settings["wandb_run_name"],
                config=self.settings,
                id=run_id,
                resume="allow",
            )
            return self.wandb.id
        except ImportError:
            raise UserError("wandb_log needs wandb: pip install wandb") from None
        except Exception as e:  # wandb's own many kinds of errors: no key, no network
            first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise UserError(
                f"wandb could not start ({first[:100]}): run wandb login, set WANDB_MODE=offline, "
                "or use --wandb_log=False"
            ) from None

    def plot(self) -> None:
        """Draw loss.png; a picture that fails is not worth a run."""
        if not self.on:
            return
        self.plotted = time.monotonic()
        try:
            plot_loss(self.folder)
        except Exception as e:
            self.say(f"could not draw {self.folder / 'loss.png'}: {e!r}")

    def summary(self) -> None:
        """The last words of a run: what it did, from the first evaluation to the last."""
        self.plot()
        evals = [row for row in read_metrics(self.folder) if "val_loss" in row] if self.on else []
        if not evals:
            return
        first, last = evals[0], evals[-1]
        bpb = ""
        if last.get("val_bpb"):
            bpb = f" ({first['val_bpb']:.4f} -> {last['val_bpb']:.4f} bits per byte)"
        self.say(
            f"{last['iter']} steps, {last['tokens']:,} tokens, {last['seconds']:.0f} s training; "
            f"validation loss {first['val_loss']:.4f} -> {last['val_loss']:.4f}{bpb}; "
            f"see {self.folder / 'loss.png'}"
        )

    def close(self) -> None:
        if not self.on:
            return
        if self.bar is not None:
            self.bar.close()
        if self.wandb is not None:
            self.wandb.finish()
        self.metrics.close()
        self.log.close()


def read_metrics(folder: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl; a last line cut short by a kill is left out."""
    rows = []
    path = Path(folder) / "metrics.jsonl"
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows


def forget_after(path: Path, start: int, evaluated: int) -> None:
    """Drop the rows of steps that are done again after a resume from step `start`."""
    if not path.exists():
        return
    rows = read_metrics(path.parent)
    kept = [
        r
        for r in rows
        if r["iter"] < start or ("val_loss" in r and r["iter"] == start == evaluated)
    ]
    tmp = path.with_suffix(".tmp")
    tmp.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
    os.replace(tmp, path)


def plot_loss(folder: Path, title: str = "") -> Path:
    """Draw the loss curve of a run into loss.png in its folder; returns its path."""
    from matplotlib.figure import Figure

    rows = read_metrics(folder)
    steps = [(r["iter"], r["loss"]) for r in rows if "loss" in r]
    evals = [r for r in rows if "val_loss" in r]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    if steps:
        axes.plot(*zip(*steps), color="#9db8d2", lw=0.8, label="training batch")
    if evals:
        at = [r["iter"] for r in evals]
        marker = dict(marker="o", ms=3)
        axes.plot(at, [r["train_loss"] for r in evals], color="#2f6db3", label="train", **marker)
        axes.plot(at, [r["val_loss"] for r in evals], color="#d1495b", label="validation", **marker)
        last, best = evals[-1], min(evals, key=lambda r: r["val_loss"])
        text = f"best validation {best['val_loss']:.4f} at step {best['iter']}"
        if last.get("val_bpb"):
            text += f"; last {last['val_bpb']:.3f} bits per byte"
        axes.set_title(title or text, fontsize=10)
        axes.axhline(best["val_loss"], color="#d1495b", lw=0.6, ls=":")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.25)
    if steps or evals:
        axes.legend(frameon=False, fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path = Path(folder) / "loss.png"
    tmp = path.with_name("loss.tmp.png")
    figure.savefig(tmp, dpi=130)
    os.replace(tmp, path)
    return path
