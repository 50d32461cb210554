"""safetensors files read: eight bytes with the length of a header, the header in JSON, raw bytes.

The header has for each tensor its dtype, its shape, and where its bytes begin and end after it.
Nothing in such a file can be executed, and here it cannot ask for more memory than it has bytes.
"""

import math
import struct
from pathlib import Path

import torch

from bonsai.files.access import opened
from bonsai.files.jsonfile import parse_json_object
from bonsai.files.torchfile import Damaged, read_bytes_of_tensor
from bonsai.system.errors import UserError

HEADER = 8 * 2**20  # the most bytes of a header; GPT-2 XL's has some 60,000
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors by name, on the CPU. Raises UserError for a file that is damaged or too large."""
    with opened(path) as f:
        size = f.seek(0, 2)
        f.seek(0)
        head = f.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if 8 + length > size or length > HEADER:
            raise UserError(f"{path} is damaged, or no safetensors file: its header has no end")
        try:
            text = f.read(length).decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path} is damaged, or no safetensors file") from None
        header = parse_json_object(text, f"the header of {path}")
        header.pop("__metadata__", None)
        parts = [
            (*placed(entry, f"{name[:80]!r} in {path}"), name) for name, entry in header.items()
        ]
        parts.sort(key=lambda part: part[:2])
        at = 0
        for begin, end, *_, name in parts:
            if begin != at:
                raise UserError(f"{path} is damaged: {name[:80]!r} begins at {begin}, not at {at}")
            at = end
        if 8 + length + at != size:
            raise UserError(f"{path} is damaged: it has {size} bytes, not {8 + length + at}")
        tensors = {}
        for begin, end, dtype, shape, name in parts:
            try:
                data = read_bytes_of_tensor(f, end - begin)
            except Damaged as e:
                raise UserError(f"{path}: {e}") from None
            tensors[name] = data.view(dtype).view(shape)
        return tensors


def placed(entry: object, name: str) -> tuple[int, int, torch.dtype, tuple[int, ...]]:
    """(begin, end, dtype, shape) of an entry of the header; UserError where they do not agree."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, place = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(f"{name} is of a kind that is not supported: {str(dtype)[:40]}")
    numbers = [*shape, *place] if isinstance(shape, list) and isinstance(place, list) else [-1]
    if not all(type(n) is int and n >= 0 for n in numbers) or len(place) != 2:
        raise UserError(f"{name} has no shape or no place")
    if place[1] - place[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise UserError(f"{name} has another number of bytes than its shape {tuple(shape)}")
    return (*place, DTYPES[dtype], tuple(shape))
