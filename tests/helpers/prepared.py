"""Prepared data sets, read back and checked."""

import hashlib
import json
from pathlib import Path

import numpy as np

from bonsai.tokenizers import from_dict


def read(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """meta.json and the ids, after checking all that the one says of the others."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    ids = {}
    for name, split in meta["splits"].items():
        (file,) = split["files"]
        data = (folder / file).read_bytes()
        assert [hashlib.sha256(data).hexdigest()] == split["sha256"]
        ids[name] = np.frombuffer(data, np.dtype(meta["dtype"]).newbyteorder("<"))
        assert len(ids[name]) == split["tokens"]
        assert ids[name].max() == split["max_id"] < meta["vocab_size"]
    assert not list(folder.glob("*.tmp"))
    return meta, ids


def documents(folder: Path) -> dict[str, list[str]]:
    """The texts between end-of-text tokens, with their bytes and number checked."""
    meta, ids = read(folder)
    tokenizer = from_dict(meta["tokenizer"])
    texts = {}
    for name, split in ids.items():
        ends = np.flatnonzero(split == meta["eot"])
        assert ends[-1] == len(split) - 1
        parts = [part[part != meta["eot"]] for part in np.split(split, ends[:-1] + 1)]
        texts[name] = [tokenizer.decode(part) for part in parts]
        assert len(ends) == meta["splits"][name]["documents"]
        assert sum(len(t.encode()) for t in texts[name]) == meta["splits"][name]["bytes"]
    return texts


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*")) if folder.exists() else []
