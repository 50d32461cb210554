"""Any file, or all files of a folder, byte by byte as they are: text, programs, pictures, anything.

python data/bytes/prepare.py --input=/usr/share/dict --name=words
python data/bytes/prepare.py --input=book.txt,songs/ --endings=.txt,.mid --name=mine
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import numpy as np

from bonsai.data.advice import describe_prepared
from bonsai.data.corpus import document_key
from bonsai.data.finding import as_endings, not_there, walk
from bonsai.data.writer import Writer, named_folder
from bonsai.files.access import reading
from bonsai.system.errors import UserError, run
from bonsai.system.paths import split_paths
from bonsai.system.progress import ProgressBar
from bonsai.tokenizers import ByteTokenizer
from configurator import Config, configure, resolve_path

input = ""  # files and folders, several between commas; hidden files in them are left out [paths]
endings = ""  # of the files to take from folders, such as .txt,.mid; default: all [list]
name = ""  # of the data set: it is written to data/<name>/; default: data/bytes/
out = ""  # folder to write to instead [path]
val_fraction = 0.05  # share of the files that go to val, by a hash of their path [> 0, < 1]
shard_tokens = 0  # tokens per file: train_00000.bin, train_00001.bin, ...; 0: one train.bin [>= 0]

PIECE = 1 << 20  # bytes that are read at a time


def find_files(c: Config) -> list[tuple[str, Path]]:
    """(name that decides the split, path) of all files, in sorted order."""
    ends = as_endings(c.endings)
    name_of: dict[Path, str] = {}
    for part in split_paths(c.input):
        path = resolve_path(os.path.expanduser(part))
        if path.is_file():
            name_of[path] = path.name
        elif not path.is_dir():
            raise UserError(not_there(part))
        for at, names in walk(path) if path.is_dir() else ():
            for file in (Path(at) / name for name in names):
                if file.is_file() and (not ends or file.name.lower().endswith(ends)):
                    name_of[file] = file.relative_to(path).as_posix()
    if not c.input:
        raise UserError("no input: name files or folders with --input=PATH")
    if not name_of:
        kind = f" that ends with {c.endings}" if ends else ""
        raise UserError(f"no file{kind} in {c.input!r}: name files or folders with --input=PATH")
    return sorted((name, path) for path, name in name_of.items())


def choose_val(c: Config, files: list[tuple[str, Path]]) -> set[Path]:
    """The files for val: those with a small hash of their name, at least one, never all."""
    keys = sorted((document_key(name.encode("utf-8", "surrogateescape")), p) for name, p in files)
    count = sum(key < c.val_fraction for key, _ in keys)
    return {path for _, path in keys[: min(max(count, 1), len(keys) - 1)]}


def split_files(
    c: Config, files: list[tuple[str, Path]], sizes: dict[Path, int]
) -> list[tuple[str, Path, int, int]]:
    """(split, path, first byte, last byte + 1) of each file; a single file is cut into both."""
    if len(files) == 1:
        path = files[0][1]
        size = sizes[path]
        cut = min(max(1, round(size * (1 - c.val_fraction))), size - 1)
        return [("train", path, 0, cut), ("val", path, cut, size)]
    val = choose_val(c, files)
    return [("val" if path in val else "train", path, 0, sizes[path]) for _, path in files]


def pieces(path: Path, start: int, end: int) -> Iterator[np.ndarray]:
    """Bytes start ... end - 1 of a file, in pieces."""
    with reading(path), open(path, "rb") as f:
        f.seek(start)
        while start < end and (data := f.read(min(PIECE, end - start))):
            start += len(data)
            yield np.frombuffer(data, np.uint8)


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    begin = time.time()
    named = named_folder(c.name) if c.name else HERE
    folder = Path(c.out) if c.out else named
    listed = find_files(c)
    sizes = {path: path.stat().st_size for _, path in listed}
    files = [(key, path) for key, path in listed if sizes[path]]
    if not files:
        raise UserError(f"{listed[0][1]} is empty" if len(listed) == 1 else "all files are empty")
    total = sum(sizes.values())
    empty = f"; empty ones left out: {len(listed) - len(files)}" if len(files) < len(listed) else ""
    print(f"{len(files)} file{'s' * (len(files) != 1)}, {total:,} bytes{empty}")
    if total < 2:
        raise UserError(f"{files[0][1]} has 1 byte: too few to train on and to validate with")

    tokenizer = ByteTokenizer()
    with (
        Writer(folder, tokenizer, shard_tokens=c.shard_tokens) as writer,
        ProgressBar(total, label="reading") as progress,
    ):
        for split, path, first, end in split_files(c, files, sizes):
            for data in pieces(path, first, end):
                writer.add(split, data, text_bytes=len(data), documents=0)
                progress.advance(len(data))
            writer.add(split, np.array([tokenizer.eot], "<u2"))
        meta = writer.finish()
    print(describe_prepared(meta, folder, time.time() - begin))


if __name__ == "__main__":
    run(main)
