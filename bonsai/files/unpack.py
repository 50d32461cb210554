"""A file's content, decompressed if its name ends with .gz, .xz or .zst.

A kilobyte can unpack to a terabyte. So files are read in blocks, and one that unpacks to more than
FREE bytes and more than EXPANSION times its size is refused. English text is compressed to a third
of its size, lists and logs to a thirtieth, zeros to a thousandth.
"""

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bonsai.system.errors import UserError

EXPANSION = 200
FREE = 256 << 20
BLOCK = 1 << 18  # bytes that are read at a time


class Unpacked:
    """A file whose reads return unpacked bytes; `position` is the position in the packed file."""

    def __init__(self, path: Path, raw: BinaryIO, size: int):
        self.path, self.raw, self.size = path, raw, size
        self.count = 0  # unpacked bytes that have been read

    @property
    def position(self) -> int:
        return self.raw.tell()

    def read(self, count: int) -> bytes:
        data = self._read(count)
        self.count += len(data)
        check_expansion(self.path, self.size, self.count)
        return data

    def _read(self, count: int) -> bytes:
        return self.raw.read(count)

    def close(self) -> None:
        pass


class _Gzip(Unpacked):
    def __init__(self, path: Path, raw: BinaryIO, size: int):
        super().__init__(path, raw, size)
        self._file = gzip.GzipFile(fileobj=raw, mode="rb")

    def _read(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except EOFError:
            raise damaged(self.path, "it is cut short") from None
        except (zlib.error, gzip.BadGzipFile) as e:
            raise damaged(self.path, f"not valid gzip ({e})") from None

    def close(self) -> None:
        self._file.close()


class _Xz(Unpacked):
    """One or more xz streams in a row. A stream that needs more than MEMORY bytes is refused."""

    MEMORY = 256 << 20  # a file of `xz -9` needs 65 MiB

    def __init__(self, path: Path, raw: BinaryIO, size: int):
        super().__init__(path, raw, size)
        try:
            import lzma  # some builds of Python lack it
        except ImportError:
            raise UserError(f"{path}: this Python cannot read .xz files: unpack it") from None
        self._lzma, self._stream = lzma, lzma.LZMADecompressor(memlimit=self.MEMORY)

    def _read(self, count: int) -> bytes:
        try:
            while True:
                packed = b""
                if self._stream.eof:
                    packed = (self._stream.unused_data or self.raw.read(BLOCK)).lstrip(b"\0")
                    if not packed:
                        return b""
                    self._stream = self._lzma.LZMADecompressor(memlimit=self.MEMORY)
                elif self._stream.needs_input and not (packed := self.raw.read(BLOCK)):
                    raise damaged(self.path, "it is cut short")
                if data := self._stream.decompress(packed, count):
                    return data
        except self._lzma.LZMAError as e:
            raise damaged(self.path, f"not valid xz ({e})") from None


class _Zstd(Unpacked):
    """Read by pyarrow, which refuses frames with a window of more than 128 MB."""

    def __init__(self, path: Path, raw: BinaryIO, size: int):
        super().__init__(path, raw, size)
        self._pa = pyarrow(".zst")
        self._file = self._pa.CompressedInputStream(raw, "zstd")

    def _read(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except MemoryError:  # pyarrow's is also an ArrowException
            raise
        except (OSError, self._pa.ArrowException) as e:
            raise damaged(self.path, f"cut short or not valid zstd ({e})") from None

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def unpacked(path: Path, size: int) -> Iterator[Unpacked]:
    """Open a file of `size` bytes. Raises UserError, which names the file, if it is damaged or
    unpacks to too much."""
    kind = {".gz": _Gzip, ".xz": _Xz, ".zst": _Zstd}.get(path.suffix.lower(), Unpacked)
    with open(path, "rb", buffering=0) as raw, contextlib.closing(kind(path, raw, size)) as file:
        yield file


def lines(file: Unpacked, longest: int) -> Iterator[bytes]:
    """The lines with their line ends. Raises UserError for a line of more than `longest` bytes."""
    parts: list[bytes] = []  # of a line that continues in the next block
    length = 0
    while block := file.read(BLOCK):
        *whole, end = block.split(b"\n")
        for line in whole:
            yield b"".join([*parts, line, b"\n"])
            parts, length = [], 0
        parts.append(end)
        length += len(end)
        if length > longest:
            raise UserError(f"{file.path} has a line of more than {longest >> 20} MB")
    if length:
        yield b"".join(parts)


def check_expansion(path: Path, size: int, count: int) -> None:
    """Raises UserError if `count` unpacked bytes are too many for a file of `size` bytes."""
    if count > max(FREE, EXPANSION * size):
        raise UserError(
            f"{path} unpacks to more than {EXPANSION} times its {size:,} bytes: if that is right, "
            f"unpack it and give the unpacked file"
        )


def damaged(path: Path, why: str) -> UserError:
    return UserError(f"cannot read {path}: {why}; copy or download it again")


def pyarrow(kind: str):
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"reading {kind} files needs pyarrow: pip install pyarrow") from None
    return pyarrow
