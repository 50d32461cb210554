"""bonsai/files/torchfile.py: what torch saves comes back; no file takes all memory or all time."""

import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoints import needs_resource, state
from helpers.programs import ROOT, differences, environment

from bonsai.files import torchfile
from bonsai.files.torchfile import Refused, StorageInFile, read_torch_file, rebuild_tensor


def rezipped(content: dict[str, bytes], path: Path, compression=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(f"ckpt/{name}", data)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {i.filename.partition("/")[2]: archive.read(i) for i in archive.infolist()}


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def bombs(path: Path) -> dict[str, Callable[[], None]]:
    """Name -> what writes the file. All of them are smaller than 10 MB."""
    torch.save(state(1), path)
    good = members(path)
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0"
    )
    tensor += b"0X\x03\0\0\0cpuM\xb8\x0btQK\0%b%b\x89ccollections\nOrderedDict\n)RtR"
    number = b"\x8a\x08" + (2**60).to_bytes(8, "little")
    deep = 100_000

    def program(body: bytes) -> Callable[[], None]:
        return lambda: rezipped({**good, "data.pkl": pickled(body)}, path)

    def overlapping() -> None:
        """Thousands of entries of the directory for the same bytes."""
        rezipped({"data.pkl": good["data.pkl"], "data/0": bytes(2**20)}, path)
        with zipfile.ZipFile(path, "a") as archive:
            info = archive.infolist()[1]
            for i in range(5000):
                copy = zipfile.ZipInfo(f"ckpt/data/{i + 1}")
                copy.header_offset, copy.CRC = info.header_offset, info.CRC
                copy.file_size = copy.compress_size = info.file_size
                archive.filelist.append(copy)
            archive._didModify = True

    doubled = b"](K\1e" + b"q\0" + b"".join(
        b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)
    )  # fmt: skip
    return {
        "compressed": lambda: rezipped(
            {**good, "data/0": bytes(2**28)}, path, zipfile.ZIP_DEFLATED
        ),
        "overlapping": overlapping,
        "deep lists": program(b"]" * deep + b"a" * (deep - 1)),
        "deep tuples": program(b")" + b"\x85" * deep),
        "deep tuple as a key": program(b"})" + b"\x85" * deep + b"K\1s"),
        "deep dicts": program(b"}X\1\0\0\0a" * deep + b"}" + b"s" * deep),
        "doubled 60 times": program(doubled),
        "holds itself": program(b"]q\0h\0a"),
        "bytearray": program(b"c__builtin__\nbytearray\n" + number + b"\x85R"),
        "large memo": program(b"]r\xff\xff\xff\xff"),
        "many values": program(b"(" + b"]" * 1_000_000 + b"l"),
        "many instructions": program(b"]" + b"q\0" * 500_000),
        "many pops": program(b"]" + b"K\1a" * 200_000),
        "long string": program(b"X\xff\xff\xff\x7fabc"),
        "tensor of 2**60": program(tensor % (number + b"\x85", b"K\1\x85")),
        "tensor of stride 0": program(tensor % (number + b"\x85", b"K\0\x85")),
        "tensor that repeats its bytes": program(tensor % (b"K\4\x85", b"K\0\x85")),
        "tensor beyond its end": program(tensor % (b"K\2\x85", number + b"\x85")),
        "torch.Tensor": program(b"ctorch\nTensor\n" + number + b"\x85R"),
        "a part of torch": program(b"ctorch\n_inductor\n"),
        "calls with a long tuple": program(
            b"]((" + b"N" * 250_000 + b"tq\0ctorch\nSize\nq\1" + b"h\1h\0R" * 49_000 + b"e"
        ),
        "keys of one hash": program(b"}(" + b"".join(map(same_hash, range(190_000))) + b"u"),
    }


def same_hash(i: int) -> bytes:
    """A number that Python's dicts cannot tell from others of its kind by its hash, and None."""
    return b"\x8a\x0a" + (i * sys.hash_info.modulus).to_bytes(10, "little") + b"N"


@needs_resource
def test_small_files_take_neither_memory_nor_time(tmp_path):
    """In a child whose address space is 600 MB larger than torch needs, each in seconds.

    The bounds on numbers are lowered tenfold for it, and so are the files that go beyond them.
    """
    files = {}
    for name, write in bombs(tmp_path / "ckpt.pt").items():
        write()
        files[name] = (tmp_path / "ckpt.pt").rename(tmp_path / f"{name.replace(' ', '-')}.pt")
        assert files[name].stat().st_size < 17e6, name
    code = f"""
import resource, sys, time
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
import pytest
import torch
from bonsai.files import pickles
from bonsai.system.errors import UserError
from bonsai.runs.restore import load_checkpoint
from pathlib import Path
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 600 * 2**20,) * 2)
pickles.MOST //= 10
pickles.MOST_NUMBERS //= 10
for path in sys.argv[1:]:
    begin = time.perf_counter()
    try:
        load_checkpoint(Path(path))
        raise SystemExit(path + " was read")
    except UserError as e:
        assert chr(10) not in str(e) and path in str(e), e
        took = time.perf_counter() - begin
        print(f"{{took:.1f}} s", e)
assert "torch._inductor" not in sys.modules, "a name in a file has imported it"
"""
    command = [sys.executable, "-c", code, *map(str, files.values())]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "memory does not suffice" not in done.stdout, done.stdout


