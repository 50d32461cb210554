"""What a data folder says about itself: meta.json, checked by a schema, or nanoGPT's meta.pkl.

Both may come from a stranger: nothing is executed, sizes are checked before anything is read, and a
field of the wrong kind is one line for the user.
"""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from bonsai import ROOT, tokenizers
from bonsai.files.access import SETTINGS
from bonsai.files.textfile import read_text
from bonsai.system.errors import UserError
from bonsai.tokenizers.bpe import LARGEST
from bonsai.tokenizers.nanogpt import META, read_nanogpt_meta

FORMAT = 1  # the newest meta.json that we know
MANY = 1 << 50  # tokens, bytes, documents
IDS = {"uint16": 1 << 16, "uint32": LARGEST}  # dtype -> the largest vocabulary it is used for
FILES = 1 << 20  # of a split


def dtype_of(vocab_size: int) -> np.dtype:
    """The number format in which the ids of a vocabulary are written."""
    return np.dtype("<u2" if vocab_size <= 65535 else "<u4")


def places(name: str) -> list[Path]:
    """Where a data set of this name may be: in the working directory, or in the repository."""
    return [Path("data") / name, ROOT / "data" / name]


# -- meta.json ------------------------------------------------------------------------------------


class Field(NamedTuple):
    good: Callable[[object], bool]
    words: str  # what it has to be
    needed: bool = False


def whole(low: int, high: int, null: bool = False, needed: bool = False) -> Field:
    words = f"a whole number from {low:,} to {high:,}" + " or null" * null
    return Field(lambda v: (v is None and null) or _is_whole(v, low, high), words, needed)


def _is_whole(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _names(value: object) -> bool:
    """Whether these are names of files in the folder or below it."""
    return isinstance(value, list) and len(value) <= FILES and all(map(_inside, value))


def _inside(name: object) -> bool:
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    path = PurePath(name)
    return not path.is_absolute() and ".." not in path.parts


def _template(value: object) -> bool:
    from bonsai.tokenizers.chat import ChatTemplate  # takes a moment, and few data sets have one

    try:
        return value is None or bool(ChatTemplate.from_dict(value))
    except UserError:
        return False


TOP = {
    "format": whole(1, FORMAT),
    "name": Field(lambda v: isinstance(v, str), "text"),
    "dtype": Field(lambda v: isinstance(v, str) and v in IDS, "uint16 or uint32", True),
    "vocab_size": whole(1, LARGEST, needed=True),
    "eot": whole(0, LARGEST, null=True),
    "tokenizer": Field(lambda v: v is None or isinstance(v, dict), "an object or null"),
    "row_length": whole(1, MANY, null=True),
    "splits": Field(lambda v: isinstance(v, dict), "an object", True),
    "chat_template": Field(_template, "a template as in bonsai/tokenizers/chat.py"),
}
SPLIT = {
    "tokens": whole(0, MANY),
    "max_id": whole(0, LARGEST),
    "bytes": whole(0, MANY, null=True),
    "documents": whole(0, MANY),
    "sha256": Field(lambda v: isinstance(v, list) and all(isinstance(h, str) for h in v), "texts"),
    "files": Field(lambda v: bool(v) and _names(v), "a list of files in this folder", True),
    "mask_files": Field(lambda v: v is None or _names(v), "a list of files in this folder"),
}


def check_meta(meta: object) -> dict:
    """Returns `meta` if a meta.json may hold it. Otherwise raises ValueError, naming the field."""
    if not isinstance(meta, dict):
        raise ValueError(f"it is {_shown(meta)}, not an object")
    _check_fields(meta, TOP, "")
    if meta["vocab_size"] > IDS[meta["dtype"]]:
        raise ValueError(f"vocab_size {meta['vocab_size']:,} is too large for {meta['dtype']}")
    if meta.get("eot") is not None and meta["eot"] >= meta["vocab_size"]:
        raise ValueError(f"eot {meta['eot']:,} is outside the vocabulary of {meta['vocab_size']:,}")
    for name, split in meta["splits"].items():
        if not isinstance(split, dict):
            raise ValueError(f"splits.{name:.40} is {_shown(split)}, not an object")
        _check_fields(split, SPLIT, f"splits.{name:.40}.")
        if split.get("mask_files") and len(split["mask_files"]) != len(split["files"]):
            raise ValueError(f"splits.{name:.40} has not as many masks as files")
    return meta


def _check_fields(values: dict, fields: dict[str, Field], where: str) -> None:
    for name, field in fields.items():
        if name not in values:
            if field.needed:
                raise ValueError(f"{where}{name} is missing")
        elif not field.good(values[name]):
            raise ValueError(f"{where}{name} is {_shown(values[name])}, not {field.words}")


def _shown(value: object) -> str:
    kinds = {dict: "an object", list: "a list"}
    return kinds.get(type(value)) or f"{value!r:.40}"


def open_meta(folder: Path) -> tuple[dict, Path | None]:
    """What a data folder says about itself, in the form of meta.json, and the file that says it.

    Of a meta.pkl that names no tokenizer, `note` is a line that says why.
    """
    path = folder / "meta.json"
    if path.exists():
        return read_meta(path), path
    if (folder / "meta.json.tmp").exists():
        raise UserError(f"preparing {folder} was interrupted: run its prepare.py again")
    path = folder / META
    if path.exists():
        return read_nanogpt_meta(path), path
    return {}, None


def read_meta(path: Path) -> dict:
    text = read_text(path, limit=SETTINGS)
    try:
        meta = check_meta(json.loads(text))
        check_tokenizer(meta.get("tokenizer"))
    except (ValueError, RecursionError, UserError) as e:
        raise UserError(f"{path} is damaged ({e}): prepare the data again") from None
    return meta


def check_tokenizer(state: dict | None) -> None:
    """Raise UserError for what is no tokenizer: now, and not when a run prints its first sample."""
    if state is not None:
        with contextlib.suppress(tokenizers.MissingLibrary):  # training does not need it
            tokenizers.from_dict(state)
