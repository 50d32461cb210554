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

from bonsai.corpus import (
    Advance,
    Piece,
    Progress,
    find_files,
    read_pieces,
    split_documents,
    write_documents,
)
from bonsai.errors import run
from bonsai.fetch import hub_files, hub_pieces
from bonsai.tokenizers import get
from bonsai.writer import Writer, summary
from configurator import configure

# what
input = ""  # local .parquet (or .jsonl, .jsonl.gz, .txt) files instead of the download
shards = 0  # how many shards, from the first; 0: all (15, of 2.15 GB and some 0.7B tokens each)
tokenizer = "gpt2"  # gpt2, gpt4 or byte
text_column = "text"  # field of a row that holds the text
val_fraction = 0.0005  # share of the documents that go to val, by a hash of the text
out = ""  # folder to write to; default: the folder of this script

# where it comes from
repo = "HuggingFaceFW/fineweb"  # on the Hugging Face hub; also HuggingFaceFW/fineweb-edu
revision = "main"  # branch or commit
folder = "sample/10BT"  # of the repository
keep = False  # keep the downloaded shards


def main() -> None:
    start = time.time()
    target = Path(out or HERE)
    downloads = target / "downloads"
    if input:
        files = find_files(input, (Path(), ROOT))[: shards or None]
        sizes = [file.stat().st_size for file in files]

        def read(advance: Advance) -> Iterator[Piece]:
            return read_pieces(files, text_column, advance)

    else:
        paths, sizes = zip(*hub_files(repo, revision, folder)[: shards or None])

        def read(advance: Advance) -> Iterator[Piece]:
            return hub_pieces(repo, revision, paths, downloads, text_column, advance, keep)

    encoder = get(tokenizer)
    encoder.encode("")  # loads the vocabulary: what can fail should fail before a long download
    print(f"{len(sizes)} file{'s' * (len(sizes) != 1)}, {sum(sizes) / 1e9:.2f} GB")

    with Writer(target, encoder) as writer, Progress(sum(sizes)) as progress:
        parts = split_documents(read, val_fraction, progress.advance)
        write_documents(writer, parts, encoder)
        meta = writer.finish()
    if not input and not keep:
        shutil.rmtree(downloads, ignore_errors=True)
    print(summary(meta, target, time.time() - start))


if __name__ == "__main__":
    configure(globals())
    run(main)
