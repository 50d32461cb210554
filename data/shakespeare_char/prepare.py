"""Tiny Shakespeare (or any text) by characters, with the very ids of nanoGPT's script.

python data/shakespeare_char/prepare.py
python data/shakespeare_char/prepare.py --input=my.txt
"""

import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line


from bonsai.data.advice import describe_prepared
from bonsai.data.corpus import split_text, write_documents
from bonsai.data.fetch import fetch_text
from bonsai.data.readers import read_whole
from bonsai.data.writer import Writer
from bonsai.system.errors import run
from bonsai.tokenizers import CharTokenizer
from configurator import configure, refuse_idle, resolve_path

input = ""  # a UTF-8 text file instead of the download [path]
out = ""  # folder to write to; default: the folder of this script [path]
url = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    downloaded = HERE / "input.txt"
    refuse_idle(
        c,
        (c.input, "url", "with --input"),
        (downloaded.exists(), "url", f"as {downloaded} is there"),
    )
    start = time.time()
    text = read_whole(resolve_path(c.input)) if c.input else fetch_text(c.url, downloaded)
    tokenizer = CharTokenizer.from_text(text)
    print(f"{len(text):,} characters, {tokenizer.vocab_size} different: ", end="")
    print(repr("".join(tokenizer.chars[:200])))
    with Writer(Path(c.out or HERE), tokenizer) as writer:
        write_documents(writer, split_text(text), tokenizer, eot=False)
        meta = writer.finish()
    print(describe_prepared(meta, writer.folder, time.time() - start))


if __name__ == "__main__":
    run(main)
