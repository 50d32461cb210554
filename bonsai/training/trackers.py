"""Trackers: services and files that show a run's curves beside those of other runs.

A tracker is one class and one line in TRACKERS. It gets the numbers of steps and evaluations,
samples and, at the end, the picture of the loss. Its `id` is kept in the checkpoint, so that a
resumed run continues in the tracker, too. Its library is imported only if a run uses it.
"""

import html
from collections.abc import Callable
from pathlib import Path

from bonsai.runs.names import TENSORBOARD
from bonsai.system.errors import UserError
from bonsai.system.libraries import installed


class Tracker:
    """One run in a tracker. id: by which a resumed run finds it again."""

    id: str | None = None

    def log(self, values: dict[str, float], step: int) -> None:
        """Numbers by name, at a step."""

    def text(self, name: str, text: str, step: int) -> None: ...

    def picture(self, name: str, path: Path) -> None: ...

    def close(self) -> None: ...


class WandB(Tracker):
    """Weights & Biases, in its cloud or, by WANDB_MODE=offline, in a folder."""

    def __init__(self, settings: dict, folder: Path, start: int, id: str | None):
        import wandb

        self.module = wandb
        project, name = settings["wandb_project"], settings["wandb_run_name"]
        self.run = wandb.init(project=project, name=name, config=settings, id=id, resume="allow")
        self.id = self.run.id
        # by the number of our step: wandb's own would drop what is logged for an earlier one
        self.run.define_metric("*", step_metric="iter")

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log({"iter": step, **values})

    def text(self, name: str, text: str, step: int) -> None:
        shown = self.module.Html(f"<pre>{html.escape(text)}</pre>")
        self.run.log({"iter": step, name: shown})

    def picture(self, name: str, path: Path) -> None:
        self.run.log({name: self.module.Image(str(path))})

    def close(self) -> None:
        self.run.finish()


class Trackio(Tracker):
    """trackio: on this machine, in Hugging Face's cache; `trackio show` opens the page. A run's id
    is its name."""

    def __init__(self, settings: dict, folder: Path, start: int, id: str | None):
        import trackio

        self.module = trackio
        project, name = settings["wandb_project"], id or settings["wandb_run_name"]
        resume = "allow" if id else "never"
        config = {k: v for k, v in settings.items() if not k.startswith("_")}
        self.run = trackio.init(project, name, config=config, resume=resume, embed=False)
        self.id = self.run.name

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def text(self, name: str, text: str, step: int) -> None:
        self.run.log({name: self.module.Markdown(f"```\n{text}\n```")}, step=step)

    def picture(self, name: str, path: Path) -> None:
        self.run.log({name: self.module.Image(str(path))})

    def close(self) -> None:
        self.run.finish()


class TensorBoard(Tracker):
    """TensorBoard: files in out_dir/tensorboard; `tensorboard --logdir=.` shows all runs below."""

    def __init__(self, settings: dict, folder: Path, start: int, id: str | None):
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what was written after the checkpoint from which the run goes on
        self.writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=start if id else None)
        self.writer.add_text("settings", table(settings))
        self.id = "tensorboard"

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def text(self, name: str, text: str, step: int) -> None:
        self.writer.add_text(name, f"```\n{text}\n```", step)

    def picture(self, name: str, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self.writer.add_image(name, pixels, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


def table(settings: dict) -> str:
    """The settings as a table in Markdown."""
    rows = [f"| {k} | {v} |" for k, v in settings.items()]
    return "\n".join(["| setting | value |", "| --- | --- |", *rows])


TRACKERS: dict[str, Callable[..., Tracker]] = {
    "wandb": WandB,
    "tensorboard": TensorBoard,
    "trackio": Trackio,
}


def tracker_name(settings: dict) -> str:
    """The name of the tracker that `tracker`, or nanoGPT's wandb_log, asks for; '': none."""
    return settings.get("tracker") or ("wandb" if settings.get("wandb_log") else "")


def check_tracker(settings: dict) -> None:
    """Raise UserError if the tracker that is asked for is not installed."""
    name = tracker_name(settings)
    if name and not installed(name):
        raise UserError(f"tracker={name} needs {name}: pip install {name}")


def start_tracker(settings: dict, folder: Path, start: int, id: str | None) -> Tracker | None:
    """The tracker that `tracker`, or nanoGPT's wandb_log, asks for; None: none.

    start: steps already done. id: of the run that is resumed, if it has one. Raises UserError, in
    one line, if the tracker is not installed or does not start.
    """
    name = tracker_name(settings)
    if not name or (name == "tensorboard" and settings["eval_only"]):  # its files are the run's
        return None
    try:
        return TRACKERS[name](settings, folder, start, id)
    except ImportError:
        raise UserError(f"tracker={name} needs {name}: pip install {name}") from None
    except Exception as e:  # each has errors of its own: no key, no network, no room
        first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        help = "run wandb login, set WANDB_MODE=offline, or use" if name == "wandb" else "use"
        off = "--tracker='' --wandb_log=False" if settings["tracker"] else "--wandb_log=False"
        raise UserError(f"{name} could not start ({first[:100]}): {help} {off}") from None
