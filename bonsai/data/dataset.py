"""Prepared data read back: the folders of data sets, and mixtures of them.

A data set is a folder with `{train,val}.bin`, token ids that split.py reads, and `meta.json`, which
says everything else (bonsai/data/writer.py writes both). nanoGPT's folders work as they are: a
`meta.pkl` is read without executing anything, and neither file means GPT-2's byte-pair encoding.
"""

import math
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from bonsai import ROOT, tokenizers
from bonsai.data.meta import open_meta, places
from bonsai.data.split import Split
from bonsai.system.errors import UserError
from bonsai.system.values import did_you_mean
from bonsai.tokenizers import Tokenizer

GPT2_VOCAB = 50257


@dataclass
class Dataset:
    """One prepared folder."""

    name: str
    folder: Path
    splits: dict[str, Split]
    vocab_size: int | None  # None: not stated, and assumed to be GPT-2's
    tokenizer: dict | None  # Tokenizer.to_dict(); None without vocab_size: GPT-2's
    source: Path | None  # the file that says so: meta.json or meta.pkl
    weight: float = 1.0
    meta: dict = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        """Whether bits per byte make sense: not for rows of numbers, which have a vocab_size but no
        tokenizer, nor for masked text."""
        masked = any(split.mask_files for split in self.splits.values())
        return (self.tokenizer is not None or self.vocab_size is None) and not masked

    def split(self, name: str) -> Split:
        if name not in self.splits:
            raise UserError(f"{self.folder} has no {name}.bin")
        return self.splits[name]


def holds_data(folder: Path) -> bool:
    return (folder / "train.bin").exists() or (folder / "meta.json").exists()


def find_folder(dataset: str) -> Path:
    """The folder of a data set: data/NAME in the working directory, else in the repository, or a
    path. Raises UserError, which says what to run, if it is not there or not prepared."""
    tried = places(dataset)
    if "/" in dataset or "\\" in dataset:
        tried.append(Path(dataset))
    for folder in tried:
        if holds_data(folder):
            return folder
    for folder in tried:
        # the prepare.py of NAME may also write NAME_bpe
        beside = folder.with_name(folder.name.removesuffix("_bpe"))
        for script in (folder / "prepare.py", beside / "prepare.py"):
            if script.exists() and (script.parent == folder or "_bpe" in script.read_text("utf-8")):
                command = shlex.join(["python", str(script)])
                raise UserError(f"data set {dataset} is not prepared yet: run {command}")
    if holds_data(Path(dataset)):  # a name alone means one in data/
        raise UserError(f"no data set {dataset} in data/, but here: --dataset=./{dataset}")
    if any(folder.is_file() for folder in tried):
        raise UserError(f"dataset={dataset} is a file: name the folder that it is in")
    files = [f for d in ("data", ROOT / "data") for f in Path(d).glob("*/*")]
    known = {f.parent.name for f in files if f.name in ("prepare.py", "train.bin", "meta.json")}
    near = did_you_mean(dataset, known)
    there = f": there are {', '.join(sorted(known))}"
    if not known:  # the installed package, run in some other folder
        there = ": prepare one with the scripts in data/ of the repository, or give dataset=FOLDER"
    raise UserError(f"no data set {dataset} in data/{near or there}")


def is_folder(spec: str) -> bool:
    """Whether `spec` is the path of one folder, in which a comma or a colon is part of the name."""
    return ("/" in spec or "\\" in spec) and os.path.isdir(spec)


