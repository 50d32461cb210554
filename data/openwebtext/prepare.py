"""OpenWebText in GPT-2's tokens, with the very ids of nanoGPT's script. Needs some 85 GB of disk.

python data/openwebtext/prepare.py
python data/openwebtext/prepare.py --input='shards/*.parquet'
"""

import contextlib
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line


from bonsai.data.advice import describe_prepared
from bonsai.data.corpus import Part, whole_documents, write_documents
from bonsai.data.fetch import hub_downloads, hub_files
from bonsai.data.finding import find_files, total_size
from bonsai.data.pieces import Options, Piece
from bonsai.data.readers import read_pieces
from bonsai.data.writer import Writer, disk_errors
from bonsai.system.errors import UserError, run
from bonsai.system.progress import ProgressBar
from bonsai.tokenizers import get
from configurator import Config, configure, refuse_idle

# what
input = ""  # local .parquet, .jsonl, .jsonl.gz or .txt files instead of the download [paths]
text_column = "text"  # field of a row that holds the text
out = ""  # folder to write to; default: the folder of this script [path]

# where it comes from: 80 parquet files, 24 GB
repo = "Skylion007/openwebtext"  # on the Hugging Face hub
revision = "b4325f019c648b1641a1784748667e8b74e5e064"  # branch or commit
keep = False  # keep the downloaded files

# the split, as nanoGPT makes it
test_size = 0.0005  # share of the documents that go to val [> 0, < 1]
seed = 2357  # of the shuffle [0 to 4294967295]

DOCUMENTS = 8_013_769
NANOGPT = {"train": 9_035_582_198, "val": 4_434_897}  # tokens


def open_shuffled(c: Config, pieces: Iterable[Piece], folder: Path):
    """The documents as a datasets.DatasetDict of "train" and "test".

    Random access to 40 GB of text needs them on the disk, uncompressed: an Arrow file in `folder`.
    """
    import datasets
    import pyarrow as pa

    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run that was killed
    with disk_errors(folder):
        folder.mkdir(parents=True)
    path = folder / "documents.arrow"
    schema = pa.schema({"text": pa.large_string()})
    with (
        disk_errors(path),
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, schema) as f,
    ):
        texts, size = [], 0

        def write_batch() -> None:
            column = pa.array(texts, pa.large_binary()).cast(pa.large_string())
            f.write_batch(pa.record_batch([column], schema))

        for text in whole_documents(pieces):
            texts.append(text)
            size += len(text)
            if size >= 1 << 24 or len(texts) >= 1000:
                write_batch()
                texts, size = [], 0
        write_batch()
    dataset = datasets.Dataset.from_file(str(path))
    if len(dataset) < 2:
        raise UserError(f"the input has {len(dataset)} document: a split needs two or more")
    return dataset.train_test_split(test_size=c.test_size, seed=c.seed, shuffle=True)


def documents(split: str, dataset, progress: ProgressBar) -> Iterator[Part]:
    for rows in dataset.iter(batch_size=256):
        for text in rows["text"]:
            yield split, text.encode("utf-8"), True
        progress.advance(len(rows["text"]))


def remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    refuse_idle(c, (c.input, "repo revision keep", "with --input"))
    start = time.time()
    folder = Path(c.out or HERE)
    downloads = folder / "downloads"
    if c.input:
        files = find_files(c.input, (Path(), ROOT))
        sizes = [total_size([file]) for file in files]
    else:
        paths, sizes = zip(*hub_files(c.repo, c.revision))
    tokenizer = get("gpt2")
    tokenizer.encode("")  # loads the vocabulary: what can fail should fail before a long download
    print(f"{len(sizes)} file{'s' * (len(sizes) != 1)}, {sum(sizes) / 1e9:.2f} GB")

    with Writer(folder, tokenizer) as writer, contextlib.ExitStack() as stack:
        arrow = downloads / "arrow"
        stack.callback(remove_if_empty, downloads)
        stack.callback(shutil.rmtree, arrow, ignore_errors=True)
        with ProgressBar(sum(sizes), label="reading") as progress:
            # Empty documents stay: the shuffle depends on how many there are.
            if not c.input:  # kept until all is done, so that a run cut short need not start over
                files = hub_downloads(c.repo, c.revision, paths, downloads, keep=True)
            pieces = read_pieces(files, Options(c.text_column), progress.advance, keep_empty=True)
            both = open_shuffled(c, pieces, arrow)
        counts = {"train": len(both["train"]), "val": len(both["test"])}
        with ProgressBar(sum(counts.values()), " documents") as progress:
            for split, part in (("train", both["train"]), ("val", both["test"])):
                write_documents(writer, documents(split, part, progress), tokenizer)
        meta = writer.finish()
    if not c.input and not c.keep:
        shutil.rmtree(downloads, ignore_errors=True)
    print(describe_prepared(meta, folder, time.time() - start))
    if sum(counts.values()) == DOCUMENTS:
        tokens = {split: meta["splits"][split]["tokens"] for split in NANOGPT}
        print("these are the counts of nanoGPT" if tokens == NANOGPT else "nanoGPT counts differ")


if __name__ == "__main__":
    run(main)
