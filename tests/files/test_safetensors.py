"""bonsai/files/safetensors.py: a header that does not fit its file is refused, in one line."""

import json
import struct

import pytest
import torch

from bonsai.files.safetensors import (
    DTYPES,
    HEADER,
    read_safetensors,
    read_with_metadata,
    write_safetensors,
)
from bonsai.system.errors import UserError


def written(path, header: object, data: bytes = b"", length: int | None = None):
    """A file of the format, from its header and its bytes. length: what it says of its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def lies(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_tensors_of_every_kind(tmp_path):
    """In any order of the header; a tensor may be empty, or a number without a dimension."""
    tensors = {name: torch.arange(6).to(dtype).view(2, 3) for name, dtype in DTYPES.items()}
    tensors |= {"none": torch.zeros(0, 4), "one": torch.tensor(2.5)}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    names = {dtype: name for name, dtype in DTYPES.items()}
    for name, t in tensors.items():
        raw = t.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        header[name] = lies(len(data), len(data) + len(raw), [*t.shape], names[t.dtype])
        data += raw
    read = read_safetensors(written(tmp_path / "a", dict(reversed(header.items())), data))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name


DATA = bytes(8)
WHAT_IS_WRONG = {
    "an empty header": (b"", DATA, None, "not valid JSON"),
    "a header of no object": ([1], DATA, None, "the header of .* is not a JSON object"),
    "a header without an end": ({}, b"", 2**62, "its header has no end"),
    "a header of 2 GB": ({}, b"", 2**31, "its header has no end"),
    "a header cut short": (b"{", b"", None, "not valid JSON"),
    "a deep header": (b'{"a":' * 5000, b"", None, "nested too deep"),
    "a header in no UTF-8": (b"\xff{}", b"", None, "not a safetensors file"),
    "of no kind": ({"a": lies(0, 8, [1], "F4")}, DATA, None, "unsupported dtype: F4"),
    "of a list": ({"a": lies(0, 8, [2], ["F32"])}, DATA, None, "unsupported dtype"),
    "no entry": ({"a": 7}, DATA, None, "unsupported dtype: None"),
    "a size below 0": ({"a": lies(0, 8, [-2])}, DATA, None, "no valid shape or place"),
    "a size of True": ({"a": lies(0, 4, [True])}, DATA[:4], None, "no valid shape or place"),
    "a size in words": ({"a": lies(0, 8, ["2"])}, DATA, None, "no valid shape or place"),
    "another number of bytes": ({"a": lies(0, 8, [3])}, DATA, None, "does not fit its shape"),
    "many more bytes": ({"a": lies(0, 8, [10**12])}, DATA, None, "does not fit its shape"),
    "turned round": ({"a": lies(8, 0, [2])}, DATA, None, "does not fit its shape"),
    "no values in a huge row": ({"a": lies(0, 0, [0, 2**70])}, b"", None, "no shape that a tensor"),
    "no values of a huge shape": ({"a": lies(0, 0, [2**39, 0, 2**39])}, b"", None, "no shape that"),
    "a gap": ({"a": lies(4, 8, [1])}, DATA, None, "begins at 4, not at 0"),
    "a hole": ({"a": lies(0, 4, [1]), "b": lies(6, 10, [1])}, bytes(10), None, "6, not at 4"),
    "an overlap": ({"a": lies(0, 8, [2]), "b": lies(4, 8, [1])}, DATA, None, "begins at 4"),
    "cut short": ({"a": lies(0, 8, [2])}, DATA[:7], None, r"it has \d+ bytes, not \d+"),
    "bytes beyond": ({"a": lies(0, 8, [2])}, DATA + b"x", None, r"it has \d+ bytes, not \d+"),
}


@pytest.mark.parametrize("case", WHAT_IS_WRONG)
def test_what_does_not_fit_is_one_line(tmp_path, case):
    header, data, length, words = WHAT_IS_WRONG[case]
    with pytest.raises(UserError, match=words) as e:
        read_safetensors(written(tmp_path / "a", header, data, length))
    assert str(tmp_path / "a") in str(e.value) and "\n" not in str(e.value)


def test_a_file_of_nothing(tmp_path):
    for content in (b"", b"1234567"):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(UserError, match="its header has no end"):
            read_safetensors(tmp_path / "a")
    assert read_safetensors(written(tmp_path / "b", {})) == {}


def test_what_is_written_is_read_here_and_by_their_library(tmp_path):
    tensors = {name: torch.arange(6).to(dtype).view(2, 3).t() for name, dtype in DTYPES.items()}
    tensors |= {"none": torch.zeros(0, 4), "one": torch.tensor(2.5), "é": torch.ones(1)}
    write_safetensors(tmp_path / "a", tensors, {"format": "pt", "more": '"words"\n'})
    read, metadata = read_with_metadata(tmp_path / "a")
    assert metadata == {"format": "pt", "more": '"words"\n'}
    assert struct.unpack("<Q", (tmp_path / "a").read_bytes()[:8])[0] % 8 == 0
    library = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    theirs = library.load_file(tmp_path / "a")
    assert read.keys() == theirs.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == theirs[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor) and torch.equal(theirs[name], tensor)


def test_a_header_that_nobody_would_read_is_not_written(tmp_path):
    with pytest.raises(UserError, match="header of 8 MiB"):
        write_safetensors(tmp_path / "a", {}, {"a": "x" * HEADER})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("metadata", [[1], "x", {"a": 1}, {"a": {}}])
def test_metadata_are_words(tmp_path, metadata):
    with pytest.raises(UserError, match="__metadata__ is not a dict of strings"):
        read_safetensors(written(tmp_path / "a", {"__metadata__": metadata}))