def open_dataset(name: str, weight: float = 1.0) -> Dataset:
    """Open a data set by its name or path. Raises UserError for what is missing or damaged."""
    folder = find_folder(name)
    meta, source = open_meta(folder)
    splits = {}
    for split in ("train", "val"):
        info = meta.get("splits", {}).get(split, {"files": [f"{split}.bin"]})
        files = [folder / f for f in info["files"]]
        masks = [folder / f for f in info.get("mask_files") or []]
        if not all(f.exists() for f in files + masks):
            if split in meta.get("splits", {}):
                lost = next(f for f in files + masks if not f.exists())
                raise UserError(f"{lost} is missing: prepare the data again")
            continue
        dtype, row_length = meta.get("dtype", "uint16"), meta.get("row_length")
        data = Split(files, dtype, masks, row_length, info.get("bytes"), info.get("max_id"))
        if "tokens" in info and info["tokens"] != len(data):
            raise UserError(
                f"{files[0]} has {len(data):,} tokens, {source} says {info['tokens']:,}: "
                "prepare the data again"
            )
        chars = (meta.get("tokenizer") or {}).get("chars")
        if data.bytes is None and chars and all(c.isascii() for c in chars):
            data.bytes = len(data)  # nanoGPT's character data: one byte each
        splits[split] = data
    if "train" not in splits and "val" not in splits:
        raise UserError(f"{folder} has no train.bin: prepare the data again")
    vocab = meta.get("vocab_size")
    return Dataset(name, folder, splits, vocab, meta.get("tokenizer"), source, weight, meta)


