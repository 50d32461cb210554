"""Writes a data set: {train,val}.bin, masks, and last the meta.json that makes them a data set.

    with Writer(folder, tokenizer=tokenizer) as writer:
        for text in texts:
            writer.add("train", tokenizer.encode(text), text_bytes=len(text.encode()))
        ...
        meta = writer.finish()

Whatever happens meanwhile (an error, Ctrl-C, SIGTERM, SIGHUP, a full disk, kill -9), the folder
never looks complete when it is not:

- An earlier data set in the folder stays, and can be used, until all of the new one is on the disk.
  Then `finish` removes it, its meta.json first, and renames the new files, meta.json last. From the
  first `add` until then a meta.json.tmp in the folder says that this is not finished.
- What a user has added to the old meta.json, such as a chat_template, goes into the new one.
- Tokens go to train.bin.tmp and val.bin.tmp. If the `with` block is left without `finish`, they are
  removed. kill -9 leaves .tmp files behind, which the next run removes.
"""

import contextlib
import functools
import hashlib
import json
import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from bonsai import ROOT
from bonsai.data.meta import FORMAT, dtype_of
from bonsai.files.access import SETTINGS, lock_file, writing
from bonsai.files.atomic import sync_folder, undone_by_signals
from bonsai.files.jsonfile import finite
from bonsai.files.textfile import read_text
from bonsai.system.errors import UserError, end_if_told, why_no_folder
from bonsai.tokenizers import Tokenizer
from bonsai.tokenizers.nanogpt import META

FIELDS = ("format", "name", "dtype", "vocab_size", "eot", "tokenizer", "row_length", "splits")
BUFFER = 1 << 20  # bytes held back per file before they go to the disk


