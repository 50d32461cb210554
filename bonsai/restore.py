"""The only reader of checkpoints, which bonsai/checkpoint.py wrote and describes."""

import pickle
import zipfile
from pathlib import Path

import torch

from bonsai.checkpoint import FORMAT, previous
from bonsai.errors import UserError


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict:
    """Read a checkpoint of ours or of nanoGPT: tensors and plain values only, never code.

    Raises UserError for a file that is missing, damaged, or wants to execute something; the message
    names the previous checkpoint where there is one.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}: check out_dir, or train first")
    older = previous(path)
    offer = f"; the one before it is {older}: mv {older} {path}" if older.exists() else ""
    damaged = f"{path} is damaged{{}}{offer}"
    try:
        if not zipfile.is_zipfile(path):  # also one cut short: a zip archive's directory comes last
            raise UserError(damaged.format(", or it is no checkpoint"))
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                raise UserError(damaged.format(f" (wrong checksum in {bad})"))
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except (UserError, MemoryError):
        raise
    except pickle.UnpicklingError:  # the checksums are right: it was written like this
        raise UserError(
            f"refused to load {path}: it holds more than tensors and plain values, so loading it "
            "could execute code"
        ) from None
    except Exception as e:  # what zipfile and torch raise for a wrong byte is of many kinds
        if isinstance(e, PermissionError | IsADirectoryError):
            raise UserError(f"{path} cannot be read: {e.strerror}") from None
        raise UserError(damaged.format(", or it is no checkpoint")) from None
    if not isinstance(checkpoint, dict) or not {"model", "model_args"} <= set(checkpoint):
        raise UserError(
            f"{path} is not a checkpoint of a training run: it has no model and model_args"
        )
    if checkpoint.get("format", 0) > FORMAT:
        raise UserError(f"{path} was written by a newer version: format {checkpoint['format']}")
    prefix = "_orig_mod."  # what torch.compile calls the module that it wraps
    checkpoint["model"] = {k.removeprefix(prefix): v for k, v in checkpoint["model"].items()}
    return checkpoint


def run_checkpoint(out_dir: str | Path, newest: bool = False) -> Path:
    """The checkpoint of a run: ckpt.pt when it exists, else last.pt; for a resume the newer one.

    Raises UserError when the run has none.
    """
    found = [p for p in (Path(out_dir) / "ckpt.pt", Path(out_dir) / "last.pt") if p.exists()]
    if not found:
        older = [p for p in map(previous, (Path(out_dir) / "ckpt.pt", Path(out_dir) / "last.pt"))]
        found = [p for p in older if p.exists()]
    if not found:
        raise UserError(
            f"no checkpoint in {out_dir}: set --out_dir to a run's folder, or train first"
        )
    return max(found, key=steps_done) if newest and len(found) > 1 else found[0]


def steps_done(path: Path) -> int:
    """iter_num of a checkpoint, without reading its tensors."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["iter_num"]
    except Exception:  # whatever is wrong with it, load_checkpoint says it better
        return load_checkpoint(path)["iter_num"]


def crop_moments(optimizer_state: dict, parameters: list[torch.Tensor]) -> None:
    """Cut the optimizer's moments to the parameters' shapes, after crop_block_size shortened them.

    parameters: in the order of the optimizer's groups.
    """
    for i, p in enumerate(parameters):
        for key, value in optimizer_state["state"].get(i, {}).items():
            if value.dim() and value.shape != p.shape:
                optimizer_state["state"][i][key] = value[tuple(slice(n) for n in p.shape)].clone()
