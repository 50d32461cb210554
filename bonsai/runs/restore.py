"""Reads checkpoints, and is the only place that does; checkpoint.py beside it describes them.

A file passes three checks before a model is built from it: bonsai/files/torchfile.py reads tensors
and plain values within bounds and verifies the checksums, schema.py checks the kinds and ranges of
the values, and bonsai/models/fit.py whether the tensors fit the model that is described.
"""

import json
import math
import re
import shlex
from contextlib import suppress
from itertools import count
from pathlib import Path

import torch

from bonsai import ROOT
from bonsai.files.access import exists
from bonsai.files.pickles import CallsCode, Damaged, Refused
from bonsai.files.torchfile import read_torch_file
from bonsai.runs.checkpoint import FORMAT
from bonsai.runs.mingpt import is_mingpt, mingpt_checkpoint
from bonsai.runs.names import CKPT, EARLIER, LAST, checkpoints, previous, resumes, spare
from bonsai.runs.portable import is_portable, read_portable
from bonsai.runs.schema import MOMENTS, check_checkpoint
from bonsai.system.errors import UserError

# the names by which torch.compile and DistributedDataParallel call the module that they wrap
WRAPPERS = re.compile(r"(_orig_mod\.|module\.)+")

# Python that keeps of a checkpoint only what a run needs
CONVERSION = """import torch; c = torch.load(PATH, "cpu", weights_only=False); \
plain = (bool, int, float, str); old = c.get("config", {}); \
c["config"] = {k: v for k, v in old.items() if type(v) in plain}; \
keys = "model model_args model_config model_name tokenizer optimizer iter_num best_val_loss"; \
torch.save({k: c[k] for k in (*keys.split(), "config") if k in c}, NEW)"""


def load_checkpoint(path: str | Path, optimizer: bool = True) -> dict:
    """Read a checkpoint of ours or nanoGPT's: tensors and plain values only, never code. Files of
    portable.py and of minGPT are read as checkpoints without an optimizer.

    optimizer: False leaves out the optimizer's state, two thirds of the memory. Raises UserError
    for a file that is missing or damaged, or that names code; the message names the previous
    checkpoint if there is one.
    """
    path = Path(path)
    if not exists(path):
        raise UserError(f"there is no checkpoint {path}: check out_dir, or train first")
    try:
        if is_portable(path):
            checkpoint = read_portable(path)
        else:
            checkpoint = read_torch_file(path, skip=() if optimizer else ("optimizer",))
    except Damaged as e:
        raise UserError(f"{path} is damaged ({e}){the_one_before(path)}") from None
    except CallsCode as e:
        raise UserError(
            f"refused to load {path}: {e}: loading it could execute code; if you trust it, this "
            f"writes {plain_name(path).name} with its weights and numbers alone: {conversion(path)}"
        ) from None
    except Refused as e:
        raise UserError(f"refused to load {path}: {e}") from None
    if is_mingpt(checkpoint):
        checkpoint = mingpt_checkpoint(checkpoint, path)
    if not isinstance(checkpoint, dict) or not {"model", "model_args"} <= set(checkpoint):
        raise UserError(
            f"{path} is not a checkpoint of a training run: it has no model and model_args"
        )
    check_checkpoint(checkpoint, path)
    if checkpoint.get("format", 0) > FORMAT:
        raise UserError(f"{path} was written by a newer version: format {checkpoint['format']}")
    if math.isnan(checkpoint.get("best_val_loss", 0.0)):
        checkpoint["best_val_loss"] = math.inf  # any loss is better than that
    if all(map(WRAPPERS.match, checkpoint["model"])):
        checkpoint["model"] = {WRAPPERS.sub("", k, 1): v for k, v in checkpoint["model"].items()}
    return checkpoint


def the_one_before(path: Path) -> str:
    """Advice if a checkpoint is damaged: how to continue with the one that it replaced, or with
    another one of the run. The command in it overwrites nothing."""
    older = previous(path)
    others = [p.name for p in checkpoints(path.parent) if p != path and resumes(p.name)]
    if exists(older):
        found = f"the one before it is {older}, which is"
    elif resumes(path.name) and others:
        found = f"there is also {', '.join(others)}: {'one of these' if others[1:] else 'it'} is"
    else:
        return ""
    aside = next(p for i in count() if not exists(p := path.with_name(f"{path.name}.bad{i or ''}")))
    return f"; {found} used after {shlex.join(['mv', str(path), str(aside)])}"


def plain_name(path: Path) -> Path:
    return path.with_suffix(".plain.pt")


def conversion(path: Path) -> str:
    """A command that loads a checkpoint as torch does, and writes what we need of it beside it."""
    words = {"PATH": json.dumps(str(path)), "NEW": json.dumps(str(plain_name(path)))}
    code = re.sub("PATH|NEW", lambda word: words[word[0]], CONVERSION)
    return shlex.join(["python", "-c", code])


