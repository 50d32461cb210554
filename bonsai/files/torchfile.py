"""torch's files (.pt, .bin) read by our own few lines: tensors and plain values, never code.

Such a file is a zip archive whose members are stored, not compressed: data.pkl, a pickle, and
data/0, data/1, ... with the bytes of the tensors. A pickle is a program for a small machine with a
stack; the machine here has the instructions that torch's files use, and of the functions that a
pickle can ask for the five in CALLS. Unlike torch.load, nothing is allocated that the file does not
hold: members lie side by side in it, a tensor has no more elements than its member has bytes for,
and the number of instructions, of values and their depth are bounded (MOST, jsonfile.DEPTH).
"""

import math
import struct
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from bonsai.files.access import opened
from bonsai.files.jsonfile import DEPTH

MOST = 4_000_000  # instructions, and values, of one file: a tokenizer of a million tokens fits
# Numbers that are keys of dicts: an optimizer's state has one for each parameter. They can be
# chosen so that their hashes collide, and Python compares each with all before it.
MOST_NUMBERS = 20_000
ARGUMENTS = 8  # of a call, at most
ODD = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, struct.error)
ODD += (OverflowError, EOFError)  # what wrong bytes lead to, in zipfile and in the machine
CHUNK = 1 << 20  # bytes read at a time where only the checksum is wanted
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
}


class Damaged(Exception):
    """The file is not what was written, or never was a file of torch's; its message says where."""


class Refused(Exception):
    """The file is whole, and holds what no checkpoint needs; its message says what."""


def read_torch_file(path: str | Path, skip: tuple[str, ...] = (), values_only: bool = False) -> Any:
    """What torch.save wrote: dicts, lists, tuples, numbers, strings and tensors on the CPU.

    skip: keys of the outermost dict that are left out, after a look at their checksums.
    values_only: read no tensor, and leave each as a TensorInFile, which knows its shape.
    Raises Damaged, Refused, or UserError where the file cannot be opened or read.
    """
    with opened(path) as f:
        archive = Archive(f)
        value = Machine(archive, archive.read("data.pkl")).run()
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
    """The members of a zip archive as torch writes it, by their names after the first slash."""

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
            raise Damaged("or it is no checkpoint") from None  # one cut short has no directory
        self.members = {i.filename.partition("/")[2]: i for i in infos}
        if any(i.compress_type != zipfile.ZIP_STORED or i.flag_bits & 1 for i in infos):
            raise Refused("members of it are compressed, which torch never does")
        if len(self.members) < len(infos):
            raise Refused("members of it have the same name")
        f.seek(0, 2)
        size = f.tell()
        # a member's local header of 30 bytes and a name, then its bytes, then the next member
        starts = sorted((i.header_offset, i.file_size) for i in infos)
        for (start, length), (next_start, _) in zip(starts, [*starts[1:], (size, 0)]):
            if start < 0 or start + 30 + length > next_start:
                raise Refused("members of it overlap, which torch never writes")
        self.next_start = {a: b for (a, _), (b, _) in zip(starts, [*starts[1:], (size, 0)])}
        self.checked: set[str] = set()
        self.storages: dict[str, tuple[torch.dtype, torch.Tensor]] = {}
        order = self.read("byteorder").decode("ascii", "replace") if "byteorder" in self else ""
        if order not in ("", sys.byteorder):
            raise Refused(f"its byte order is {order!r}, this machine's is {sys.byteorder}")

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def find(self, name: str) -> zipfile.ZipInfo:
        """Look a member up and stand at its first byte."""
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
        """The `numel` elements of a member, (numel,): read once, however many tensors share it."""
        if name not in self.storages:
            info = self.find(name)
            data = read_bytes_of_tensor(self.file, info.file_size)
            self.check(name, zlib.crc32(data.numpy()))
            self.storages[name] = (dtype, data.view(dtype))
        known, data = self.storages[name]
        if known != dtype or len(data) != numel:
            raise Refused(f"{name} is said to be of two kinds")
        return data

    def check_rest(self) -> None:
        """The checksums of the members that were not needed."""
        for name in self.members.keys() - self.checked:
            left, crc = self.find(name).file_size, 0
            while left:
                piece = self.file.read(min(left, CHUNK))
                if not piece:
                    raise Damaged(f"{name} is cut short")
                crc, left = zlib.crc32(piece, crc), left - len(piece)
            self.check(name, crc)