class Writer:
    """Streams token ids into a data set folder, in bounded memory; a context manager.

    tokenizer, vocab_size: give one of them; vocab_size alone for data that are not text.
    row_length: the data are rows of so many tokens; each `add` brings whole rows.
    masks: each `add` brings a mask, too: 0 or 1 per token; 0 marks a token that is only context.
    chat_template: how its conversations are written (bonsai/tokenizers/chat.py).
    shard_tokens: cut each split into files of so many tokens, train_00000.bin, ...; 0: one file.
    splits: their names; each must have tokens in the end.
    """

    def __init__(
        self,
        folder: str | Path,
        tokenizer: Tokenizer | None = None,
        *,
        vocab_size: int | None = None,
        name: str | None = None,
        row_length: int | None = None,
        masks: bool = False,
        chat_template: dict | None = None,
        shard_tokens: int = 0,
        splits: Sequence[str] = ("train", "val"),
    ):
        self.folder = Path(folder)
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size or tokenizer.vocab_size
        self.eot = tokenizer.eot if tokenizer else None
        self.name = name or self.folder.resolve().name
        self.row_length = row_length
        self.masks = masks
        self.chat_template = chat_template
        if shard_tokens < 0 or (row_length and shard_tokens % row_length):
            raise UserError(
                f"shard_tokens is {shard_tokens}: give a whole number of rows of {row_length or 1}"
            )
        self.shard_tokens = shard_tokens
        self.dtype = dtype_of(self.vocab_size)
        self._names = tuple(splits)
        self._started = False  # by the first add
        self._replacing = False  # the old data set is going
        self._splits: dict[str, _Split] = {}
        self._meta_tmp = self.folder / "meta.json.tmp"
        self._renamed: list[Path] = []

    # -- the with block ---------------------------------------------------------------------------

    def __enter__(self) -> "Writer":
        self._made_folder = not self.folder.exists()
        with contextlib.ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._take_lock(stack)
            except OSError as e:
                why = f"{why_no_folder(e)}: write elsewhere with --out=FOLDER"
                raise UserError(f"cannot write into {self.folder}: {why}") from None
            stack.enter_context(undone_by_signals(every=True))
            self._at_end = stack.pop_all()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._at_end:
            self._abort()  # does nothing after finish

    def _take_lock(self, at_end: contextlib.ExitStack) -> None:
        """Lock the folder itself: this leaves no file behind, and ends with the process."""
        if os.name != "posix":  # on Windows a folder cannot be opened
            return
        fd = os.open(self.folder, os.O_RDONLY)
        at_end.callback(os.close, fd)
        if lock_file(fd) is False:
            raise UserError(
                f"another prepare is writing into {self.folder}: wait for it or stop it"
            )

    # -- writing ----------------------------------------------------------------------------------

    def add(
        self,
        split: str,
        ids: Sequence[int] | np.ndarray,
        *,
        text_bytes: int | None = None,
        documents: int = 1,
        mask: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        """Append `ids` (n,) to a split. They stand for `text_bytes` bytes of UTF-8 text (default:
        what the tokenizer decodes them to, without special tokens) and end `documents` documents.
        mask (n,), with masks=True: 0 and 1; then bits per byte are not known, and bytes are not
        counted."""
        end_if_told()
        if not self._started:
            self._start()
        part = self._splits[split]
        ids = np.asarray(ids)
        if ids.size:
            low = 0 if ids.dtype.kind == "u" else int(ids.min())
            high = int(ids.max())
            if low < 0 or high >= self.vocab_size:
                raise UserError(
                    f"token id {low if low < 0 else high} is outside the vocabulary of "
                    f"{self.vocab_size} (0 to {self.vocab_size - 1})"
                )
            if self.row_length and ids.size % self.row_length:
                raise UserError(f"{ids.size} tokens are not whole rows of {self.row_length} tokens")
            if (mask is not None) != self.masks:
                raise UserError("masks come with every add or with none: see Writer(masks=...)")
            if mask is not None:
                mask = np.asarray(mask)
                if mask.shape != ids.shape or ((mask != 0) & (mask != 1)).any():
                    raise UserError(f"a mask is one 0 or 1 for each of its {ids.size} tokens")
                mask = mask.astype(np.uint8)
            part.write(ids.astype(self.dtype, copy=False), mask)
            part.max_id = max(part.max_id, high)
            if text_bytes is None and self.tokenizer and not self.masks:
                text_bytes = int(self._byte_counts[ids].sum())
        part.text_bytes += text_bytes or 0
        part.documents += documents

    def forget_bytes(self) -> None:
        """Leave the numbers of bytes out, so that bits per byte are not computed."""
        for part in self._splits.values():
            part.text_bytes = 0

    @functools.cached_property
    def _byte_counts(self) -> np.ndarray:
        """How many bytes of text each id stands for, (vocab_size,)."""
        decode, tokenizer = self.tokenizer.decode_bytes, self.tokenizer
        special = {tokenizer.eot, *getattr(tokenizer, "special_tokens", {}).values()}
        before = [next(i for i in range(tokenizer.vocab_size) if i not in special)]
        start = len(decode(before))  # some tokenizers drop the first blank of a text
        counts = np.zeros(self.vocab_size, np.int64)
        for i in range(tokenizer.vocab_size):
            counts[i] = 0 if i in special else len(decode([*before, i])) - start
        return counts

    def _start(self) -> None:
        """Mark the folder as unfinished, remove what a kill has left, open the new files."""
        self._kept = added_by_hand(self.folder)
        if self.chat_template is not None:
            self._kept.pop("chat_template", None)
        with disk_errors(self._meta_tmp):
            self._started = True
            self._meta_tmp.write_text(json.dumps(self._kept) if self._kept else "", "utf-8")
            sync_folder(self.folder)  # the mark must be on the disk before anything is removed
            self._remove(".tmp")
            for name in self._names:
                self._splits[name] = _Split(self.folder, name, self.masks, self.shard_tokens)

    def _remove(self, ending: str = "") -> None:
        """Remove the files of a data set from the folder, or those with `ending` after their names;
        meta.json.tmp stays."""
        patterns = [META]
        for name in self._names:  # with a number: a split that was cut into several files
            patterns += [f"{name}.bin", f"{name}.mask.bin", f"{name}_[0-9]*.bin"]
        for pattern in patterns:
            for path in self.folder.glob(pattern + ending):
                path.unlink(missing_ok=True)

    # -- the end ----------------------------------------------------------------------------------

    def finish(self) -> dict:
        """Put everything in place, meta.json last; returns its content.

        Raises UserError, and leaves nothing behind, if a split is empty."""
        for name in self._names:
            if not self._started or self._splits[name].count == 0:
                raise UserError(
                    f"the {name} split of {self.name} has no tokens: give more text, or documents "
                    f"for it"
                )
        meta = {
            "format": FORMAT,
            "name": self.name,
            "dtype": {2: "uint16", 4: "uint32"}[self.dtype.itemsize],
            "vocab_size": self.vocab_size,
            "eot": self.eot,
            "tokenizer": self.tokenizer.to_dict() if self.tokenizer else None,
            "row_length": self.row_length,
            "splits": {name: part.meta() for name, part in self._splits.items()},
            **self._kept,
        }
        if self.chat_template is not None:
            meta["chat_template"] = self.chat_template
        meta = finite(meta)  # a name may have bytes that are not UTF-8
        files = [file for part in self._splits.values() for file in part.files()]
        with disk_errors(self.folder):
            for file in files:
                file.close()
            theirs = self.tokenizer.nanogpt_meta() if self.tokenizer else None
            if theirs is not None:  # so that nanoGPT can use the folder too
                pkl = _File(self.folder / META)
                pkl.write(pickle.dumps(theirs))
                pkl.close()
                files.append(pkl)
            with open(self._meta_tmp, "w", encoding="utf-8") as f:
                json.dump(meta, f, ensure_ascii=False, indent=1)
                f.write("\n")
                f.flush()
                os.fsync(f.fileno())
            end_if_told()
            self._replacing = True
            (self.folder / "meta.json").unlink(missing_ok=True)
            sync_folder(self.folder)  # from here on the folder holds no data set
            self._remove()
            for file in files:
                self._renamed.append(file.path)
                os.replace(file.tmp, file.path)
            sync_folder(self.folder)
            os.replace(self._meta_tmp, self.folder / "meta.json")
            sync_folder(self.folder)
            self._started = False  # complete: nothing for _abort to remove
        return meta

    def _abort(self) -> None:
        """Remove what an unfinished run has written."""
        if self._started:
            if self._replacing:
                (self.folder / "meta.json").unlink(missing_ok=True)  # ours, renamed a moment ago
            for part in self._splits.values():
                for file in part.files():
                    file.discard()
            for path in (*self._renamed, self.folder / f"{META}.tmp"):
                path.unlink(missing_ok=True)
            if not self._kept or (self.folder / "meta.json").exists():
                self._meta_tmp.unlink(missing_ok=True)  # last, when nothing unfinished is left
            self._started = False
        if self._made_folder:
            with contextlib.suppress(OSError):  # not empty: a finished data set, or not ours
                self.folder.rmdir()


def added_by_hand(folder: Path) -> dict:
    """What a user has added to the meta.json of a data set, such as a chat_template. It is kept
    when the data are prepared again; during that, and if it fails, it is in meta.json.tmp."""
    for name in ("meta.json", "meta.json.tmp"):
        with contextlib.suppress(UserError, ValueError, RecursionError):
            meta = json.loads(read_text(folder / name, limit=SETTINGS))
            if isinstance(meta, dict):
                return {key: value for key, value in meta.items() if key not in FIELDS}
    return {}


class _Split:
    """The counts and files of one split."""

    def __init__(self, folder: Path, name: str, masks: bool, shard_tokens: int):
        self.folder, self.name, self.masks, self.shard_tokens = folder, name, masks, shard_tokens
        self.tokens: list[_File] = []
        self.mask: list[_File] = []
        self.count = self.text_bytes = self.documents = self.max_id = 0
        self._open()

    def _open(self) -> None:
        name = f"{self.name}_{len(self.tokens):05}" if self.shard_tokens else self.name
        self.tokens.append(_File(self.folder / f"{name}.bin"))
        if self.masks:
            self.mask.append(_File(self.folder / f"{name}.mask.bin"))
        self.room = self.shard_tokens  # tokens that this file still takes; 0 with one file

    def write(self, ids: np.ndarray, mask: np.ndarray | None) -> None:
        """Append ids (n,) and their mask (n,), going on in new files as they fill."""
        start = 0
        while start < len(ids):
            if self.shard_tokens and not self.room:
                self.tokens[-1].close()
                if self.masks:
                    self.mask[-1].close()
                self._open()
            end = min(start + self.room, len(ids)) if self.shard_tokens else len(ids)
            self.tokens[-1].write(ids[start:end])
            if mask is not None:
                self.mask[-1].write(mask[start:end])
            self.room -= end - start
            start = end
        self.count += len(ids)

    def files(self) -> list["_File"]:
        return [*self.tokens, *self.mask]

    def meta(self) -> dict:
        return {
            "tokens": self.count,
            "max_id": self.max_id,
            "bytes": self.text_bytes,
            "documents": self.documents,
            "sha256": [file.sha256.hexdigest() for file in self.tokens],
            "files": [file.path.name for file in self.tokens],
            "mask_files": [file.path.name for file in self.mask],
        }


class _File:
    """A file that is being written, as `path`.tmp, and hashed."""

    def __init__(self, path: Path):
        self.path = path
        self.tmp = path.with_name(path.name + ".tmp")
        self.sha256 = hashlib.sha256()
        with disk_errors(self.tmp):
            self._file = open(self.tmp, "wb", buffering=BUFFER)  # noqa: SIM115 - closed in close

    def write(self, data: np.ndarray | bytes) -> None:
        with disk_errors(self.tmp):
            self._file.write(data)
        self.sha256.update(data)

    def close(self) -> None:
        if self._file.closed:
            return
        with disk_errors(self.tmp):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def discard(self) -> None:
        with contextlib.suppress(OSError):  # closing flushes, and the disk may be full
            self._file.close()
        self.tmp.unlink(missing_ok=True)


def named_folder(name: str) -> Path:
    """data/<name> in the repository. Raises UserError for a name that no data set can have."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
        raise UserError(
            f"name is {name!r}: name the data set with --name=, in a-z, A-Z, 0-9, _ - and ."
        )
    return ROOT / "data" / name


def disk_errors(path: Path):
    """A context that turns errors of the disk into one line for the user."""
    return writing(path, hint=" with --out=FOLDER")
