"""Reads torch's files (.pt, .bin) without torch.load: tensors and plain values, never code.

Such a file is a zip archive with uncompressed members: data.pkl, a pickle, and data/0, data/1, ...
with the bytes of the tensors. pickles.py beside this file reads the pickle, and calls only the
functions in CALLS. Unlike with torch.load, a small file cannot take much memory: members must not
overlap, a tensor must not have more elements than its member has bytes for, and the numbers of
instructions and of values and the depth of nesting are bounded (pickles.MOST, jsonfile.DEPTH).
"""

import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from bonsai.files import pickles
from bonsai.files.access import opened
from bonsai.files.jsonfile import DEPTH
from bonsai.files.pickles import ODD, Damaged, Refused

CHUNK = 1 << 20  # bytes read at a time to compute a checksum
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch before 1.6 begin

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


def read_torch_file(path: str | Path, skip: tuple[str, ...] = (), values_only: bool = False) -> Any:
    """The value that torch.save wrote: dicts, lists, tuples, numbers, strings, tensors on the CPU.

    skip: keys of the outermost dict to leave out; their checksums are still compared.
    values_only: read no tensors; each stays a TensorInFile, which knows its shape.
    Raises Damaged, Refused, or UserError if the file cannot be opened or read.
    """
    with opened(path) as f:
        archive = Archive(f)
        value = Machine(archive).run()
        check_nesting(value)
        if values_only:
            return value
        for key in skip:
            if isinstance(value, dict):
                value.pop(key, None)
        value = with_tensors(value)
        archive.check_rest()
        return value


# ---- the archive ----


class Archive:
    """A zip archive in torch's form. Its members have the names that follow their first slash."""

    def __init__(self, f: BinaryIO):
        self.file = f
        try:
            infos = zipfile.ZipFile(f).infolist()
        except (zipfile.BadZipFile, *ODD):
            f.seek(0)
            if f.read(len(LEGACY)) == LEGACY:
                raise Refused(
                    "it is in the format of torch before 1.6: load and save it with a newer torch"
                ) from None
            raise Damaged("or it is no checkpoint") from None  # the directory is the file's end
        self.members = {i.filename.partition("/")[2]: i for i in infos}
        if any(i.compress_type != zipfile.ZIP_STORED or i.flag_bits & 1 for i in infos):
            raise Refused("it has compressed members, which torch never writes")
        if len(self.members) < len(infos):
            raise Refused("two of its members have the same name")
        f.seek(0, 2)
        size = f.tell()
        # a member is a header of 30 bytes, a name, and its bytes; then the next member begins
        starts = sorted((i.header_offset, i.file_size) for i in infos)
        for (start, length), (next_start, _) in zip(starts, [*starts[1:], (size, 0)]):
            if start < 0 or start + 30 + length > next_start:
                raise Refused("its members overlap, which torch never writes")
        self.next_start = {a: b for (a, _), (b, _) in zip(starts, [*starts[1:], (size, 0)])}
        self.checked: set[str] = set()
        self.storages: dict[str, tuple[torch.dtype, torch.Tensor]] = {}
        order = self.read("byteorder").decode("ascii", "replace") if "byteorder" in self else ""
        if order not in ("", sys.byteorder):
            raise Refused(f"its byte order is {order!r}, this machine's is {sys.byteorder}")

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def find(self, name: str) -> zipfile.ZipInfo:
        """Look a member up, and move the file's position to its first byte."""
        if name not in self.members:
            raise Damaged(f"it has no {name}")
        info = self.members[name]
        self.file.seek(info.header_offset)
        head = self.file.read(30)
        if head[:4] != b"PK\3\4" or len(head) < 30:
            raise Damaged(f"wrong header of {name}")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))
        if start + info.file_size > self.next_start[info.header_offset]:
            raise Damaged(f"wrong header of {name}")
        self.file.seek(start)
        return info

    def check(self, name: str, crc: int) -> None:
        if crc != self.members[name].CRC:
            raise Damaged(f"wrong checksum in {name}")
        self.checked.add(name)

    def read(self, name: str) -> bytes:
        data = self.file.read(self.find(name).file_size)
        self.check(name, zlib.crc32(data))
        return data

    def storage(self, name: str, dtype: torch.dtype, numel: int) -> torch.Tensor:
        """A member's elements, (numel,). It is read once, even if several tensors share it."""
        if name not in self.storages:
            info = self.find(name)
            data = read_bytes_of_tensor(self.file, info.file_size)
            self.check(name, zlib.crc32(data.numpy()))
            self.storages[name] = (dtype, data.view(dtype))
        known, data = self.storages[name]
        if known != dtype or len(data) != numel:
            raise Refused(f"{name} is used with two dtypes or lengths")
        return data

    def check_rest(self) -> None:
        """Compare the checksums of the members that have not been read."""
        for name in self.members.keys() - self.checked:
            left, crc = self.find(name).file_size, 0
            while left:
                piece = self.file.read(min(left, CHUNK))
                if not piece:
                    raise Damaged(f"{name} is cut short")
                crc, left = zlib.crc32(piece, crc), left - len(piece)
            self.check(name, crc)


