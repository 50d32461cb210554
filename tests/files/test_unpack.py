"""unpack.py and what reads through it: small files that unpack to much fill no memory."""

import gzip
import json
import lzma
import sys

import pytest
from helpers.programs import ROOT, run_command

from bonsai.data.readers import read_pieces
from bonsai.files import unpack
from bonsai.files.unpack import lines, unpacked
from bonsai.system.errors import UserError

resource = pytest.importorskip("resource")
pa = pytest.importorskip("pyarrow")
GIB = 1 << 30


def bombs(folder) -> dict[str, int]:
    """Files of a megabyte at most, each 320 MB of text; name -> its bytes."""
    import pyarrow.parquet as pq

    blanks, row = b" " * (16 << 20), json.dumps({"text": "a" * (8 << 20)}).encode() + b"\n"
    (folder / "blanks.txt.gz").write_bytes(gzip.compress(blanks, 6) * 20)
    (folder / "blanks.txt.xz").write_bytes(lzma.compress(blanks) * 20)
    for name, data in (("line.jsonl.zst", blanks), ("rows.jsonl.zst", row * 2)):
        (folder / name).write_bytes(pa.Codec("zstd").compress(data, asbytes=True) * 20)
    objects = b'{"text": "a", "b": [' + b"[]," * 20_000_000 + b"1]}\n"
    (folder / "objects.jsonl.gz").write_bytes(gzip.compress(objects, 1))
    for name in ("plain.parquet", "dictionary.parquet"):
        table = pa.table({"text": ["a" * (1 << 20)] * 20})
        once = name == "dictionary.parquet"
        with pq.ParquetWriter(
            folder / name, table.schema, compression="zstd", use_dictionary=once
        ) as f:
            for _ in range(16):
                f.write_table(table)
    return {path.name: path.stat().st_size for path in folder.iterdir()}


READ = """
import os, resource, sys
from pathlib import Path
import pyarrow.parquet
from bonsai.system.errors import UserError
from bonsai.data.readers import read_pieces

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]),) * 2)
for path in sorted(Path(sys.argv[2]).iterdir()):
    if os.fork():  # each alone: what was freed before may still count
        os.wait()
        continue
    try:
        print(path.name, sum(len(piece.data) for piece in read_pieces([path])), flush=True)
    except UserError as e:
        print(path.name, "refused:", e, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory as Linux does")
def test_what_unpacks_to_gigabytes_is_refused_in_bounded_memory(tmp_path):
    sizes = bombs(tmp_path)
    assert len(sizes) == 7 and max(sizes.values()) < 1 << 20
    command = [sys.executable, "-c", READ, str(GIB), str(tmp_path)]
    result = run_command(command, ROOT, {"ARROW_DEFAULT_MEMORY_POOL": "system"})
    assert result.rc == 0, result
    said = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    for name in sizes:
        words = {"line": "a line of more than 64 MB", "objects": "more than 1,000,000 values"}
        words = words.get(name.partition(".")[0], "200 times its")
        assert words in said[name], (name, said[name])


@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory as Linux does")
def test_a_parquet_file_takes_no_more_than_it_may(tmp_path):
    """pyarrow takes what a page says that it unpacks to, before it unpacks it."""
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"text": ["a" * (100 << 20)]}), tmp_path / "a.parquet", compression="zstd"
    )
    assert (tmp_path / "a.parquet").stat().st_size < 10 << 20
    code = "from bonsai.data import rows; rows.PAGES = 16 << 20\n" + READ
    command = [sys.executable, "-c", code, str(16 * GIB), str(tmp_path)]
    result = run_command(command, ROOT, {"ARROW_DEFAULT_MEMORY_POOL": "system"})
    assert "refused: out of memory while reading" in result.stdout, result


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.xz", "a.txt.zst"])
def test_what_expands_beyond_the_limit(tmp_path, monkeypatch, name):
    data, path = b"a line\n" * 200_000, tmp_path / name
    packed = {"a.txt": data, "a.txt.gz": gzip.compress(data), "a.txt.xz": lzma.compress(data)}
    path.write_bytes(packed.get(name) or pa.Codec("zstd").compress(data, asbytes=True))
    assert b"".join(piece.data for piece in read_pieces([path])) == data  # within what is free
    monkeypatch.setattr(unpack, "FREE", 1000)
    if name == "a.txt":
        list(read_pieces([path]))
        return
    with pytest.raises(UserError, match=rf"{name} unpacks to more than 200 times"):
        list(read_pieces([path]))


def test_lines_of_any_length_up_to_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "BLOCK", 7)
    path = tmp_path / "a.jsonl"
    for data in (b"", b"\n", b"a", b"a\n", b"ab\n\ncd" * 9, b"0123456789" * 3 + b"\nx"):
        path.write_bytes(data)
        with unpacked(path, len(data)) as file:
            assert list(lines(file, 100)) == data.splitlines(keepends=True)
        with unpacked(path, len(data)) as file:
            if len(max(data.split(b"\n"))) > 20:
                with pytest.raises(UserError, match="line of more than"):
                    list(lines(file, 20))
