"""The only writer of checkpoints; bonsai/runs/restore.py reads them.

`ckpt.pt` is nanoGPT's dict with a few more keys, so each program loads the other's:

    model, optimizer, model_args, iter_num, best_val_loss, config      nanoGPT's
    model_name, model_config     the architecture and all of its fields
    tokenizer                    Tokenizer.to_dict(): sampling needs nothing but this file
    chat_template                how messages become a prompt (bonsai/tokenizers/chat.py), or None
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

from bonsai.files.atomic import link_or_copy, sync_folder, temporary, whole_file
from bonsai.runs.names import CKPT, checkpoints, previous, step_files
from bonsai.system.errors import FULL, UserError

FORMAT = 1


def save_checkpoint(
    folder: Path, state: dict, names: tuple[str, ...] = (CKPT,), keep_last: int = 0
) -> None:
    """Write `state` once and put it in place under each of `names`.

    keep_last: how many of the files step_NNNNNNN.pt up to this step stay; 0: all.

    Written beside its goal, flushed to the disk, then renamed over it: a kill or a full disk at any
    moment leaves the last checkpoint as it was. A folder that is gone is made anew. Raises
    UserError when it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / names[0], place=put_in_place) as f:
            # A file of Python's: its errors have a number, and it lets other threads run while it
            # writes, as torch's own does.
            torch.save({**state, "format": FORMAT}, f)
        for name in names[1:]:
            # a file of its own, no second name: who copies another one over it changes it alone
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
    """Rename `new` to `path`; what was there before stays as its previous one."""
    if not path.exists() or path.name.startswith("step_"):
        os.replace(new, path)
        return
    keep = temporary(path)
    try:
        link_or_copy(path, keep)  # so that at no moment there is nothing under `path`
        os.replace(new, path)
        os.replace(keep, previous(path))
    finally:
        with contextlib.suppress(OSError):
            keep.unlink(missing_ok=True)