def read_bytes_of_tensor(f: BinaryIO, n: int) -> torch.Tensor:
    """The next n bytes of a file, (n,) uint8. Raises MemoryError if they do not fit into memory."""
    try:
        data = torch.empty(n, dtype=torch.uint8, device="cpu")  # whatever the default device is
    except RuntimeError:  # torch's allocator
        raise MemoryError from None
    if n and f.readinto(data.numpy()) < n:
        raise Damaged("it is cut short")
    return data


def can_be_counted(shape: Iterable[int]) -> bool:
    """Whether the number of elements, zeros in the shape ignored, fits into torch's integers. A
    shape with a 0 needs no bytes, so its other numbers may be huge, which is an error in torch."""
    return math.prod(max(1, n) for n in shape) < 2**62


# ---- the values that a pickle may build ----


@dataclass(slots=True)
class StorageInFile:
    archive: Archive
    name: str
    dtype: torch.dtype
    numel: int


@dataclass(slots=True)
class TensorInFile:
    """A tensor that has not been read yet."""

    storage: StorageInFile
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    tensor: torch.Tensor | None = None  # after `read`: the same one for every mention

    def read(self) -> torch.Tensor:
        if self.tensor is None:
            s = self.storage
            data = s.archive.storage(s.name, s.dtype, s.numel)
            self.tensor = data.as_strided(self.shape, self.stride, self.offset)
        return self.tensor


def rebuild_tensor(storage, offset, shape, stride, requires_grad, hooks, metadata=None):
    sizes = (offset, *shape, *stride)
    if not isinstance(storage, StorageInFile) or not all(type(n) is int and n >= 0 for n in sizes):
        raise Refused("one of its tensors has no valid shape")
    if len(shape) != len(stride) or len(shape) > DEPTH or not can_be_counted(shape):
        raise Refused("one of its tensors has no valid shape")
    if max(offset, *stride, 0) >= 2**62:
        raise Refused("one of its tensors has no valid place")
    if any(n > 1 and not step for n, step in zip(shape, stride)):
        raise Refused("one of its tensors repeats its bytes")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride))
    if math.prod(shape) > storage.numel or (math.prod(shape) and last >= storage.numel):
        raise Refused("one of its tensors is larger than its bytes")
    return TensorInFile(storage, offset, tuple(shape), tuple(stride))


def same(value, *others):
    """The value without what a parameter, a shape or a device has besides."""
    return value


CALLS = {
    **pickles.CALLS,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": same,
    "torch.Size": same,
    "torch.device": same,
}


class Machine(pickles.Machine):
    """Executes data.pkl, which may name torch's storages and dtypes, too."""

    def __init__(self, archive: Archive):
        super().__init__(archive.read("data.pkl"), CALLS)
        self.archive = archive

    def run(self) -> Any:
        try:
            return self.execute()
        except ODD:
            raise Damaged("or it is no checkpoint") from None

    def named(self, path: str) -> Any:
        """The value of a name: a function to call, the type of a storage, or a dtype."""
        module, _, name = path.rpartition(".")
        if module == "torch" and path not in CALLS:
            if name in DTYPES:
                return DTYPES[name]
            known = vars(torch).get(name)  # getattr may import a submodule of that name
            if isinstance(known, torch.dtype):
                return known
        return super().named(path)

    def outside(self, reference: Any) -> StorageInFile:
        kind, dtype, key, _, numel = reference  # the device does not matter
        name = f"data/{key}"
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(numel) is not int:
            raise Refused("it asks for something that is not a storage")
        if name not in self.archive:
            raise Damaged(f"it has no {name}")
        if self.archive.members[name].file_size != numel * dtype.itemsize:
            raise Refused(f"{name} has another length than its tensors")
        return StorageInFile(self.archive, name, dtype, numel)


# ---- from the machine's value to tensors ----


def check_nesting(value: Any) -> None:
    """Raises Refused if values are nested too deep, or too many; shared ones count each time."""
    left, seen = [(value, 0)], 0
    while left:
        item, depth = left.pop()
        if not isinstance(item, dict | list | tuple):
            continue
        seen += len(item)
        if depth == DEPTH or seen > pickles.MOST:  # a value that contains itself ends here, too
            raise Refused("its values are nested too deep, or too many")
        inner = item.values() if isinstance(item, dict) else item
        left.extend((value, depth + 1) for value in inner)


def with_tensors(value: Any) -> Any:
    """The value with all of its tensors read. Dicts and lists are changed in place."""
    if isinstance(value, TensorInFile):
        return value.read()
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = with_tensors(item)
    elif isinstance(value, list):
        value[:] = map(with_tensors, value)
    elif isinstance(value, tuple):
        return tuple(map(with_tensors, value))
    return value
