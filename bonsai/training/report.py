"""What a run shows and leaves behind: console lines, a progress bar, and files to look at.

log.txt         every console line, headed by command, commit, versions and hardware
metrics.jsonl   a line per logged step and per evaluation
config.json     all settings
loss.png        the loss curve
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from bonsai.files.access import check_no_pipe
from bonsai.files.atomic import replace_text, whole_file
from bonsai.runs.lock import same_file
from bonsai.runs.metrics import (
    evaluations,
    forget_after,
    read_curve,
    read_evaluations,
    row_text,
)
from bonsai.runs.names import CURVE, LOG, METRICS, SETTINGS
from bonsai.system.caches import keep_fonts
from bonsai.system.errors import FULL, UserError, cannot_write_into, flush
from bonsai.system.provenance import header
from bonsai.system.runtime import Runtime
from bonsai.training.trackers import Tracker, start_tracker

# what Meter.evaluation_row has in a row; other numbers are of someone's own
OF_EVALUATION = ("iter", "train_loss", "val_loss", "val_bpb", "lr", "mfu", "tokens", "seconds")
OF_EVALUATION += ("other_data",)
# While training goes on, loss.png is drawn anew at most this often, and in a long run, whose rows
# take a while to read, so seldom that it takes less than a hundredth of the time.
PLOT_SECONDS, PLOT_SHARE = 60, 0.01


class Report:
    """What a training run prints, logs and draws. On all processes but the first it does nothing.

    A line that cannot be printed or logged ends no run: it goes wherever it still can.
    """

    def __init__(
        self,
        out_dir: Path,
        settings: dict,
        runtime: Runtime,
        start: int,
        evaluated: int,
        stdout_closed: Callable[[], None] = lambda: None,
    ):
        """start: steps already done; evaluated: the step last evaluated, for a resumed run.

        stdout_closed: called once if nobody reads stdout any more; stderr is used from then on.
        """
        self.on, self.runtime = runtime.master, runtime
        self.folder, self.settings = Path(out_dir), settings
        self.bar, self.tracker = None, None
        self.plot_after = time.monotonic() + PLOT_SECONDS
        self.closed, self.stdout_closed, self.failed = False, stdout_closed, set()
        if not self.on:
            return
        if settings.get("eval_only"):  # only looks at a run: its files stay as they are
            self.log = self.metrics = open(os.devnull, "w")  # noqa: SIM115
            return
        try:
            broken = forget_after(self.folder / METRICS, start, evaluated)
            self._open()
        except OSError as e:
            raise UserError(cannot_write_into(self.folder, e)) from None
        if broken:
            self.say(f"{self.folder / METRICS}: {broken} lines that are no rows were left out")
        if sys.stdout is not None and sys.stdout.isatty():
            from tqdm import tqdm

            total = settings["max_iters"]
            self.bar = tqdm(total=total, initial=start, unit="it", file=sys.stdout, leave=False)

    def _open(self) -> None:
        """Write config.json and the head of log.txt, and open the files that grow."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (SETTINGS, LOG, METRICS, CURVE):
            check_no_pipe(self.folder / name)
        settings = json.dumps(self.settings, indent=1, default=str)
        replace_text(self.folder / SETTINGS, settings + "\n")
        # the command, which the head names, may have file names in it that are not UTF-8
        names = {"encoding": "utf-8", "errors": "backslashreplace"}
        self.log = open(self.folder / LOG, "a", **names)  # noqa: SIM115
        self.log.write("\n".join(header(self.runtime.device)) + "\n")
        self.log.flush()
        self.metrics = open(self.folder / METRICS, "a", encoding="utf-8")  # noqa: SIM115

    def reopen(self) -> None:
        """Begin the files anew if the run's folder was removed while it trained."""
        if not self.on or self.settings.get("eval_only"):
            return
        files = (self.log, self.metrics)
        with contextlib.suppress(OSError):
            if all(same_file(file.fileno(), file.name) for file in files):
                return
        for file in files:
            with contextlib.suppress(OSError):
                file.close()
        # if this fails, so will the checkpoint that is saved next, and say why
        with contextlib.suppress(OSError, UserError):
            self._open()

    def say(self, line: str, quiet: bool = False) -> None:
        """Print a line and log it; quiet: do not print it where there is a progress bar."""
        if not self.on:
            return
        self._print(line, quiet)
        self._write(self.log, line)

    def _print(self, line: str, quiet: bool = False) -> None:
        if self.closed:
            if not quiet:
                with contextlib.suppress(OSError, ValueError):
                    print(line, file=sys.stderr, flush=True)
            return
        try:
            if self.bar is None:
                print(printable(line), flush=True)
            elif not quiet:
                self.bar.write(printable(line), file=sys.stdout)
        except (OSError, ValueError) as e:  # ValueError: closed from within Python
            if isinstance(e, OSError) and e.errno in FULL:
                return  # stdout is a file on a full disk; log.txt has the line, too
            self._close_console()
            if not quiet:
                self._print(line)

    def _close_console(self) -> None:
        self.closed, self.bar = True, None
        flush()  # drops what was on its way: Python would fail with it at its exit
        self.stdout_closed()

    def _write(self, file: TextIO, text: str) -> None:
        """Append a line; if the disk is full, what was not written is tried again with the next."""
        try:
            file.write(text + "\n")
            file.flush()
            self.failed.discard(file.name)
        except (OSError, ValueError) as e:
            if file.name not in self.failed:
                self.failed.add(file.name)
                reason = getattr(e, "strerror", None) or e
                self._print(f"cannot write {file.name} ({reason}): going on without")

    def step(self, row: dict, mfu: float | None) -> None:
        """Show and record a logged training step; row: Meter.step_row's."""
        if not self.on:
            return
        if "skipped" in row:
            in_a_row = f"({row['skipped']} in a row)"
            self.say(f"iter {row['iter']} skipped: gradient not finite {in_a_row}")
        self.record(row)
        values = {f"step/{k}": v for k, v in row.items() if k not in ("iter", "lr")}
        if mfu is not None:
            values["step/mfu"] = 100 * mfu
        self.track(lambda tracker: tracker.log({**values, "lr": row["lr"]}, row["iter"]))
        mfu_text = f"{100 * mfu:.2f}%" if mfu is not None else "n/a"
        line = f"iter {row['iter']}: loss {row['loss']:.4f}, time {row['ms']:.2f}ms, mfu {mfu_text}"
        self.say(line, quiet=True)
        if self.bar is not None:
            self.bar.n = row["iter"] + 1
            shown = {"loss": f"{row['loss']:.4f}", "tok/s": f"{row['tokens_per_s']:,.0f}"}
            self.bar.set_postfix(shown, refresh=False)
            try:
                self.bar.refresh()
            except OSError:
                self._close_console()

    def evaluation(self, row: dict) -> None:
        """Show and record an evaluation; row: Meter.evaluation_row's. Numbers by other names, which
        someone has added to what train.py's `evaluate` returns, are shown and tracked, too."""
        if not self.on:
            return
        self.record(row)
        bpb = f", {row['val_bpb']:.4f} bits per byte" if row.get("val_bpb") else ""
        losses = f"train loss {row['train_loss']:.4f}, val loss {row['val_loss']:.4f}"
        added = {k: v for k, v in row.items() if k not in OF_EVALUATION and v is not None}
        more = "".join(f", {name} {value:.4f}" for name, value in added.items())
        self.say(f"step {row['iter']}: {losses}{bpb}{more}")
        values = {"train/loss": row["train_loss"], "val/loss": row["val_loss"], "lr": row["lr"]}
        values["mfu"] = 100 * row["mfu"] if row["mfu"] is not None else -1.0
        if row.get("val_bpb"):
            values["val/bits_per_byte"] = row["val_bpb"]
        values |= {f"val/{name}": value for name, value in added.items()}
        self.track(lambda tracker: tracker.log(values, row["iter"]))
        if time.monotonic() > self.plot_after:
            self.plot()

    def sample(self, text: str, step: int) -> None:
        """Show a text that the model has written."""
        self.say(text)
        self.track(lambda tracker: tracker.text("sample", text, step))

    def record(self, row: dict) -> None:
        self._write(self.metrics, row_text(row))

    def start_tracker(self, start: int, id: str | None) -> str | None:
        """Begin a run in the tracker, or continue the one with this id; returns its id."""
        if not self.on:
            return id
        self.tracker = start_tracker(self.settings, self.folder, start, id)
        return self.tracker.id if self.tracker else id

    def track(self, tell: Callable[[Tracker], None]) -> None:
        """Call tell(tracker), if there is one. One that fails is given up, and the run goes on."""
        if not self.on or self.tracker is None:
            return
        try:
            tell(self.tracker)
        except Exception as e:
            self.tracker = None
            self.say(f"the tracker failed ({' '.join(str(e).split())[:100]}): going on without")

    def plot(self) -> None:
        """Draw loss.png; if that fails, the run goes on."""
        if not self.on:
            return
        begin = time.monotonic()
        try:
            plot_loss(self.folder)
        except Exception as e:
            self.say(f"could not draw {self.folder / 'loss.png'}: {e!r}")
        end = time.monotonic()
        self.plot_after = end + max(PLOT_SECONDS, (end - begin) / PLOT_SHARE)

    def summary(self, steps: int, tokens: int, seconds: float) -> None:
        """The last line of a run: what it did, and how its validation loss has changed.

        steps, tokens, seconds: of training, in the whole run.
        """
        if not self.on:
            return
        self.plot()
        self.track(lambda tracker: tracker.picture("loss curve", self.folder / CURVE))
        line = f"{steps} steps, {tokens:,} tokens, {seconds:.0f} s training"
        evals = read_evaluations(self.folder)
        if evals:
            first, last = evals[0], evals[-1]
            line += f"; validation loss {first['val_loss']:.4f} -> {last['val_loss']:.4f}"
            if first.get("val_bpb") and last.get("val_bpb"):
                line += f" ({first['val_bpb']:.4f} -> {last['val_bpb']:.4f} bits per byte)"
            if last["iter"] != steps:
                line += f" at step {last['iter']}"
        self.say(f"{line}; see {self.folder / CURVE}")

    def close(self, *exception: object) -> None:
        if not self.on:
            return
        with contextlib.suppress(OSError):
            if self.bar is not None:
                self.bar.close()
        self.track(lambda tracker: tracker.close())
        for file in (self.metrics, self.log):
            with contextlib.suppress(OSError):
                file.close()


