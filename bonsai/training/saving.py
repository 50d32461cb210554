"""The checkpoints of a run while it trains: when they are due, under which names, what is in them.

bonsai/runs/names.py says what each name stands for; bonsai/runs/checkpoint.py writes the files, on
a GPU while training continues (background.py).
"""

import math
from functools import partial
from pathlib import Path

import torch

from bonsai.models.table import describe_model
from bonsai.runs.checkpoint import save_checkpoint
from bonsai.runs.lock import RunLock
from bonsai.runs.names import BEST, CKPT, DIVERGED, LAST, step_name
from bonsai.system.commit import code_checksum
from bonsai.system.provenance import versions
from bonsai.system.runtime import Runtime
from bonsai.training.background import BackgroundWriter
from bonsai.training.report import Report
from bonsai.training.start import Start
from bonsai.training.step import TrainingStep

BACKGROUND = ("cuda",)  # devices that train while a thread writes; a CPU would do both slower


class Saving:
    """Saves a run. All processes call its methods, because a sharded optimizer's state is gathered
    from all of them; the first process writes."""

    def __init__(
        self,
        folder: Path,
        c,
        runtime: Runtime,
        lock: RunLock,
        report: Report,
        start: Start,
        training: TrainingStep,
    ):
        self.folder, self.c, self.runtime = folder, c, runtime
        self.lock, self.report, self.start, self.training = lock, report, start, training
        self.background = runtime.device.type in BACKGROUND
        self.writer = BackgroundWriter(runtime, report.say)
        self.saved = start.progress.step  # the step of the newest checkpoint, written or begun
        self.sound = True  # whether the losses of the last evaluation were finite

    def due(self, step: int) -> bool:
        """Whether last.pt is to be saved when `step` steps are done."""
        return bool(self.c.save_interval) and step % self.c.save_interval == 0

    def after_evaluation(self, row: dict, improved: bool, stops: bool) -> None:
        """Save what is due after an evaluation. row: its losses. stops: the run ends here."""
        c, step = self.c, self.start.progress.step
        self.sound = math.isfinite(row["val_loss"]) and math.isfinite(row["train_loss"])
        names = []
        if step > 0:
            names += [CKPT] if improved or c.always_save_checkpoint else []
            names += [BEST] if improved and c.keep_best else []
            names += [LAST] if stops or self.due(step) else []
        if names:
            self.report.say(f"saving checkpoint to {self.folder}")
            self.save(*names, at_once=stops)

    def save(self, *names: str, at_once: bool = False) -> None:
        """Write one checkpoint under each of `names`, after the one before it has been written.

        at_once: also on a GPU it is written when this returns.
        """
        self.writer.wait()
        step = self.saved = self.start.progress.step
        # before the other processes leave: a sharded optimizer gathers its state from all of them
        optimizer_state = self.training.optimizer.state_dict()
        if not self.runtime.master:
            return
        if self.lock.check():
            self.report.say(
                f"{self.folder} was removed or renamed: it is made anew, without what was in it"
            )
        self.report.reopen()
        if self.c.keep_last and LAST in names:
            names += (step_name(step),)
        if not (self.sound and self.training.is_finite()):  # keep the good ones
            names = (DIVERGED,)
            self.report.say(f"the loss is not finite: saving as {self.folder / DIVERGED} alone")
        keep = self.c.keep_last
        write = partial(save_checkpoint, self.folder, names=names, keep_last=keep)
        if self.background and not at_once:
            self.writer.write(write, self.state(optimizer_state))
        else:
            write(self.state(optimizer_state))

    def check(self) -> None:
        """Raise the error of a checkpoint that could not be written while training went on."""
        self.writer.check()

    def finish(self) -> None:
        """At the end of a run: save the last step, if that has not been done, and wait for it."""
        if self.saved != self.start.progress.step:
            self.save(LAST, at_once=True)
        self.writer.wait()

    def state(self, optimizer_state: dict) -> dict:
        """What a checkpoint holds: bonsai/runs/checkpoint.py describes it."""
        start, progress = self.start, self.start.progress
        return {
            "model": start.model.state_dict(),
            "optimizer": optimizer_state,
            "scaler": self.training.scaler.state_dict(),
            **describe_model(start.model, self.c.model),
            "iter_num": progress.step,
            "best_val_loss": torch.tensor(progress.best_val_loss),  # in single precision
            "config": dict(self.c),
            "tokenizer": start.tokenizer,
            "chat_template": start.chat_template,
            "data": start.data.fingerprints(),
            "progress": progress.to_dict(),
            "wandb_id": start.wandb_id,
            "versions": {**versions(), "code": code_checksum()},
        }

    def rescue(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        """If an error ends the loop, save what was trained. Called as the __exit__ of an ExitStack,
        before the lock on the run's folder is given back: what is being written is finished first.
        """
        try:
            self.writer.wait()
        except Exception as e:
            if error is None:
                raise
            self.report.say(f"not saved at step {self.saved}: {e}")
        sharded = self.runtime.world_size > 1 and self.training.optimizer_is_sharded
        if error is None or not self.runtime.master or sharded:  # it would need all processes
            return
        step = self.start.progress.step
        if self.saved == step or self.training.updating:
            return
        try:
            self.save(LAST, at_once=True)
            self.report.say(f"saved at step {step}, then ended by an error")
        except Exception as e:
            self.report.say(f"not saved at step {step}: {e}")
