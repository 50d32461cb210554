"""The tokens of one split on disk: flat little-endian ids, in one file or several, and their masks.

Files that begin as llm.c's and modded-nanogpt's do are read past their header.
"""

import bisect
import functools
import hashlib
import itertools
import os
import threading
import weakref
from pathlib import Path

import numpy as np

from bonsai.files.access import allow_open_files, file_size, reading
from bonsai.system.errors import UserError

LLMC_MAGIC, LLMC_HEADER = 20240520, 1024  # llm.c and modded-nanogpt: 256 int32 before the tokens


class OpenFile:
    """A file that is read in pieces and stays open, so that a new file of the same name does not
    replace it.

    Unlike a memory map, it leaves no pages in this process's resident memory, and if the file is
    overwritten in place, reading raises an error instead of killing the process.

    Threads and forked processes (a DataLoader's workers) share the descriptor, and with it the
    place in the file: reads say where they begin, and do not move it. A copy, also one that is
    sent to a spawned process, opens the file anew.
    """

    def __init__(self, path: Path):
        self.path = path
        with reading(path):
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, fd)
        self.fd, self.state = fd, self._state(fd)
        self.lock = threading.Lock()  # for systems without pread, which do not fork either

    def __getstate__(self) -> tuple[Path, tuple[int, int]]:
        return self.path, self.state

    def __setstate__(self, saved: tuple[Path, tuple[int, int]]) -> None:
        """Raises UserError if the file is another by now."""
        path, state = saved
        self.__init__(path)
        if self.state != state:
            raise self._changed()

    @staticmethod
    def _state(fd: int) -> tuple[int, int]:
        status = os.fstat(fd)
        return status.st_size, status.st_mtime_ns

    def _changed(self) -> UserError:
        return UserError(
            f"{self.path} was changed while it was being read: was the data set prepared "
            "again? Prepare it as it was, or begin a new run"
        )

    def _read_at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset` on."""
        if hasattr(os, "pread"):
            return os.pread(self.fd, count, offset)
        with self.lock:
            os.lseek(self.fd, offset, os.SEEK_SET)
            return os.read(self.fd, count)

    def read(self, offset: int, count: int, dtype: np.dtype) -> np.ndarray:
        """`count` numbers, beginning at byte `offset`. Raises UserError if the file has been
        written to since it was opened."""
        data = np.empty(count, dtype=dtype)
        left, same = memoryview(data).cast("B"), self._state(self.fd) == self.state
        while same and len(left):
            piece = self._read_at(offset + data.nbytes - len(left), min(len(left), 2**30))
            left[: len(piece)] = piece
            left, same = left[len(piece) :], bool(piece)
        if not same:
            raise self._changed()
        return data


class Split:
    """The tokens of one split, in one file or several, which stay open."""

    def __init__(
        self,
        files: list[Path],
        dtype: str = "uint16",
        mask_files: list[Path] = (),
        row_length: int | None = None,
        bytes: int | None = None,
        max_id: int | None = None,
    ):
        self.files, self.mask_files, self.row_length = list(files), list(mask_files), row_length
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.bytes = bytes  # of the text that the tokens stand for; None: not known
        self.max_id = max_id  # the largest id; None: not known
        self.limit = 0  # ids must be below it; 0: not known yet, see Mixture.check
        for file in (*self.files, *self.mask_files):
            file_size(file)  # that they are files
        self.headers = [header_bytes(f) for f in self.files]
        self.sizes = [self._count(f, h) for f, h in zip(self.files, self.headers)]
        self.ends = list(itertools.accumulate(self.sizes))
        allow_open_files(len(self.files) + len(self.mask_files))
        self.opened = [OpenFile(f) for f in self.files]
        self.opened_masks = [OpenFile(f) for f in self.mask_files]
        for mask, size in zip(self.mask_files, self.sizes):
            if file_size(mask) != size:
                raise UserError(f"{mask} has {file_size(mask):,} entries for {size:,} tokens")

    def _count(self, path: Path, header: int) -> int:
        size = file_size(path) - header
        if size % self.dtype.itemsize:
            raise UserError(
                f"{path} is not a whole number of {self.dtype.itemsize}-byte tokens ({size:,} "
                "bytes): it is damaged or of another format; prepare the data again"
            )
        return size // self.dtype.itemsize

    def __len__(self) -> int:
        return self.ends[-1]

    @property
    def bytes_per_token(self) -> float | None:
        """Mean bytes of text per token. None if it is not known, or if there are masks: masked
        tokens have bytes but no loss."""
        return self.bytes / len(self) if self.bytes and not self.mask_files else None

    def read(self, start: int, count: int, masks: bool = False) -> np.ndarray:
        """Tokens (or mask entries) start ... start + count - 1, across file borders."""
        parts, files = [], self.opened_masks if masks else self.opened
        if not count:  # of a split that has none
            return np.empty(0, np.uint8 if masks else self.dtype)
        # the first of them by bisection: there may be a thousand files, and this is done per window
        number, stop = bisect.bisect_right(self.ends, start), start + count
        while start < stop and number < len(files):
            end = self.ends[number]
            first, last = start - (end - self.sizes[number]), min(stop, end)
            dtype, skip = (np.dtype(np.uint8), 0) if masks else (self.dtype, self.headers[number])
            parts.append(files[number].read(skip + first * dtype.itemsize, last - start, dtype))
            start, number = last, number + 1
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    @functools.cached_property
    def sample_checksum(self) -> str:
        """A checksum of tokens and masks at up to 64 places. Other data of the same length nearly
        always have another one, and a large file need not be read whole."""
        digest = hashlib.blake2b(digest_size=8)
        places = np.linspace(0, max(len(self) - 4096, 0), 64).astype(np.int64)
        for start in np.unique(places).tolist():
            count = min(4096, len(self) - start)
            digest.update(self.read(start, count).tobytes())
            if self.mask_files:
                digest.update(self.read(start, count, masks=True).tobytes())
        return digest.hexdigest()

    def windows(self, starts: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, each (len(starts), T) int64, of the windows that begin at `starts`.

        The targets are the inputs one token later: targets[:, t] = inputs[:, t + 1]. Targets beyond
        the end of the row or of the split, and those whose mask is 0, are -1.
        """
        ids = np.zeros((len(starts), T + 1), dtype=np.int64)
        keep = np.zeros((len(starts), T + 1), dtype=bool)
        for i, (start, count) in enumerate(zip(starts.tolist(), self._sizes(starts, T).tolist())):
            ids[i, :count] = self.read(start, count)
            keep[i, :count] = self.read(start, count, masks=True) if self.mask_files else True
        self._check_ids(ids)
        return ids[:, :-1], np.where(keep[:, 1:], ids[:, 1:], -1)

    def _check_ids(self, ids: np.ndarray) -> None:
        """Raise UserError for an id that is too large: meta.json may not say the largest, or may
        be wrong about it."""
        if self.limit and ids.size and (top := int(ids.max())) >= self.limit:
            raise UserError(
                f"{self.files[0]}: the data hold the id {top}, the model's vocabulary ends at "
                f"{self.limit - 1}: give the data a meta.json, or set vocab_size"
            )

    def targets(self, starts: np.ndarray, T: int) -> int:
        """How many targets the windows that begin at `starts` have together."""
        counts = self._sizes(starts, T) - 1
        if self.mask_files:
            places = zip(starts.tolist(), counts.tolist())
            kept = (self.read(start + 1, count, masks=True) for start, count in places)
            return sum(int(np.count_nonzero(mask)) for mask in kept)
        return int(counts.sum())

    def _sizes(self, starts: np.ndarray, T: int) -> np.ndarray:
        """How many tokens the windows that begin at `starts` have: T + 1 or, where the split or, in
        data of rows, the row ends before that, fewer."""
        longest = min(T + 1, self.row_length) if self.row_length else T + 1
        return np.minimum(longest, len(self) - starts)

    def eval_starts(self, T: int, count: int = 0) -> np.ndarray:
        """Where the windows of an evaluation begin: all that tile the split, or `count` of them,
        spread evenly.

        They are the same each time, so that evaluations can be compared. In data of rows a window
        begins where a row does.
        """
        stride = self.row_length or T
        total = len(range(0, len(self) - 1, stride))
        if 0 < count < total:  # not chosen from an array of all: in 10B tokens it takes gigabytes
            return np.linspace(0, total - 1, count).round().astype(np.int64) * stride
        return np.arange(0, len(self) - 1, stride)


def header_bytes(path: Path) -> int:
    """Length of the llm.c-style header at the start of a file: 1024 bytes, or 0 without one."""
    with reading(path), open(path, "rb") as f:
        head = f.read(LLMC_HEADER)
    if len(head) < LLMC_HEADER:
        return 0
    head = np.frombuffer(head, dtype="<i4")
    if head[0] != LLMC_MAGIC:
        return 0
    tokens = (path.stat().st_size - LLMC_HEADER) // 2
    if head[2] != tokens:
        raise UserError(f"{path}: its header promises {head[2]:,} tokens, the file has {tokens:,}")
    return LLMC_HEADER