@dataclass
class Mixture:
    """One data set or several, drawn by weight: 'a' or 'a:0.7,b:0.3', with one tokenizer."""

    parts: list[Dataset]

    @classmethod
    def open(cls, spec: str) -> "Mixture":
        parts = []
        for item in [spec] if is_folder(spec) else filter(None, spec.split(",")):
            item = item.strip()
            name, _, weight = (item, "", "") if is_folder(item) else item.partition(":")
            try:
                share = float(weight or 1)
            except ValueError:
                raise UserError(f"{weight!r} in {spec} is no weight; as in a:0.7,b:0.3") from None
            parts.append(open_dataset(name, share))
        if not parts or any(not 0 < p.weight < math.inf for p in parts):
            raise UserError(f"dataset={spec}: give names and weights above 0, as in a:0.7,b:0.3")
        total = sum(p.weight for p in parts)
        for part in parts:
            part.weight /= total
            if part.tokenizer != parts[0].tokenizer or part.vocab_size != parts[0].vocab_size:
                raise UserError(f"{parts[0].name} and {part.name} have different tokenizers")
        first, *others = [p for p in parts if p.meta.get("chat_template")] or parts
        for part in others:  # a checkpoint keeps one, by which the model is asked
            if part.meta.get("chat_template") not in (None, first.meta.get("chat_template")):
                raise UserError(
                    f"{first.name} and {part.name} have different chat templates: prepare both "
                    "with the same --template"
                )
        return cls(parts)

    @property
    def vocab_size(self) -> int | None:
        return self.parts[0].vocab_size

    @property
    def tokenizer(self) -> dict | None:
        return self.parts[0].tokenizer

    @property
    def chat_template(self) -> dict | None:
        """The one in a meta.json of the data sets; see bonsai/tokenizers/chat.py."""
        return next(
            (p.meta["chat_template"] for p in self.parts if "chat_template" in p.meta), None
        )

    @property
    def row_length(self) -> int | None:
        """Tokens of a row, if all data sets have rows, and of one length."""
        lengths = {part.meta.get("row_length") for part in self.parts}
        return lengths.pop() if len(lengths) == 1 else None

    @property
    def model_vocab_size(self) -> int:
        """The vocabulary size of a new model: a large one is rounded up to a multiple of 64, with
        which products are faster.

        nanoGPT's folders get the size that meta.pkl says, and 50304 without it.
        """
        size = self.vocab_size or GPT2_VOCAB
        source = self.parts[0].source
        exact = size < 1000 or (source is not None and source.suffix == ".pkl")
        return size if exact else -(-size // 64) * 64

    def check_tokenizer(self, expected: dict | None, source: str, insist: bool = False) -> None:
        """Raise UserError if the data's tokenizer is not the model's; insist: don't.

        expected: the model's Tokenizer.to_dict(), None if it is not known. source: where the model
        is from.
        """
        assumed = None if self.parts[0].source else {"type": "gpt2"}  # without a meta file
        theirs = self.tokenizer or assumed
        if insist or not expected or not theirs or expected == theirs:
            return
        tables = {"char": ("chars", "characters"), "table": ("tokens", "texts")}
        names = []
        for t in (expected, theirs):
            key, words = tables.get(t["type"], ("", ""))
            names.append(f"{t['type']}, {len(t[key])} {words}" if key else t["type"])
        raise UserError(
            f"{source} has another tokenizer ({names[0]}) than data set {self.parts[0].name} "
            f"({names[1]}): choose another --dataset, or prepare this one with the model's "
            "tokenizer; --other_tokenizer=True goes on all the same"
        )

    def fingerprints(self) -> dict[str, str]:
        """`name/split` -> text that tells these data from others: the checksums in meta.json, or
        else the size; and a checksum of samples for what meta.json has no checksum of, such as
        masks."""
        fingerprints = {}
        for part in self.parts:
            for name, split in part.splits.items():
                sums = part.meta.get("splits", {}).get(name, {}).get("sha256")
                text = " ".join(sums) if sums else f"{len(split)} tokens"
                if not sums or split.mask_files:
                    text += f", samples {split.sample_checksum}"
                fingerprints[f"{part.name}/{name}"] = text
        return fingerprints

    def samples(self) -> dict[str, str]:
        """`name/split` -> its length and a checksum of samples, both from the files themselves: a
        copy on another machine may be incomplete, whatever its meta.json says."""
        return {
            f"{part.name}/{name}": f"{len(split)} tokens, samples {split.sample_checksum}"
            for part in self.parts
            for name, split in part.splits.items()
        }

    def changed_since(self, before: dict) -> list[str]:
        """The splits whose fingerprints differ from those in `before`. Older checkpoints have them
        without samples."""
        now = self.fingerprints()
        known = {name: was for name, was in before.items() if name in now}
        return [n for n, was in known.items() if was not in (now[n], now[n].split(", ")[0])]

    def bytes_per_token(self, split: str) -> float | None:
        """Mean bytes of text per token of a split, by weight; None if any part does not know."""
        means = [p.split(split).bytes_per_token for p in self.parts]
        return None if None in means else sum(p.weight * m for p, m in zip(self.parts, means))

    @property
    def notes(self) -> list[str]:
        """Lines that name a meta.pkl of which no text can be made."""
        return [part.meta["note"] for part in self.parts if part.meta.get("note")]

    def without_bytes(self, split: str) -> str:
        """A line that names a data set of text for which the number of bytes is not known; "" if
        there is none."""
        for part in self.parts:
            if part.is_text and part.split(split).bytes_per_token is None:
                where = part.source or part.folder
                what = f"{where} does not say how many bytes of text it is"
                return f"bits per byte are not known: {what}"
        return ""

    def check(self, block_size: int, vocab_size: int, splits=("train", "val")) -> None:
        """Raise UserError where a split is too short for a window, or an id is not below
        vocab_size: now, if meta.json states the largest one, else when a window with it is read."""
        for part in self.parts:
            for name in splits:
                split = part.split(name)
                split.limit = vocab_size
                row = split.row_length
                if row and block_size + 1 < row:
                    raise UserError(
                        f"{part.folder} has rows of {row} tokens, and a window of block_size "
                        f"{block_size} + 1 ends within them: set block_size={row - 1}, or prepare "
                        f"the data again for block_size {block_size}"
                    )
                if len(split) < (row or block_size + 1):
                    raise UserError(
                        f"{part.folder / name}.bin has {len(split):,} tokens, too few for a window "
                        f"of block_size {block_size} + 1: lower block_size or prepare more text"
                    )
                if split.max_id is not None and split.max_id >= vocab_size:
                    raise UserError(
                        f"{part.folder / name}.bin has ids up to {split.max_id}, the model's "
                        f"vocabulary ends at {vocab_size - 1}: wrong data set for this model?"
                    )


def tokenizer_in_training(state: dict | None, vocab_size: int) -> Tokenizer | None:
    """The tokenizer of the data of a run. state: Tokenizer.to_dict(); None if the data name none,
    as nanoGPT's need not: then it is GPT-2's. Returns None if the vocabulary is too small for that,
    as the data are numbers that are no text."""
    if state is None and vocab_size < GPT2_VOCAB:
        return None
    return tokenizers.from_dict(state or {"type": "gpt2"})