def test_what_torch_saves_comes_back(tmp_path):
    """Every dtype, views of one storage, and plain values at any depth."""
    whole = torch.arange(24.0).view(4, 6)
    saved = {
        "plain": [1, -(2**70), 2.5, None, True, "é\n", (1, (2,)), {"a": {}, 3: []}],
        "views": (whole, whole.t(), whole[1:3, ::2], whole[:0]),
        "ordered": OrderedDict(b=torch.nn.Parameter(torch.ones(2)), a=torch.tensor(7)),
        **{name: torch.ones(3).to(dtype) for name, dtype in torchfile.DTYPES.items()},
    }
    torch.save(saved, tmp_path / "a.pt")
    read = read_torch_file(tmp_path / "a.pt")
    assert differences(read, saved) == [] and read["plain"] == saved["plain"]
    assert list(read["ordered"]) == ["b", "a"]
    assert {n: read[n].dtype for n in torchfile.DTYPES} == torchfile.DTYPES
    assert read["views"][0].data_ptr() == read["views"][1].data_ptr()


def test_it_comes_back_whatever_the_default_device_is(tmp_path):
    """As a notebook sets it; meta stands for a GPU, which tests need not have."""
    torch.save({"a": torch.arange(5)}, tmp_path / "a.pt")
    with torch.device("meta"):
        read = read_torch_file(tmp_path / "a.pt")
    assert read["a"].tolist() == [0, 1, 2, 3, 4]


def test_what_is_skipped_is_checked_all_the_same(tmp_path):
    torch.save({"a": torch.zeros(3), "b": torch.full((9,), 0.1234)}, tmp_path / "a.pt")
    assert list(read_torch_file(tmp_path / "a.pt", skip=("b", "no such key"))) == ["a"]
    content = (tmp_path / "a.pt").read_bytes()
    place = content.index(torch.full((9,), 0.1234).numpy().tobytes())
    (tmp_path / "a.pt").write_bytes(content[:place] + b"\1" + content[place + 1 :])
    with pytest.raises(torchfile.Damaged, match="wrong checksum in data/1"):
        read_torch_file(tmp_path / "a.pt", skip=("b",))


def test_shapes_without_the_tensors(tmp_path, monkeypatch):
    torch.save({"w": torch.zeros(3, 5), "n": 2}, tmp_path / "a.pt")
    monkeypatch.setattr(torch, "empty", None)  # nothing is read into a tensor
    read = read_torch_file(tmp_path / "a.pt", values_only=True)
    assert (read["w"].shape, read["n"]) == ((3, 5), 2)


@pytest.mark.parametrize(
    "offset, shape, stride",
    [
        (0, (0, 2**70), (1, 1)),
        (0, (2**39, 0, 2**39), (1, 1, 1)),
        (0, (0,), (2**63,)),
        (2**63, (0,), (1,)),
    ],
)
def test_a_tensor_without_values_has_a_shape_all_the_same(offset, shape, stride):
    """Beside a 0 other numbers ask for no bytes; torch cannot count them."""
    storage = StorageInFile(None, "0", torch.float32, 0)
    with pytest.raises(Refused, match=r"one of its tensors has no valid (shape|place)"):
        rebuild_tensor(storage, offset, shape, stride, False, None)
    assert rebuild_tensor(storage, 0, (0, 5), (5, 1), False, None).shape == (0, 5)


def test_a_tensor_that_is_named_often_is_one(tmp_path):
    """Some bytes of a file name it once more, for which no other may be made."""
    tensor = torch.zeros(3)
    torch.save({"a": [tensor] * 1000}, tmp_path / "a.pt")
    assert len({id(w) for w in read_torch_file(tmp_path / "a.pt")["a"]}) == 1


def test_an_optimizer_of_many_parameters_is_read(tmp_path):
    torch.save({"state": {i: {} for i in range(30_000)}}, tmp_path / "a.pt")
    assert len(read_torch_file(tmp_path / "a.pt")["state"]) == 30_000


def test_numbers_of_numpys_are_read_as_pythons(tmp_path):
    """As best_val_loss is, where a training loop takes the mean of losses by NumPy."""
    saved = {"loss": np.float64(1.5), "step": np.int64(3), "w": torch.ones(2)}
    torch.save(saved, tmp_path / "a.pt")
    read = read_torch_file(tmp_path / "a.pt")
    assert (read["loss"], read["step"]) == (1.5, 3)
    assert (type(read["loss"]), type(read["step"])) == (float, int)
