"""The names of a run's files, which are all in one folder, its out_dir.

ckpt.pt, last.pt, best.pt   checkpoints (checkpoint.py says what is in them): of the last
                            evaluation, of the last step, and of the lowest validation loss
diverged.pt                 a checkpoint whose loss is not finite; it replaces none of those
NAME.prev.pt                the checkpoint that NAME.pt has replaced
step_NNNNNNN.pt             checkpoints that keep_last keeps
metrics.jsonl, log.txt, config.json, loss.png    see bonsai/training/report.py
tensorboard/                with tracker=tensorboard (bonsai/training/trackers.py)
run.lock                    while it trains: which process writes here (bonsai/runs/lock.py)
earlier/1, earlier/2, ...   the same files of earlier runs (bonsai/runs/earlier.py)
"""

import contextlib
import re
from pathlib import Path

from bonsai.files.atomic import UNFINISHED

CKPT, LAST, BEST, DIVERGED = "ckpt.pt", "last.pt", "best.pt", "diverged.pt"
METRICS, LOG, SETTINGS, CURVE = "metrics.jsonl", "log.txt", "config.json", "loss.png"
LOCK, EARLIER, TENSORBOARD = "run.lock", "earlier", "tensorboard"

CHECKPOINT = re.compile(r"(ckpt|last|best|diverged)(\.prev)?\.pt|step_\d+\.pt")


def previous(path: Path) -> Path:
    """Where the file that `path` replaced is kept: ckpt.pt -> ckpt.prev.pt."""
    return path.with_suffix(".prev" + path.suffix)


def step_name(step: int) -> str:
    """
    >>> step_name(250)
    'step_0000250.pt'
    """
    return f"step_{step:07d}.pt"


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in a run's folder, in the order of their names."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if CHECKPOINT.fullmatch(p.name) and p.is_file())


def resumes(name: str) -> bool:
    """Whether a run can be resumed from a file of this name: any checkpoint except diverged.pt."""
    return bool(CHECKPOINT.fullmatch(name)) and not name.startswith("diverged")


def resumable(folder: Path) -> bool:
    """Whether the folder has a checkpoint from which a run can be resumed."""
    return any(resumes(path.name) for path in checkpoints(folder))


def step_files(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the files step_NNNNNNN.pt, the first step first."""
    return sorted((int(p.stem[5:]), p) for p in checkpoints(folder) if p.stem.startswith("step_"))


def spare(folder: Path) -> list[Path]:
    """What a run can be resumed from if ckpt.pt, last.pt and their previous ones are missing."""
    best = folder / BEST
    steps = [path for _, path in reversed(step_files(folder))]
    return [p for p in (*steps[:1], best, previous(best)) if p.is_file()]


def run_files(folder: Path) -> list[Path]:
    """All files that a run has left in its folder; files with other names are not a run's."""
    others = [folder / name for name in (METRICS, LOG, SETTINGS, CURVE)]
    found = [p for p in others if p.is_file()]
    if (folder / TENSORBOARD).is_dir():
        found.append(folder / TENSORBOARD)
    return checkpoints(folder) + found


def remove_unfinished(folder: Path) -> None:
    """Remove what is left of files of a run whose writing was cut off by a kill.

    Only the process that holds the folder's lock may call this: another may be writing such a file.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        match = UNFINISHED.fullmatch(path.name)
        name = match["name"] if match else ""
        if CHECKPOINT.fullmatch(name) or name in (METRICS, SETTINGS, CURVE):
            with contextlib.suppress(OSError):
                path.unlink()
