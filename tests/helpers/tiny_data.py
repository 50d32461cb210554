"""Tiny data sets, of each kind that the programs read."""

import json
import pickle
from pathlib import Path

import numpy as np

CHARS = "\n abcdefghijklmnopqrstuvwxyz.,"
KINDS = ("meta", "nanogpt", "bare", "llmc", "shards", "rows")


def tiny_text(words: int, seed: int = 0) -> str:
    """Text with a structure that a tiny model learns in a few steps: few letters, few words."""
    rng = np.random.default_rng(seed)
    vocabulary = ["the", "tree", "is", "so", "tall", "it", "sees", "a", "sea", "of", "stars"]
    picked = rng.choice(vocabulary, words)
    ends = rng.choice([" ", " ", " ", ", ", ".\n"], words)
    return "".join(a + b for a, b in zip(picked, ends))


def char_ids(text: str) -> np.ndarray:
    return np.array([CHARS.index(c) for c in text], dtype=np.uint16)


def write_meta(folder: Path, splits: dict[str, np.ndarray], per_split=None, **changes) -> None:
    """A meta.json as the prepare scripts write it, for character data in one file per split.

    per_split: {split: {key: value}}; changes: keys of the whole. Both replace what stands here.
    """
    meta = {
        "format": 1,
        "name": folder.name,
        "dtype": "uint16",
        "vocab_size": len(CHARS),
        "eot": None,
        "tokenizer": {"type": "char", "chars": list(CHARS)},
        "row_length": None,
        "splits": {
            name: {
                "tokens": len(ids),
                "max_id": int(ids.max()),
                "bytes": len(ids),
                "documents": 1,
                "sha256": ["0" * 64],
                "files": [f"{name}.bin"],
                "mask_files": [],
            }
            for name, ids in splits.items()
        },
    }
    for name, change in (per_split or {}).items():
        meta["splits"][name].update(change)
    meta.update(changes)
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def make_dataset(folder: Path, kind: str = "meta", seed: int = 0) -> Path:
    """A prepared data set of some 6,000 tokens of characters.

    kind: meta (meta.json), nanogpt (meta.pkl), bare (neither: GPT-2's vocabulary), llmc (files
    with a header), shards (train in two files), rows (of 8 tokens, the first 4 are masked).
    """
    folder.mkdir(parents=True)
    train, val = char_ids(tiny_text(1500, seed)), char_ids(tiny_text(300, seed + 1))
    splits = {"train": train, "val": val}
    if kind == "rows":
        splits = {name: ids[: len(ids) // 8 * 8] for name, ids in splits.items()}
    for name, ids in splits.items():
        header = b""
        if kind == "llmc":
            head = np.zeros(256, dtype="<i4")
            head[:3] = 20240520, 1, len(ids)
            header = head.tobytes()
        (folder / f"{name}.bin").write_bytes(header + ids.astype("<u2").tobytes())
    if kind == "meta":
        write_meta(folder, splits)
    elif kind == "nanogpt":
        meta = {
            "vocab_size": len(CHARS),
            "itos": dict(enumerate(CHARS)),
            "stoi": {c: i for i, c in enumerate(CHARS)},
        }
        (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    elif kind == "shards":
        cut = len(train) // 3
        names = ["train_00000.bin", "train_00001.bin"]
        for name, part in zip(names, (train[:cut], train[cut:])):
            (folder / name).write_bytes(part.astype("<u2").tobytes())
        (folder / "train.bin").unlink()
        write_meta(folder, splits, {"train": {"files": names, "sha256": ["0" * 64] * 2}})
    elif kind == "rows":
        masks = {}
        for name, ids in splits.items():
            mask = (np.arange(len(ids)) % 8 >= 4).astype(np.uint8)
            (folder / f"{name}.mask.bin").write_bytes(mask.tobytes())
            masks[name] = {"mask_files": [f"{name}.mask.bin"]}
        write_meta(folder, splits, masks, row_length=8)
    return folder
