"""The only writer of checkpoints; bonsai/restore.py reads them.

`ckpt.pt` is nanoGPT's dict with a few more keys, so each program loads the other's:

    model, optimizer, model_args, iter_num, best_val_loss, config      nanoGPT's
    model_name, model_config     the architecture and all of its fields
    tokenizer                    Tokenizer.to_dict(): sampling needs nothing but this file
    chat_template                how messages become a prompt (bonsai/serving/chat.py), or None
    scaler, progress, wandb_id   what an exact resume needs beyond the optimizer
    versions, format

A file appears whole or not at all, the one before it stays as `*.prev.pt`, and its contents carry
checksums (those of the zip archive that torch writes), which are verified before anything is used.
"""

import contextlib
import os
import shutil
from pathlib import Path

import torch

from bonsai.errors import UserError

FORMAT = 1


def previous(path: Path) -> Path:
    """Where the file that `path` replaced is kept: ckpt.pt -> ckpt.prev.pt."""
    return path.with_suffix(".prev" + path.suffix)


def save_checkpoint(
    folder: Path, state: dict, names: tuple[str, ...] = ("ckpt.pt",), keep_last: int = 0
) -> None:
    """Write `state` once and put it in place under each of `names`.

    keep_last: with a name step_NNNNNNN.pt, how many such files stay.

    Written beside its goal, flushed to the disk, then renamed over it: a kill or a full disk at any
    moment leaves the last checkpoint as it was. Raises UserError when it cannot be written.
    """
    folder = Path(folder)
    tmp = folder / "saving.tmp"
    remove_unfinished(folder)  # first: after a kill, tmp may be another name of a checkpoint
    try:
        with open(tmp, "wb") as f:
            torch.save({**state, "format": FORMAT}, f)
            f.flush()
            os.fsync(f.fileno())
        for name in names:
            put_in_place(tmp, folder / name)
        sync_folder(folder)
        if keep_last:
            for old in sorted(folder.glob("step_*.pt"))[:-keep_last]:
                old.unlink()
    except (OSError, RuntimeError) as e:  # torch's writer reports a full disk as RuntimeError
        reason = " ".join(str(e.__context__ or e).split())[:120]
        raise UserError(
            f"could not write {folder / names[0]} ({reason}): free some space or set another "
            "out_dir; checkpoints written before are intact"
        ) from None
    finally:
        remove_unfinished(folder)


def put_in_place(tmp: Path, path: Path) -> None:
    """Rename a second name of `tmp` over `path`, keeping what was there under another name."""
    new, keep = path.with_name("saving.new"), path.with_name("saving.keep")
    link_or_copy(tmp, new)
    kept = path.exists() and not path.name.startswith("step_")
    if kept:
        link_or_copy(path, keep)
    os.replace(new, path)
    # last: renaming a file over another name of itself does nothing, and would leave both names
    if kept:
        os.replace(keep, previous(path))


def remove_unfinished(folder: Path) -> None:
    """Remove what a kill in the middle of save_checkpoint left in a run's folder."""
    for name in ("saving.tmp", "saving.new", "saving.keep"):
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)


def set_aside(out_dir: Path) -> None:
    """Move an earlier run out of the way of a new one: to out_dir/earlier, which it replaces."""
    files = ("ckpt.pt", "last.pt", "best.pt", "metrics.jsonl", "log.txt", "config.json", "loss.png")
    there = [p for p in (out_dir / name for name in files) if p.exists()]
    if not any(p.suffix == ".pt" for p in there):
        return
    shutil.rmtree(out_dir / "earlier", ignore_errors=True)
    (out_dir / "earlier").mkdir()
    for path in there:
        os.replace(path, out_dir / "earlier" / path.name)
    for path in [*out_dir.glob("*.prev.pt"), *out_dir.glob("step_*.pt")]:
        path.unlink()
    print(f"the earlier run in {out_dir} is now in {out_dir / 'earlier'}")


def link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
