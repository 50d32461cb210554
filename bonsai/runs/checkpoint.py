"""Writes checkpoints, and is the only place that does; bonsai/runs/restore.py reads them.

`ckpt.pt` is nanoGPT's dict with a few more keys, so that each project can load the other's:

    model, optimizer, model_args, iter_num, best_val_loss, config      nanoGPT's
    model_name, model_config     the architecture and all of its fields
    tokenizer                    Tokenizer.to_dict(), so that sampling needs only this file
    chat_template                how messages become a prompt (bonsai/tokenizers/chat.py), or None
    scaler, progress, wandb_id   what an exact resume needs besides the optimizer
    versions, format

A file appears whole or not at all, and the one before it stays as `*.prev.pt`. It has checksums
(those of the zip archive that torch writes), which are verified before anything is used.
"""

import contextlib
import os
import shutil
from pathlib import Path

import torch

from bonsai.files.atomic import link_or_copy, sync_folder, temporary, whole_file
from bonsai.runs.names import CKPT, checkpoints, previous, step_files
from bonsai.system.errors import FULL, UserError

FORMAT = 1


def save_checkpoint(
    folder: Path, state: dict, names: tuple[str, ...] = (CKPT,), keep_last: int = 0
) -> None:
    """Write `state` once and put it in place under each of `names`.

    keep_last: how many of the files step_NNNNNNN.pt up to this step stay; 0: all.

    The file is written under another name, flushed to the disk, then renamed: a kill or a full disk
    at any moment leaves the previous checkpoint as it was. A folder that is gone is made again.
    Raises UserError if the file cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / names[0], place=put_in_place) as f:
            # To a file of Python's, not to a path: its errors have a number, and other threads run
            # while it writes.
            torch.save({**state, "format": FORMAT}, f)
        for name in names[1:]:
            # a copy, not a link: a user who overwrites one file must not change the other
            with (
                open(folder / names[0], "rb") as whole,
                whole_file(folder / name, place=put_in_place) as f,
            ):
                shutil.copyfileobj(whole, f, 1 << 20)
        sync_folder(folder)
        if keep_last:
            numbered = [p for step, p in step_files(folder) if step <= state["iter_num"]]
            for old in numbered[:-keep_last]:
                old.unlink()
    except (OSError, RuntimeError) as e:  # torch's writer reports a full disk as RuntimeError
        cause = e if isinstance(e, OSError) else e.__context__
        reason = " ".join(str(cause or e).split())[:120]
        full = not isinstance(cause, OSError) or cause.errno in FULL
        left = ", ".join(p.name for p in checkpoints(folder))
        raise UserError(
            f"could not write {folder / names[0]} ({reason}): {'free some space or ' * full}set "
            f"another out_dir; {f'intact there: {left}' if left else 'no checkpoint is there now'}"
        ) from None


def put_in_place(new: Path, path: Path) -> None:
    """Rename `new` to `path`; the file that was there stays as previous(path)."""
    if not path.exists() or path.name.startswith("step_"):
        os.replace(new, path)
        return
    keep = temporary(path)
    try:
        link_or_copy(path, keep)  # not renamed, so that `path` always exists
        os.replace(new, path)
        os.replace(keep, previous(path))
    finally:
        with contextlib.suppress(OSError):
            keep.unlink(missing_ok=True)
