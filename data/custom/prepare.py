"""Any text of your own: .txt, .jsonl, .jsonl.gz and .parquet files become data/<name>/.

python data/custom/prepare.py --input=book.txt --name=book --tokenizer=char
python data/custom/prepare.py --input='posts/*.jsonl.gz' --name=posts --text_column=body
"""

import functools
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bonsai.corpus import Progress, find_files, read_pieces, split_documents, write_documents
from bonsai.errors import UserError, run
from bonsai.tokenizers import CharTokenizer, get
from bonsai.writer import Writer, summary
from configurator import configure

input = ""  # files, folders or patterns, several between commas
name = ""  # of the data set: it is written to data/<name>/
tokenizer = "gpt2"  # gpt2, gpt4, byte, char
text_column = "text"  # field of a .jsonl or .parquet row that holds the text
val_fraction = 0.05  # share of the documents that go to val, by a hash of the text
out = ""  # folder to write to instead of data/<name>/


def target_folder() -> Path:
    if not name and out:
        return Path(out)
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
        raise UserError(
            f"name is {name!r}: name the data set with --name=, in letters, digits, _ - and ."
        )
    return Path(out) if out else ROOT / "data" / name


def char_tokenizer(files: list[Path]) -> tuple[CharTokenizer, str]:
    """The tokenizer of all characters in the files, and the text that ends each document, because
    characters have no end-of-text token: a newline where there are several documents."""
    chars: set[str] = set()
    documents = 0
    for piece in read_pieces(files, text_column):
        chars.update(piece.text)
        documents += piece.first
    if not documents:
        raise UserError("there is no text in the input: every document is empty")
    separator = "\n" if documents > 1 else ""
    return CharTokenizer.from_text(chars.union(separator)), separator


def main() -> None:
    start = time.time()
    folder = target_folder()
    files = find_files(input, (Path(), ROOT))
    size = sum(file.stat().st_size for file in files)
    print(f"{len(files)} file{'s' * (len(files) != 1)}, {size / 1e6:.2f} MB")

    if tokenizer == "char":
        encoder, separator = char_tokenizer(files)
    else:
        encoder, separator = get(tokenizer), ""

    with Writer(folder, encoder) as writer, Progress(size) as progress:
        read = functools.partial(read_pieces, files, text_column)
        parts = split_documents(read, val_fraction, progress.advance)
        write_documents(writer, parts, encoder, separator=separator)
        meta = writer.finish()
    print(summary(meta, folder, time.time() - start))


if __name__ == "__main__":
    configure(globals())
    run(main)
