"""bonsai/files/gguf.py: what a file claims is compared with what it has; nothing is executed."""

import random
import struct
from pathlib import Path

import pytest
import torch

from bonsai.files.gguf import MOST, is_gguf, read_gguf_file
from bonsai.system.errors import UserError


def text(words: str) -> bytes:
    data = words.encode()
    return struct.pack("<Q", len(data)) + data


def value(name: str, kind: int, data: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + data


def place(name: str, shape: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, offset)


def file(values=(), places=(), data: bytes = b"", version: int = 3, counts=None) -> bytes:
    """A file of the format. counts: what it says of tensors and values."""
    counts = counts or (len(places), len(values))
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join([*values, *places])
    return head + bytes(-len(head) % 32) + data


def written(path: Path, *parts, **options) -> Path:
    path.write_bytes(file(*parts, **options))
    return path


def test_values_of_every_kind(tmp_path):
    numbers = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
    values = [value(f"n{kind}", kind, struct.pack(f"<{c}", 1)) for kind, c in numbers.items()]
    values += [value("text", 8, text("é")), value("none", 9, struct.pack("<IQ", 8, 0))]
    values += [value("words", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b c"))]
    values += [value("list", 9, struct.pack("<IQ2i", 5, 2, -1, 7))]
    read, tensors = read_gguf_file(written(tmp_path / "a", values))
    assert read == {
        **{f"n{kind}": 1 for kind in numbers},
        **{"text": "é", "none": [], "words": ["a", "b c"], "list": [-1, 7]},
    }
    assert not tensors and is_gguf(tmp_path / "a")


def test_tensors_of_every_kind(tmp_path):
    w = torch.randn(2, 32)
    scale = torch.tensor([[0.5], [2.0]], dtype=torch.float16)
    q = torch.randint(-127, 128, (2, 32), dtype=torch.int8)
    parts = {
        "f32": (0, w.numpy().tobytes(), w),
        "f16": (1, w.half().numpy().tobytes(), w.half()),
        "bf16": (30, w.bfloat16().view(torch.int16).numpy().tobytes(), w.bfloat16()),
        "q8_0": (8, torch.cat((scale.view(torch.int8), q), 1).numpy().tobytes(), scale.float() * q),
    }
    places, data = [], b""
    for name, (kind, raw, _) in parts.items():
        places.append(place(name, [2, 32], kind, len(data)))
        data += raw + bytes(-len(raw) % 32)
    _, read = read_gguf_file(written(tmp_path / "a", [], places[::-1], data, version=2))
    for name, (_, _, wanted) in parts.items():
        assert read[name].dtype == wanted.dtype and torch.equal(read[name], wanted), name


DATA = bytes(64)
WRONG = {
    "another version": (dict(version=1), "version 2 or 3"),
    "more values than bytes": (dict(counts=(0, 2**60)), "parts"),
    "more tensors than bytes": (dict(counts=(2**63, 0)), "parts"),
    "a value that is cut short": (dict(counts=(0, 1)), "ends within"),
    "a text without an end": (dict(values=[value("a", 8, bytes([255] * 7 + [0]))]), "ends within"),
    "no UTF-8": (dict(values=[value("a", 8, struct.pack("<Q", 1) + b"\xff")]), "ends within"),
    "an unknown kind": (dict(values=[value("a", 13, b"")]), "unknown kind 13"),
    "a list of lists": (dict(values=[value("a", 9, struct.pack("<IQ", 9, 1))]), "unknown kind"),
    "a long list": (dict(values=[value("a", 9, struct.pack("<IQ", 0, MOST + 1))]), "parts"),
    "an odd alignment": (
        dict(values=[value("general.alignment", 4, struct.pack("<I", 0))]), "general.alignment"),
    "an alignment in words": (
        dict(values=[value("general.alignment", 8, text("a"))]), "general.alignment"),
    "many dimensions": (dict(places=[place("a", [1] * 5, 0, 0)]), "5 dimensions"),
    "a tensor of another kind": (dict(places=[place("a", [32], 2, 0)]), "'a' is of type 2"),
    "a row of half a block": (dict(places=[place("a", [2, 16], 8, 0)], data=DATA), "whole blocks"),
    "more than the file": (dict(places=[place("a", [17], 0, 0)], data=DATA), "no valid place"),
    "a huge shape": (dict(places=[place("a", [2**40, 2**40], 0, 0)], data=DATA), "no valid shape"),
    "no values of a huge shape": (
        dict(places=[place("a", [2**62, 2**62, 0], 0, 0)], data=DATA), "no valid shape"),
    "no values in a huge row": (dict(places=[place("a", [0, 2**63], 0, 0)], data=DATA), "shape"),
    "no blocks of a huge shape": (
        dict(places=[place("a", [2**40, 0, 2**40], 8, 0)], data=DATA), "valid shape"),
    "beyond the end": (dict(places=[place("a", [1], 0, 64)], data=DATA), "no valid place"),
    "an overlap": (
        dict(places=[place("a", [8], 0, 0), place("b", [8], 0, 16)], data=DATA), "'b' has no"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_one_line(tmp_path, case):
    parts, hint = WRONG[case]
    with pytest.raises(UserError, match=hint) as e:
        read_gguf_file(written(tmp_path / "a", **parts))
    assert "\n" not in str(e.value) and len(str(e.value)) < 400


def test_any_byte_may_be_wrong(tmp_path):
    """It is read, or one line says what is wrong."""
    values = [value("a", 8, text("word")), value("b", 9, struct.pack("<IQ2i", 5, 2, 1, 2))]
    good = file(values, [place("w", [4, 4], 0, 0)], DATA)
    rng = random.Random(0)
    for _ in range(500):
        data = bytearray(good)
        for _ in range(rng.choice([1, 1, 3])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = data[: rng.randrange(len(data)) if rng.random() < 0.2 else None]
        (tmp_path / "a").write_bytes(data)
        try:
            read_gguf_file(tmp_path / "a")
        except UserError as e:
            assert "\n" not in str(e)


def test_what_is_no_such_file(tmp_path):
    (tmp_path / "a").write_bytes(b"GG")
    assert not is_gguf(tmp_path / "a")
    with pytest.raises(UserError, match="a is damaged"):
        read_gguf_file(tmp_path / "a")
