"""Any text of your own, or a data set of the Hugging Face hub, becomes data/<name>/.

python data/custom/prepare.py --input=book.txt --name=book --tokenizer=char
python data/custom/prepare.py --input='posts/*.jsonl.gz' --name=posts --text_column=body
python data/custom/prepare.py --hub=roneneldan/TinyStories --name=stories --tokenizer=bpe.json
"""

import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line


from bonsai.data.advice import describe_prepared
from bonsai.data.corpus import char_tokenizer, split_documents, write_documents
from bonsai.data.pieces import Options, Seen
from bonsai.data.sources import from_settings
from bonsai.data.writer import Writer, named_folder
from bonsai.system.errors import run
from bonsai.system.progress import ProgressBar
from bonsai.tokenizers import get
from configurator import Config, configure, refuse_idle, resolve_path

# what
input = ""  # files, folders or patterns, several between commas [paths]
endings = ""  # of further files that are plain text, such as .md,.py [list]
text_column = "text"  # field of a .jsonl or .parquet row that holds the text
split_on = ""  # what stands between the documents of a text file: <|endoftext|>, or \n\n [escapes]
on_error = "stop"  # skip: leave out files and rows that are damaged or not UTF-8 [stop | skip]

# or a data set of the Hugging Face hub
hub = ""  # its name, such as roneneldan/TinyStories
revision = "main"  # branch or commit
files = "*"  # pattern of the paths to take; default: those of the train split, if they say so
keep = False  # keep the downloaded files

# into what
name = ""  # of the data set: it is written to data/<name>/
out = ""  # folder to write to instead of data/<name>/ [path]
tokenizer = "gpt2"  # gpt2, gpt4, byte, char, or a file that train_tokenizer.py wrote [path]
val_fraction = 0.05  # share of the documents that go to val, by a hash of the text [> 0, < 1]
shard_tokens = 0  # tokens per file: train_00000.bin, train_00001.bin, ...; 0: one train.bin [>= 0]

# how
workers = 0  # threads that encode; 0: one per core [>= 0]
encoder = "auto"  # auto: gigatoken where it can, else the tokenizer [auto | gigatoken | tokenizer]


def target_folder(c: Config) -> Path:
    if c.out and not c.name:
        return Path(c.out)
    named = named_folder(c.name)
    return Path(c.out) if c.out else named


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    refuse_idle(
        c,
        (not c.hub, "revision files keep", "without --hub"),
        (c.hub, "endings", "with --hub: see --files"),
    )
    start = time.time()
    folder = target_folder(c)
    options, seen = Options(c.text_column, c.split_on, c.on_error), Seen()
    read, size = from_settings(c, folder, options, seen)
    print(f"{size / 1e6:,.2f} MB to read")
    if c.tokenizer == "char":
        chosen, terminator = char_tokenizer(read())
    else:
        path = resolve_path(c.tokenizer)
        chosen, terminator = get(path if path.is_file() else c.tokenizer), ""
    chosen.encode("")  # loads the vocabulary: what can fail should fail before a long download

    with (
        Writer(folder, chosen, shard_tokens=c.shard_tokens) as writer,
        ProgressBar(size) as progress,
    ):
        parts = split_documents(read, c.val_fraction, progress.advance)
        encode = write_documents(
            writer, parts, chosen, terminator=terminator, workers=c.workers, encoder=c.encoder
        )
        meta = writer.finish()
    if c.hub and not c.keep:
        shutil.rmtree(folder / "downloads", ignore_errors=True)
    print("\n".join([f"encoded by {encode.name}", *seen.lines(options)]))
    print(describe_prepared(meta, folder, time.time() - start))


if __name__ == "__main__":
    run(main)
