"""The same documents in every format."""

import gzip
import json
import lzma
from pathlib import Path

import pytest

from bonsai.data.corpus import split_documents
from bonsai.data.pieces import Piece

TEXTS = [f"document {i}: {'abc ' * (i % 7)}é😀\nend" for i in range(60)]


def write_inputs(folder: Path, texts: list[str], column: str = "text") -> dict[str, Path]:
    """The same documents in every format that has rows or folders."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps({"id": i, column: t}) + "\n" for i, t in enumerate(texts))
    (folder / "docs.jsonl").write_text(lines, encoding="utf-8")
    (folder / "docs.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "docs.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    (folder / "docs.jsonl.zst").write_bytes(pa.Codec("zstd").compress(lines.encode(), asbytes=True))
    table = pa.table({"id": list(range(len(texts))), column: texts})
    pq.write_table(table, folder / "docs.parquet", row_group_size=7)
    (folder / "txt").mkdir()
    for i, text in enumerate(texts):
        (folder / "txt" / f"{i:03d}.txt").write_bytes(text.encode())
    packed = ("docs.jsonl.gz", "docs.jsonl.xz", "docs.jsonl.zst")
    names = ("docs.jsonl", *packed, "docs.parquet", "txt")
    return {name: folder / name for name in names}


def split_of(texts: list[str], fraction: float) -> dict[str, str]:
    pieces = [Piece(text.encode(), True, True, 0) for text in texts]
    return {
        data.decode(): split for split, data, _ in split_documents(lambda **_: pieces, fraction)
    }
