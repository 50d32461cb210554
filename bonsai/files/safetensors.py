"""safetensors files: eight bytes with the length of the header, the header in JSON, raw bytes.

For each tensor the header has its dtype, its shape, and where its bytes begin and end, counted from
the header's end. Under __metadata__ it has strings by name. Nothing in such a file can be executed,
and reading it here takes no more memory than it has bytes.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from bonsai.files.access import opened
from bonsai.files.atomic import whole_file
from bonsai.files.jsonfile import parse_json_object
from bonsai.files.torchfile import Damaged, can_be_counted, read_bytes_of_tensor
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
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors by name, on the CPU. Raises UserError for a file that is damaged or too large."""
    return read_with_metadata(path)[0]


def read_with_metadata(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of `read_safetensors`, and the file's metadata."""
    with opened(path) as f:
        size = f.seek(0, 2)
        f.seek(0)
        head = f.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if 8 + length > size or length > HEADER:
            raise UserError(f"{path} is damaged, or not a safetensors file: its header has no end")
        try:
            text = f.read(length).decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path} is damaged, or not a safetensors file") from None
        header = parse_json_object(text, f"the header of {path}")
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(
            isinstance(word, str) for word in metadata.values()
        ):
            raise UserError(f"{path} is damaged: its __metadata__ is not a dict of strings")
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
        return tensors, metadata


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    place: Callable[[Path, Path], None] = os.replace,
) -> None:
    """Write tensors and metadata, whole or not at all.

    A tensor with two names is written twice, so leave one out. place: see whole_file. Raises
    OSError, and UserError if the header is too large to be read again.
    """
    header: dict = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, tensor in tensors.items():
        kind = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = {**kind, "data_offsets": [at, at := at + tensor.nbytes]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    if len(text) > HEADER:
        raise UserError(
            f"{path} would have a header of {len(text) >> 20} MiB, more than the {HEADER >> 20} "
            "that can be read: the tokenizer is too large"
        )
    with whole_file(path, place) as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            data = tensor.detach().cpu().contiguous()
            f.write(data.view(-1).view(torch.uint8).numpy().data)


def placed(entry: object, name: str) -> tuple[int, int, torch.dtype, tuple[int, ...]]:
    """(begin, end, dtype, shape) of an entry of the header; UserError if they do not agree."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, place = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(f"{name} has an unsupported dtype: {str(dtype)[:40]}")
    numbers = [*shape, *place] if isinstance(shape, list) and isinstance(place, list) else [-1]
    if not all(type(n) is int and n >= 0 for n in numbers) or len(place) != 2:
        raise UserError(f"{name} has no valid shape or place")
    if not can_be_counted(shape):
        raise UserError(f"{name} has no shape that a tensor can have")
    if place[1] - place[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise UserError(f"{name}: its number of bytes does not fit its shape {tuple(shape)}")
    return (*place, DTYPES[dtype], tuple(shape))
