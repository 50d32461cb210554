"""The source of the running Python's own standard library, as bytes. Nothing is downloaded.

python data/python_stdlib/prepare.py
python data/python_stdlib/prepare.py --input=/usr/lib/python3.12
"""

import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import numpy as np

from bonsai.corpus import document_key
from bonsai.errors import UserError, run
from bonsai.files import read_bytes
from bonsai.finding import walk
from bonsai.tokenizers import ByteTokenizer
from bonsai.writer import Writer, summary
from configurator import configure, resolve_path

input = ""  # a folder of Python source instead of the running Python's library [path]
out = ""  # folder to write to; default: the folder of this script [path]
val_fraction = 0.07  # share of the files that go to val, chosen by a hash of their path [> 0, < 1]

# Not the library: tests, installed packages, and what is generated on each machine.
SKIPPED = {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"}
GENERATED = "_sysconfigdata"


def source_files(root: Path) -> Iterator[str]:
    """Paths of the .py files below `root`, relative, with /, in sorted order."""
    found = []
    for folder, names in walk(root, SKIPPED):
        for name in names:
            if name.endswith(".py") and not name.startswith(GENERATED):
                found.append((Path(folder) / name).relative_to(root).as_posix())
    yield from sorted(found)


def main() -> None:
    start = time.time()
    root = resolve_path(input) if input else Path(sysconfig.get_paths()["stdlib"])
    files = list(source_files(root))
    if not files:
        raise UserError(f"no Python source in {root}: name a folder of it with --input=FOLDER")
    print(f"{len(files)} files of {root}")
    tokenizer = ByteTokenizer()
    with Writer(Path(out or HERE), tokenizer) as writer:
        for name in files:
            data = read_bytes(root / name)  # as it is: a few files are not UTF-8
            if data:
                split = "val" if document_key(name.encode()) < val_fraction else "train"
                ids = np.append(np.frombuffer(data, np.uint8).astype("<u2"), tokenizer.eot)
                writer.add(split, ids, text_bytes=len(data))
        meta = writer.finish()
    print(summary(meta, writer.folder, time.time() - start))


if __name__ == "__main__":
    run(lambda: configure(globals()), main)