def read_bytes_of_tensor(f: BinaryIO, n: int) -> torch.Tensor:
    """The next n bytes of a file, (n,) uint8; MemoryError where there is no room for them."""
    try:
        data = torch.empty(n, dtype=torch.uint8)
    except RuntimeError:  # torch's allocator
        raise MemoryError from None
    if n and f.readinto(data.numpy()) < n:
        raise Damaged("it is cut short")
    return data


def can_be_counted(shape: Iterable[int]) -> bool:
    """Whether torch can count the elements of a shape without its zeros: beside a 0 any other
    number asks for no bytes, and what cannot be counted ends in an error of torch's own."""
    return math.prod(max(1, n) for n in shape) < 2**62


# ---- what a pickle may ask for ----


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
    tensor: torch.Tensor | None = None  # once it has been read: one, however often it is named

    def read(self) -> torch.Tensor:
        if self.tensor is None:
            s = self.storage
            data = s.archive.storage(s.name, s.dtype, s.numel)
            self.tensor = data.as_strided(self.shape, self.stride, self.offset)
        return self.tensor


def rebuild_tensor(storage, offset, shape, stride, requires_grad, hooks, metadata=None):
    sizes = (offset, *shape, *stride)
    if not isinstance(storage, StorageInFile) or not all(type(n) is int and n >= 0 for n in sizes):
        raise Refused("a tensor of it has no shape")
    if len(shape) != len(stride) or len(shape) > DEPTH or not can_be_counted(shape):
        raise Refused("a tensor of it has no shape")
    if max(offset, *stride, 0) >= 2**62:
        raise Refused("a tensor of it has no place")
    if any(n > 1 and not step for n, step in zip(shape, stride)):
        raise Refused("a tensor of it repeats its bytes")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride))
    if math.prod(shape) > storage.numel or (math.prod(shape) and last >= storage.numel):
        raise Refused("a tensor of it is larger than its bytes")
    return TensorInFile(storage, offset, tuple(shape), tuple(stride))


def rebuild_parameter(data, requires_grad, hooks):
    return data


def ordered_dict(*nothing):
    if nothing:
        raise Refused("it makes an OrderedDict of something")
    return OrderedDict()


def same(value, *index):
    return value


CALLS = {
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "collections.OrderedDict": ordered_dict,
    "torch.Size": same,
    "torch.device": same,
}


@dataclass(slots=True)
class Name:
    """A function or class that a pickle names."""

    path: str


# ---- the machine ----


