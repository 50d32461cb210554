"""Reads GGUF files, llama.cpp's format: named values, then tensors.

    "GGUF", version, number of tensors, number of values
    values: name, kind, value          tensors: name, shape, kind, where its bytes begin
    the bytes of the tensors, from the next multiple of general.alignment

Nothing in such a file can be executed. Reading takes no more memory than the file has bytes, or
four times as much if weights are in Q8_0. Of llama.cpp's kinds of tensors, float32, float16,
bfloat16 and Q8_0 (blocks of 32 weights: a scale in float16, then int8) are supported.
"""

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import torch

from bonsai.files.access import opened
from bonsai.files.torchfile import Damaged, can_be_counted, read_bytes_of_tensor
from bonsai.system.errors import UserError

MAGIC, VERSIONS = b"GGUF", (2, 3)
HEAD = 256 * 2**20  # the most bytes before the tensors; a vocabulary of 256,000 tokens takes 10 MB
MOST = 4_000_000  # the most values, items of lists and tensors together
NUMBERS = "BbHhIif?"  # struct's letters for the kinds 0 to 7; 8 is a string, 9 a list
NUMBERS_AFTER = {10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
BLOCK = 32  # weights of Q8_0 that share a scale
KINDS = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16, 8: "Q8_0"}


def is_gguf(path: str | Path) -> bool:
    with opened(path) as f:
        return f.read(4) == MAGIC


def read_gguf_file(path: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The values and the tensors, both by name. Tensors have their slowest dimension first and the
    file's dtype; those in Q8_0 become float32. Raises UserError for a file that is damaged, too
    large, or has tensors of another kind."""
    with opened(path) as f:
        head = Head(f)
        try:
            return head.read()
        except (struct.error, UnicodeDecodeError, OverflowError):
            raise UserError(f"{path} is damaged: it ends within its header") from None
        except Damaged as e:
            raise UserError(f"{path} is damaged: {e}") from None


class Head:
    """Reads a file once, in order: what precedes the tensors, then the tensors."""

    def __init__(self, f: BinaryIO):
        self.file = f
        self.size = f.seek(0, 2)
        self.at = f.seek(0)
        self.left = MOST

    def take(self, n: int) -> bytes:
        if not 0 <= n <= min(self.size, HEAD) - self.at:
            raise Damaged("it ends within its header")
        self.at += n
        return self.file.read(n)

    def number(self, letter: str) -> Any:
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(letter)))[0]

    def count(self, n: int) -> int:
        """Returns `n`, the number of parts that follow; Damaged if the file has fewer bytes."""
        self.left -= n
        if n > self.size - self.at or self.left < 0:
            raise Damaged(f"it has fewer than {n} parts")
        return n

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        letter = NUMBERS_AFTER.get(kind, NUMBERS[kind] if kind < len(NUMBERS) else "")
        if letter:
            return self.number(letter)
        if kind == TEXT:
            return self.text()
        inner = self.number("I") if kind == LIST else LIST
        if inner == LIST:
            raise Damaged(f"it has a value of the unknown kind {kind}")
        return [self.value(inner) for _ in range(self.count(self.number("Q")))]

    def read(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        if self.take(4) != MAGIC or self.number("I") not in VERSIONS:
            raise Damaged("it is not a GGUF file of version 2 or 3")
        n_tensors, n_values = self.number("Q"), self.number("Q")
        values, places = {}, []
        for _ in range(self.count(n_values)):
            name = self.text()
            values[name] = self.value(self.number("I"))
        for _ in range(self.count(n_tensors)):
            name, dimensions = self.text(), self.number("I")
            if dimensions > 4:
                raise Damaged(f"{name[:80]!r} has {dimensions} dimensions")
            shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
            places.append((name, shape, self.number("I"), self.number("Q")))
        step = values.get("general.alignment", 32)
        if type(step) is not int or not 1 <= step <= 2**20:
            raise Damaged("its general.alignment is not a number of bytes")
        start = -(-self.at // step) * step
        return values, self.tensors(places, start)

    def tensors(self, places: list[tuple], start: int) -> dict[str, torch.Tensor]:
        """The tensors by name, read from their places, which must not overlap."""
        found, end = {}, start
        for name, shape, kind, offset in sorted(places, key=lambda place: place[3]):
            dtype = KINDS.get(kind)
            if dtype == "Q8_0" and (not shape or shape[-1] % BLOCK):
                raise Damaged(f"{name[:80]!r} is Q8_0, but its rows are not whole blocks")
            if dtype is None:
                raise Damaged(
                    f"{name[:80]!r} is of type {kind}, and only float32, float16, bfloat16 and "
                    "Q8_0 can be read"
                )
            if not can_be_counted(shape):
                raise Damaged(f"{name[:80]!r} has no valid shape")
            count = math.prod(shape)
            size = count // BLOCK * (BLOCK + 2) if dtype == "Q8_0" else count * dtype.itemsize
            if start + offset < end or start + offset + size > self.size:
                raise Damaged(f"{name[:80]!r} has no valid place in the file")
            self.file.seek(start + offset)
            end = start + offset + size
            data = read_bytes_of_tensor(self.file, size)
            if dtype == "Q8_0":
                blocks = data.view(-1, BLOCK + 2)
                scales = blocks[:, :2].contiguous().view(torch.float16).float()
                found[name] = (scales * blocks[:, 2:].contiguous().view(torch.int8)).view(shape)
            else:
                found[name] = data.view(dtype).view(shape)
        return found