def run_checkpoint(out_dir: str | Path, newest: bool = False, setting: str = "out_dir") -> Path:
    """The checkpoint of a run: ckpt.pt if it exists, else last.pt; newest: the newer of the two.

    If one is missing, the file that it replaced takes its place; if all are, the last of keep_last,
    or best.pt. Raises UserError if the run has none; its advice names the setting in which the
    folder was given ('': in none).
    """
    names = [Path(out_dir) / CKPT, Path(out_dir) / LAST]
    paths = [p if exists(p) else previous(p) for p in names if exists(p) or exists(previous(p))]
    paths = paths or spare(Path(out_dir))[:1]
    if not paths:
        steps = sorted(Path(out_dir).glob("checkpoint-*/config.json"))  # of Hugging Face's trainer
        if steps:
            inner = ", ".join(str(path.parent) for path in steps[-3:])
            raise UserError(f"no checkpoint in {out_dir} itself: give a folder in it ({inner})")
        if Path(out_dir).is_file():
            given = shlex.quote(f"--init_from={out_dir}")
            raise UserError(f"{out_dir} is a file: a checkpoint is given as {given}")
        raise UserError(f"no checkpoint in {out_dir}: {runs_there_are(Path(out_dir), setting)}")
    return max(paths, key=steps_done) if newest and len(paths) > 1 else paths[0]


def runs_there_are(out_dir: Path, setting: str) -> str:
    """Advice if a folder has no run: the runs in it (also earlier ones), beside it, in the working
    directory and in the repository, to be given instead in that setting ('': there is none)."""
    folders: dict[Path, float] = {}
    for base in (out_dir / EARLIER, out_dir, out_dir.parent, Path(), ROOT):
        for path in base.glob("*/*.pt"):
            if not resumes(path.name):
                continue
            with suppress(OSError):
                folder, time = path.parent.resolve(), path.stat().st_mtime
                folders[folder] = max(time, folders.get(folder, 0))
    if not folders:
        to_do = f"set --{setting} to" if setting else "give"
        return f"{to_do} a run's folder, or train first"
    here = Path().resolve()
    newest = sorted(folders, key=folders.get, reverse=True)
    names = [str(f.relative_to(here) if f.is_relative_to(here) else f) for f in newest[:5]]
    more = f" and {len(folders) - 5} more" if len(folders) > 5 else ""
    listed = ", ".join(map(shlex.quote, names))
    choose = f"choose one with --{setting}" if setting else "give one of these instead"
    return f"there are runs in {listed}{more}; {choose}"


def newer_weights(path: Path) -> str:
    """A note if a run has newer weights than those in its ckpt.pt, and how to use them; '' if it
    has not."""
    last = path.with_name(LAST)
    if path.name != CKPT or not exists(last):
        return ""
    try:
        step, newest = steps_done(path), steps_done(last)
    except UserError:  # a damaged last.pt, which the user has not asked for
        return ""
    if newest <= step:
        return ""
    return (
        f"{path}, which samples and evaluations take, is of step {step}: the last evaluation that "
        f"was saved (always_save_checkpoint=False saves those that improve); {last} is of step "
        f"{newest}: {shlex.quote(f'--init_from={last}')}"
    )


def steps_done(path: Path) -> int:
    """iter_num of a checkpoint, without reading its tensors."""
    try:
        values = read_torch_file(path, values_only=True)
        good = isinstance(values, dict)
    except (Damaged, Refused):
        good = False
    if not good:
        return load_checkpoint(path).get("iter_num", 0)  # says what is wrong
    check_checkpoint(values, path)
    return values.get("iter_num", 0)


def crop_moments(optimizer_state: dict, parameters: list[torch.Tensor]) -> None:
    """Cut the optimizer's moments to the parameters' shapes, after crop_block_size shortened them.

    parameters: in the order of the optimizer's groups. Raises UserError for moments that do not
    fit: torch's fused AdamW does not check shapes and strides, and would write past their memory.
    """
    state = optimizer_state["state"]
    if not state.keys() <= set(range(len(parameters))):
        raise UserError("the checkpoint's optimizer has state for parameters that are not there")
    for i, entry in state.items():
        shape = parameters[i].shape
        for key, value in entry.items():
            if not isinstance(value, torch.Tensor) or (not value.dim() and key not in MOMENTS):
                continue
            if value.shape == shape:
                entry[key] = value.contiguous()
            elif value.dim() == len(shape) and all(n >= k for n, k in zip(value.shape, shape)):
                entry[key] = value[tuple(slice(n) for n in shape)].clone()
            elif key in MOMENTS:
                raise UserError(
                    f"the checkpoint's optimizer does not fit its model: {key} of parameter {i} is "
                    f"{tuple(value.shape)}, not {tuple(shape)}"
                )