def printable(line: str) -> str:
    """The line, with escapes for characters that the console's encoding does not have."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def plot_loss(folder: Path) -> Path:
    """Draw the loss curve of a run into loss.png in its folder; returns its path."""
    keep_fonts()
    from matplotlib.figure import Figure

    steps, losses, evals = read_curve(folder)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    if steps:
        axes.plot(steps, losses, color="#9db8d2", lw=0.8, label="training batch")
    if evals:
        at = [r["iter"] for r in evals]
        marker = dict(marker="o", ms=3)
        train = [math.nan if r.get("train_loss") is None else r["train_loss"] for r in evals]
        axes.plot(at, train, color="#2f6db3", label="train", **marker)
        axes.plot(at, [r["val_loss"] for r in evals], color="#d1495b", label="validation", **marker)
        best = min(evaluations(evals), key=lambda r: r["val_loss"])
        text = f"best validation {best['val_loss']:.4f} at step {best['iter']}"
        if evals[-1].get("val_bpb"):
            text += f"; last {evals[-1]['val_bpb']:.3f} bits per byte"
        axes.set_title(text, fontsize=10)
        axes.axhline(best["val_loss"], color="#d1495b", lw=0.6, ls=":")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.25)
    if steps or evals:
        axes.legend(frameon=False, fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path = Path(folder) / CURVE
    with whole_file(path) as f:
        figure.savefig(f, dpi=130, format="png")
    return path
