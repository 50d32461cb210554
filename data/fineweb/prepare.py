"""FineWeb's 10B-token sample in GPT-2's tokens, shard by shard: one shard on the disk at a time.

python data/fineweb/prepare.py --shards=1
python data/fineweb/prepare.py --input='shards/*.parquet'
"""

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line


from bonsai.data.advice import describe_prepared
from bonsai.data.corpus import split_documents, write_documents
from bonsai.data.fetch import hub_downloads, hub_files
from bonsai.data.finding import find_files, total_size
from bonsai.data.pieces import Options, Piece, Seen
from bonsai.data.readers import read_pieces
from bonsai.data.writer import Writer
from bonsai.system.errors import run
from bonsai.system.progress import ProgressBar
from bonsai.tokenizers import get
from configurator import configure, refuse_idle

# what
input = ""  # local .parquet (or .jsonl, .jsonl.gz, .txt) files instead of the download [paths]
shards = 0  # how many, from the first; 0: all (15, of 2.15 GB and some 0.7B tokens each) [>= 0]
tokenizer = "gpt2"  # [gpt2 | gpt4 | byte]
text_column = "text"  # field of a row that holds the text
on_error = "stop"  # skip: leave out files and rows that cannot be read [stop | skip]
val_fraction = 0.0005  # share of the documents that go to val, by a hash of the text [> 0, < 1]
shard_tokens = 0  # tokens per file: train_00000.bin, ...; 0: all in one train.bin [>= 0]
out = ""  # folder to write to; default: the folder of this script [path]

# where it comes from
repo = "HuggingFaceFW/fineweb"  # on the Hugging Face hub; also HuggingFaceFW/fineweb-edu
revision = "main"  # branch or commit
folder = "sample/10BT"  # of the repository
keep = False  # keep the downloaded shards


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    refuse_idle(c, (c.input, "repo revision folder keep", "with --input"))
    start = time.time()
    target = Path(c.out or HERE)
    downloads = target / "downloads"
    options, seen = Options(c.text_column, on_error=c.on_error), Seen()
    if c.input:
        files = find_files(c.input, (Path(), ROOT))[: c.shards or None]
        sizes = [total_size([file]) for file in files]

        def read(**how) -> Iterator[Piece]:
            return read_pieces(files, options, seen=seen, **how)

    else:
        paths, sizes = zip(*hub_files(c.repo, c.revision, c.folder)[: c.shards or None])

        def read(**how) -> Iterator[Piece]:
            local = hub_downloads(c.repo, c.revision, paths, downloads, c.keep)
            return read_pieces(local, options, seen=seen, **how)

    encoder = get(c.tokenizer)
    encoder.encode("")  # loads the vocabulary: what can fail should fail before a long download
    total = sum(sizes)
    print(f"{len(sizes)} file{'s' * (len(sizes) != 1)}, {total / 1e9:.2f} GB")

    with (
        Writer(target, encoder, shard_tokens=c.shard_tokens) as writer,
        ProgressBar(total) as progress,
    ):
        parts = split_documents(read, c.val_fraction, progress.advance)
        write_documents(writer, parts, encoder)
        meta = writer.finish()
    if not c.input and not c.keep:
        shutil.rmtree(downloads, ignore_errors=True)
    print("\n".join([*seen.left_out(), describe_prepared(meta, target, time.time() - start)]))


if __name__ == "__main__":
    run(main)
