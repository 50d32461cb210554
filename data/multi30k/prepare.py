"""Multi30k, captions of photographs in German and English, as rows: source <sep> target <end>.

python data/multi30k/prepare.py
python data/multi30k/prepare.py --input=FOLDER      # train.de.gz, train.en.gz, val... are there

One row per pair, so that both a decoder-only GPT (train.py) and the encoder-decoder of
projects/translate read the same data. The loss counts the target only: the source and the padding
after the end are context (a mask, see bonsai/data/writer.py).
"""

import shutil
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import numpy as np

from bonsai.data.advice import command
from bonsai.data.fetch import download
from bonsai.data.readers import read_pieces
from bonsai.data.writer import Writer, disk_errors
from bonsai.files.access import file_size
from bonsai.files.atomic import whole_file
from bonsai.system.errors import UserError, run
from bonsai.tokenizers import EOT_TEXT, BPETokenizer
from configurator import Config, configure, refuse_idle, resolve_path

input = ""  # a folder with the .gz files instead of the download [path]
out = ""  # folder to write to; default: the folder of this script [path]
source = "de"  # language to translate from
target = "en"  # ... and to
vocab_size = 6000  # of both languages together, special tokens included [>= 300]
row_length = 96  # tokens; longer pairs are left out of training [>= 8]
url = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/"

SPLITS = {"train": "train", "val": "val", "test": "test_2016_flickr"}
SPECIAL = (EOT_TEXT, "<|sep|>", "<|pad|>")


def read_lines(c: Config, split: str, language: str, folder: Path) -> list[str]:
    """The sentences of a split; they are also kept in downloads/, where the test finds them."""
    name = f"{SPLITS[split]}.{language}.gz"
    path = folder / "downloads" / name
    if c.input:
        given = resolve_path(c.input) / name
        if not given.exists():
            raise UserError(f"there is no {given}: give the folder of Multi30k's task 1 files")
        file_size(given)  # that it is a file
        if given.resolve() != path.resolve():
            with disk_errors(path), open(given, "rb") as source, whole_file(path) as copy:
                shutil.copyfileobj(source, copy)
    elif not path.exists():
        download(c.url + name, path)
    text = b"".join(piece.data for piece in read_pieces([path])).decode("utf-8")
    return [line.strip() for line in text.removesuffix("\n").split("\n")]


def train_bpe(c: Config, texts: dict[str, list[str]]) -> BPETokenizer:
    """A vocabulary of both languages, as train_tokenizer.py makes them."""
    corpus = "\n".join(line for lines in texts.values() for line in lines)
    return BPETokenizer.train([corpus], c.vocab_size, special_tokens=SPECIAL)


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    refuse_idle(c, (c.input, "url", "with --input"))
    start, folder = time.time(), Path(c.out or HERE)
    with disk_errors(folder):
        (folder / "downloads").mkdir(parents=True, exist_ok=True)
    text = {
        split: {
            language: read_lines(c, split, language, folder) for language in (c.source, c.target)
        }
        for split in SPLITS
    }
    tokenizer = train_bpe(c, text["train"])
    sep, pad = (tokenizer.special_tokens[name] for name in SPECIAL[1:])
    left_out = 0
    with Writer(folder, tokenizer, row_length=c.row_length, masks=True) as writer:
        for split in ("train", "val"):
            pairs = list(zip(text[split][c.source], text[split][c.target]))
            if len(text[split][c.source]) != len(text[split][c.target]):
                raise UserError(f"{split}: the two languages have different numbers of lines")
            for a, b in pairs:
                question, answer = [*tokenizer.encode(a), sep], [*tokenizer.encode(b), writer.eot]
                fill = c.row_length - len(question) - len(answer)
                if fill < 0:
                    left_out += 1
                    continue
                row = np.array(question + answer + [pad] * fill)
                mask = np.repeat([0, 1, 0], [len(question), len(answer), fill])
                writer.add(split, row, mask=mask)
        meta = writer.finish()
    elsewhere = [f"--dataset={folder.resolve()}"] if c.out else []
    counts = [f"{name} {part['documents']:,}" for name, part in meta["splits"].items()]
    print(f"pairs: {', '.join(counts)}; {left_out} of more than {c.row_length} tokens left out")
    print(f"wrote train.bin, val.bin and meta.json to {folder} in {time.time() - start:.1f} s")
    print(f"next: {command('projects/translate/translate.py', elsewhere)}")


if __name__ == "__main__":
    run(main)