class Machine:
    """Executes data.pkl: protocol 2 of pickle, as far as torch's files use it."""

    def __init__(self, archive: Archive, program: bytes):
        self.archive, self.program, self.at = archive, program, 0
        self.numbers = 0  # that were keys

    def take(self, n: int) -> bytes:
        if self.at + n > len(self.program):
            raise Damaged("its pickle is cut short")
        self.at += n
        return self.program[self.at - n : self.at]

    def number(self, kind: str) -> Any:
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def line(self) -> str:
        end = self.program.find(b"\n", self.at)
        text = self.take(max(end, self.at) - self.at).decode("utf-8", "replace")
        self.take(1)
        return text

    def run(self) -> Any:
        try:
            return self.execute()
        except ODD:
            raise Damaged("or it is no checkpoint") from None

    def execute(self) -> Any:
        stack, marks, memo = [], [], {}
        for _ in range(MOST):
            op = self.take(1)
            match op:
                case b"q":  # remember the top of the stack,
                    memo[self.number("<B")] = stack[-1]
                case b"r":
                    memo[self.number("<I")] = stack[-1]
                case b"h":  # and bring it back
                    stack.append(memo[self.number("<B")])
                case b"j":
                    stack.append(memo[self.number("<I")])
                case b"X":
                    text = self.take(self.number("<I"))
                    stack.append(text.decode("utf-8", "surrogatepass"))
                case b"K":
                    stack.append(self.number("<B"))
                case b"M":
                    stack.append(self.number("<H"))
                case b"J":
                    stack.append(self.number("<i"))
                case b"\x8a":
                    digits = self.take(self.number("<B"))
                    stack.append(int.from_bytes(digits, "little", signed=True))
                case b"G":
                    stack.append(self.number(">d"))
                case b"N":
                    stack.append(None)
                case b"\x88" | b"\x89":
                    stack.append(op == b"\x88")
                case b"}":
                    stack.append({})
                case b"]":
                    stack.append([])
                case b")":
                    stack.append(())
                case b"(":  # a mark: what follows, up to the one that takes it, belongs together
                    marks.append(stack)
                    stack = []
                case b"t":
                    stack, items = marks.pop(), stack
                    stack.append(tuple(items))
                case b"\x85" | b"\x86" | b"\x87":  # of the last one, two or three
                    n = op[0] - 0x84
                    stack[-n:] = [tuple(stack[len(stack) - n :])]
                case b"s" | b"u":
                    if op == b"s":
                        items = [stack.pop(), stack.pop()][::-1]
                    else:
                        stack, items = marks.pop(), stack
                    self.set_items(stack[-1], items)
                case b"a" | b"e":
                    if op == b"a":
                        items = [stack.pop()]
                    else:
                        stack, items = marks.pop(), stack
                    if type(stack[-1]) is not list:
                        raise Refused("it appends to what is no list")
                    stack[-1].extend(items)
                case b"c":
                    stack.append(self.named(f"{self.line()}.{self.line()}"))
                case b"R":
                    arguments, name = stack.pop(), stack.pop()
                    if not isinstance(name, Name) or type(arguments) is not tuple:
                        raise Refused("it calls what is no function")
                    if len(arguments) > ARGUMENTS:
                        raise Refused(f"it calls {name.path} with {len(arguments):,} arguments")
                    stack.append(CALLS[name.path](*arguments))
                case b"b":  # attributes: of a state_dict the versions of its modules, not needed
                    stack.pop()
                    if type(stack[-1]) is not OrderedDict:
                        raise Refused("it sets attributes")
                case b"Q":
                    stack.append(self.storage(*stack.pop()))
                case b"\x80":
                    self.take(1)
                case b".":
                    return stack.pop()
                case _:
                    raise Refused(
                        f"its pickle has the instruction {op!r}, which torch never writes"
                    )
        raise Refused(f"its pickle has more than {MOST:,} instructions")

    def named(self, path: str) -> Any:
        """What stands for a name: a function to call, the type of a storage, a dtype."""
        module, _, name = path.rpartition(".")
        if path in CALLS:
            return Name(path)
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        known = vars(torch).get(name)  # getattr would import parts of torch by their names
        if module == "torch" and isinstance(known, torch.dtype):
            return known
        raise Refused(f"it wants to call {path[:100]}: loading it could execute code")

    def storage(self, kind: str, dtype: Any, key: str, place: str, numel: int) -> StorageInFile:
        name = f"data/{key}"
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(numel) is not int:
            raise Refused("it asks for something that is no storage")
        if name not in self.archive:
            raise Damaged(f"it has no {name}")
        if self.archive.members[name].file_size != numel * dtype.itemsize:
            raise Refused(f"{name} has another length than its tensors")
        return StorageInFile(self.archive, name, dtype, numel)

    def set_items(self, target: Any, items: list) -> None:
        if type(target) not in (dict, OrderedDict) or len(items) % 2:
            raise Refused("it sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2]):
            if type(key) not in (str, int, float, bool):
                raise Refused(f"a dict of it has a {type(key).__name__} for a key")
            self.numbers += type(key) is not str
            if self.numbers > MOST_NUMBERS:
                raise Refused(f"dicts of it have more than {MOST_NUMBERS:,} numbers for keys")
            target[key] = value


# ---- after it ----


def check_nesting(value: Any) -> None:
    """Refused where values are nested too deep, or are too many when each is written out."""
    left, seen = [(value, 0)], 0
    while left:
        item, depth = left.pop()
        if not isinstance(item, dict | list | tuple):
            continue
        seen += len(item)
        if depth == DEPTH or seen > MOST:  # one that holds itself has both without end
            raise Refused("its values are nested too deep, or too many")
        inner = item.values() if isinstance(item, dict) else item
        left.extend((value, depth + 1) for value in inner)


def with_tensors(value: Any) -> Any:
    """The value with all of its tensors read, in place where it can be."""
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
