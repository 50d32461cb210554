"""Earlier runs: what is in the folder of a new run first moves to earlier/1, earlier/2, ...

Nothing is ever deleted. A move is many renames, and the program may be killed between any two. So
the files go to earlier/N.part, which is renamed when all are there. A new run that finds such a
folder finishes the move; a run that is resumed takes the files back.
"""

import filecmp
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bonsai.files.jsonfile import read_json_object
from bonsai.runs.names import EARLIER, METRICS, SETTINGS, checkpoints, run_files, step_files
from bonsai.runs.restore import steps_done
from bonsai.system.errors import UserError

PART = ".part"


def set_aside(folder: Path) -> str:
    """Make room for a new run: all files of an earlier run move to earlier/N.

    Returns a line that says so; '' if there is neither a checkpoint nor a row of metrics. Raises
    UserError for a config.json that no run has written, because the new run would replace it.
    """
    files = run_files(folder)
    metrics = folder / METRICS
    has_rows = metrics.is_file() and metrics.stat().st_size
    if not (checkpoints(folder) or has_rows or unfinished(folder)):
        if (folder / SETTINGS).exists() and not is_of_a_run(folder / SETTINGS):
            raise UserError(
                f"{folder / SETTINGS} is no run's, and a run here would replace it: set another "
                "--out_dir"
            )
        return ""
    target = move(folder, files)
    size = sum(p.stat().st_size for p in target.iterdir()) / 1e6
    return f"the earlier run in {folder} is now in {target} ({size:,.1f} MB)"


def is_of_a_run(settings: Path) -> bool:
    """Whether a run wrote this config.json; other programs write such files, too."""
    try:
        return "out_dir" in read_json_object(settings)
    except UserError:
        return False


def set_aside_newer(folder: Path, step: int) -> str:
    """When a run goes back to `step`, move checkpoints of later steps to earlier/N, with a copy of
    the metrics.

    So keep_last counts only checkpoints of this run, and best.pt is one of them. Returns a line
    that says so; '' if there are none.
    """
    newer = [path for number, path in step_files(folder) if number > step]
    named = [p for p in checkpoints(folder) if not p.stem.startswith("step_")]
    newer += [path for path in named if is_newer(path, step)]
    if not newer:
        return ""
    target = move(folder, newer, copies=[folder / METRICS])
    names = ", ".join(p.name for p in newer)
    return f"going back to step {step}: what was made after it ({names}) is now in {target}"


def is_newer(path: Path, step: int) -> bool:
    try:
        return steps_done(path) > step
    except UserError:  # it cannot be read, and stays where it is
        return False


def unfinished(folder: Path) -> Path | None:
    """The earlier/N.part that a kill has left, or None."""
    return next(iter(sorted((folder / EARLIER).glob("*" + PART))), None)


def take_back(folder: Path) -> None:
    """Undo an unfinished move, for a run that is resumed."""
    part = unfinished(folder)
    if part is None:
        return
    with move_errors(folder):
        for path in part.iterdir():
            if not (folder / path.name).exists():
                os.replace(path, folder / path.name)
            elif not differs(path, folder / path.name):  # a copy
                path.unlink()
        if any(part.iterdir()):
            keep_apart(part, folder)
        else:
            part.rmdir()


def move(folder: Path, files: list[Path], copies: Sequence[Path] = ()) -> Path:
    """Move `files` and copy `copies` to earlier/N; returns that folder. Raises UserError."""
    with move_errors(folder):
        part = unfinished(folder)
        if part is not None and any(differs(path, part / path.name) for path in files):
            keep_apart(part, folder)  # it is of another run than `files`
            part = None
        if part is None:
            target = next_folder(folder)
            part = target.with_name(target.name + PART)
            part.mkdir(parents=True)
        for path in copies:
            if path.is_file():
                shutil.copyfile(path, part / path.name)
        for path in files:
            os.replace(path, part / path.name)
        target = part.with_suffix("")
        os.replace(part, target)
    return target


def differs(path: Path, other: Path) -> bool:
    """Whether `other` is there too, and is not the same file as `path`."""
    return other.exists() and not filecmp.cmp(path, other, shallow=False)


@contextmanager
def move_errors(folder: Path) -> Iterator[None]:
    """A context that turns errors of a move into one line for the user."""
    try:
        yield
    except OSError as e:
        raise UserError(
            f"cannot move the earlier run in {folder} to {folder / EARLIER} ({e.strerror}): "
            "make that possible, or set another --out_dir"
        ) from None


def keep_apart(part: Path, folder: Path) -> None:
    """Make the content of earlier/N.part an earlier run of its own."""
    os.replace(part, next_folder(folder))


def next_folder(folder: Path) -> Path:
    """earlier/N, with an N one higher than all that are there."""
    numbers = [int(p.stem) for p in (folder / EARLIER).glob("*") if p.stem.isdecimal()]
    return folder / EARLIER / str(max(numbers, default=0) + 1)
