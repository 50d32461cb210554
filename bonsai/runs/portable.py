"""A model in one safetensors file with our own names, to be shared without any pickle.

Its header's __metadata__ holds those keys of a checkpoint that are not tensors, as JSON under
`bonsai`: which model it is, its tokenizer, its chat template, the settings of the run. restore.py
reads it, with the same checks, as a checkpoint that cannot be resumed. A tensor with several names,
such as an embedding that is also the head, is stored once; `shared` has its other names.
"""

import json
import math
from pathlib import Path

from bonsai.files.access import writing
from bonsai.files.atomic import put_if_free
from bonsai.files.jsonfile import finite, parse_json_object
from bonsai.files.safetensors import read_with_metadata, write_safetensors
from bonsai.runs.checkpoint import FORMAT
from bonsai.runs.schema import is_scalars
from bonsai.system.errors import UserError

SUFFIX = ".safetensors"
KEY = "bonsai"
KEPT = ("model_args", "model_config", "model_name", "tokenizer", "chat_template", "config")
KEPT += ("iter_num", "best_val_loss")


def write_portable(path: str | Path, checkpoint: dict) -> None:
    """Write the weights of a checkpoint and what it says about them, never over another file.
    Raises UserError for errors of the disk."""
    tensors, shared, first = {}, {}, {}
    for name, tensor in checkpoint["model"].items():
        place = (tensor.data_ptr(), tensor.shape, tensor.dtype)
        known = first.setdefault(place, name) if tensor.numel() else name
        if known == name:
            tensors[name] = tensor
        else:
            shared[name] = known
    kept = {key: checkpoint[key] for key in KEPT if checkpoint.get(key) is not None}
    if "best_val_loss" in kept:
        kept["best_val_loss"] = float(kept["best_val_loss"])
    kept = {k: v for k, v in finite({**kept, "format": FORMAT}).items() if v is not None}
    words = json.dumps({**kept, "shared": shared}, ensure_ascii=False)
    with writing(path, " by --out"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, tensors, {"format": "pt", KEY: words}, put_if_free)


def read_portable(path: str | Path) -> dict:
    """What `write_portable` wrote, as a checkpoint. Raises UserError for any other file."""
    tensors, metadata = read_with_metadata(path)
    if KEY not in metadata:
        raise UserError(
            f"{path} does not say which model it holds: give the folder of Hugging Face's that it "
            "is from, with its config.json, or a file of export.py --to=safetensors"
        )
    checkpoint = parse_json_object(metadata[KEY], f"the header of {path}")
    shared = checkpoint.pop("shared", {})
    if not is_scalars(shared) or not all(known in tensors for known in shared.values()):
        raise UserError(f"{path} is damaged: {KEY} of its header names tensors that are not there")
    tensors |= {name: tensors[known] for name, known in shared.items() if name not in tensors}
    loss = checkpoint.pop("best_val_loss", None)  # JSON has no infinity
    known = {key: checkpoint[key] for key in (*KEPT, "format") if key in checkpoint}
    return {**known, "model": tensors, "best_val_loss": math.inf if loss is None else loss}


def is_portable(path: str | Path) -> bool:
    return Path(path).suffix == SUFFIX
