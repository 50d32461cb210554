"""Learn a vocabulary of your own from text, and report on it.

python train_tokenizer.py --input=book.txt --vocab_size=4096 --out=book.json
python data/custom/prepare.py --input=book.txt --name=book --tokenizer=book.json
"""

if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from bonsai import ROOT
from bonsai.data.finding import as_endings, find_files, total_size
from bonsai.data.pieces import Options, Seen
from bonsai.data.readers import read_pieces
from bonsai.files.access import write_whole, writing
from bonsai.files.atomic import is_stream
from bonsai.files.textfile import check_writable
from bonsai.system.errors import UserError, run
from bonsai.system.paths import split_paths
from bonsai.system.progress import ProgressBar
from bonsai.tokenizers import (
    EOT_TEXT,
    TOKENIZERS,
    BPETokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    UnknownText,
    get,
    study,
)
from bonsai.tokenizers.patterns import PATTERNS, named_pattern
from bonsai.tokenizers.ranks import read_ranks, read_vocab_bpe, write_ranks
from bonsai.tokenizers.tokenizer_json import tokenizer_json
from bonsai.tokenizers.view import html_page
from configurator import Config, configure, refuse_idle

input = ""  # files, folders or patterns, several between commas [paths]
endings = ""  # of further files that are plain text, such as .md,.py [list]
text_column = "text"  # field of a .jsonl or .parquet row that holds the text
split_on = ""  # what separates the documents of a text file: <|endoftext|>, or \n\n [escapes]
on_error = "stop"  # skip: leave out files and rows that are damaged or not UTF-8 [stop | skip]
max_bytes = 1_000_000_000  # train on about this many first bytes of the text; 0: all [>= 0]
out = "tokenizer.json"  # where the tokenizer goes [path]
# The vocabulary
type = "bpe"  # bpe: of bytes; sentencepiece_unigram, sentencepiece_bpe, or a tokenizer of your own
vocab_size = 4096  # the 256 bytes, merges and special tokens together [>= 256, <= 10_000_000]
pattern = "gpt4"  # cuts text into chunks: gpt4, gpt2, digits, none, or a regular expression
special_tokens = EOT_TEXT  # several between commas [list]
fast = True  # train with rustbpe; False: with bonsai/tokenizers/bpe.py, which gives the same merges
ranks = ""  # do not train: take the tokens of a .tiktoken file or of a vocab.bpe [path]
# Also written
tiktoken_out = ""  # the tokens as a .tiktoken file [path]
hf_out = ""  # the tokenizer as Hugging Face's tokenizer.json [path]
html = ""  # a page that shows the tokens of the beginning of the text [path]
# The report
stats = True  # print it
compare = "gpt2,gpt4"  # tokenizers to compare with [paths]
curve = True  # train once more, up to 65,536 tokens, to see the effect of the size
curve_png = ""  # a file into which to draw that curve [path]
n_embd = 768  # width of the embedding whose parameters are counted [>= 1]
stats_bytes = 20_000_000  # report on this many first bytes of the text [>= 0]

# the types: of what is made from a text, sentencepiece has two kinds
TYPES = ["bpe", "sentencepiece_unigram", "sentencepiece_bpe"]
TYPES += [name for name, kind in TOKENIZERS.items() if not kind.complete]
TYPES = [name for name in dict.fromkeys(TYPES) if name != "sentencepiece"]
OF_A_TEXT = "endings text_column split_on on_error max_bytes html curve_png n_embd stats_bytes"
# of what matplotlib writes
PICTURES = (".png", ".svg", ".pdf", ".eps", ".ps", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
PICTURES += (".gif", ".avif")


def documents(c: Config) -> Iterator[str]:
    """The texts of the input, long ones in pieces, with a progress bar."""
    files, done = find_files(c.input, (Path(), ROOT), as_endings(c.endings)), 0
    options, seen = Options(c.text_column, c.split_on, c.on_error), Seen()
    with ProgressBar(total_size(files), label="reading") as progress:
        for piece in read_pieces(files, options, progress.advance, seen=seen):
            yield piece.data.decode("utf-8")
            done += len(piece.data)
            if c.max_bytes and done >= c.max_bytes:
                print(f"stopped reading after {done / 1e6:.0f} MB of text: see --max_bytes")
                break
    for line in seen.lines(options):
        print(line)


def special_names(c: Config) -> list[str]:
    return [name for name in map(str.strip, c.special_tokens.split(",")) if name]


def train(c: Config, texts: Iterator[str]) -> Tokenizer:
    if c.type.startswith("sentencepiece_"):
        kind = c.type.removeprefix("sentencepiece_")
        return SentencePieceTokenizer.train(texts, c.vocab_size, kind)
    if c.type != "bpe":
        return TOKENIZERS[c.type].from_texts(list(texts), c.vocab_size)
    names = special_names(c)
    with contextlib.ExitStack() as stack:
        bar: ProgressBar | None = None  # begins after that of reading has ended

        def learnt(n: int) -> None:
            nonlocal bar
            if bar is None:
                merges = c.vocab_size - 256 - len(names)
                bar = stack.enter_context(ProgressBar(merges, unit=" merges", label="merging"))
            bar.advance(n - bar.done)

        return BPETokenizer.train(
            texts, c.vocab_size, named_pattern(c.pattern), names, fast=c.fast, progress=learnt
        )


def from_ranks(c: Config) -> BPETokenizer:
    """The tokens of another's file; the special tokens get the ids after them."""
    read = read_ranks if c.ranks.endswith(".tiktoken") else read_vocab_bpe
    tokens, names = read(c.ranks), special_names(c)
    return BPETokenizer(
        tokens, named_pattern(c.pattern), {name: len(tokens) + i for i, name in enumerate(names)}
    )


def others(c: Config) -> dict[str, Tokenizer]:
    """The tokenizers to compare with, without those that cannot be loaded here."""
    usable = {}
    for name in split_paths(c.compare):
        try:
            usable[name] = get(name)
            usable[name].encode("")
        except UserError as e:
            usable.pop(name, None)
            print(f"not compared with {name}: {e}")
    return usable


def print_report(c: Config, tokenizer: Tokenizer, texts: list[str]) -> None:
    try:
        print("\n" + study.compression({"this": tokenizer} | others(c), texts))
    except UnknownText as e:
        print(f"not compared with others, as it does not know all texts: {e}")
    if not isinstance(tokenizer, BPETokenizer):
        return
    print("\n" + study.longest_tokens(tokenizer))
    print("\n" + study.merges_as_learnt(tokenizer))
    print("\n" + study.unused_tokens(tokenizer, texts))
    if c.curve and c.pattern != "none" and any(texts):
        points = study.size_curve(texts, tokenizer.pattern, fast=c.fast)
        print("\n" + study.curve_table(points, c.n_embd))
        if c.curve_png:
            with writing(c.curve_png):
                study.draw_curve(points, c.n_embd, c.curve_png)
            print(f"wrote {c.curve_png}")


def check(c: Config) -> None:
    """Raise UserError, before an hour's training and not after it, for settings that do not go
    together and for files that cannot be written."""
    refuse_idle(
        c,
        (c.ranks, "vocab_size type fast", "with --ranks: nothing is trained"),
        (c.ranks and not c.input, OF_A_TEXT, "without --input: there is no text"),
        (c.type != "bpe", "pattern special_tokens fast curve_png", f"with --type={c.type}"),
        (not c.curve or c.pattern == "none", "curve_png n_embd", "without a curve"),
        (not c.stats, "curve_png n_embd", "with --stats=False"),
    )
    if c.type not in TYPES:
        raise UserError(f"type={c.type} is not one of {', '.join(TYPES)}")
    if c.tiktoken_out and c.type != "bpe":
        raise UserError("a .tiktoken file can hold the tokens of --type=bpe only")
    if not c.out.endswith(".json"):
        raise UserError(f"out is {c.out!r}: a tokenizer is written to a .json file")
    if c.curve_png and not c.curve_png.lower().endswith(PICTURES):
        hint = "a picture is written to a .png, .svg or .pdf file"
        raise UserError(f"curve_png is {c.curve_png!r}: {hint}")
    if c.hf_out and (c.type != "bpe" or c.pattern not in PATTERNS):
        known = ", ".join(PATTERNS)
        raise UserError(f"--hf_out takes --type=bpe with one of the patterns {known} alone")
    written = (c.out, c.tiktoken_out, c.hf_out, c.html, c.curve_png)
    places = [os.path.realpath(path) for path in written if path and not is_stream(path)]
    if twice := next((path for path in places if places.count(path) > 1), None):
        raise UserError(f"two results cannot be written to one file, {twice}: name another")
    sources = [c.ranks, *split_paths(c.input)]
    for path in filter(None, written):
        check_writable(path, "the results", sources)


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    check(c)
    start = time.time()
    kept: list[str] = []  # for the report

    def keep(texts: Iterator[str]) -> Iterator[str]:
        left = c.stats_bytes
        for text in texts:
            if left > 0:
                kept.append(text[:left])
                left -= len(text)
            yield text

    if c.ranks:
        tokenizer: Tokenizer = from_ranks(c)
        if c.input:
            kept += (text[: c.stats_bytes] for text in documents(c))
    else:
        tokenizer = train(c, keep(documents(c)))
    write_whole(c.out, json.dumps(tokenizer.to_dict()))
    print(f"wrote {c.out}: {tokenizer.vocab_size:,} tokens, {time.time() - start:.1f} s")
    if not c.ranks and tokenizer.vocab_size < c.vocab_size:
        left = "to merge" if c.type == "bpe" else "to learn"
        print(f"fewer than {c.vocab_size:,}: in this text there is nothing left {left}")
    if c.tiktoken_out:
        with writing(c.tiktoken_out):
            write_ranks(c.tiktoken_out, tokenizer.tokens)
        print(f"wrote {c.tiktoken_out}")
    if c.hf_out:
        write_whole(c.hf_out, json.dumps(tokenizer_json(tokenizer), ensure_ascii=False))
        print(f"wrote {c.hf_out}")
    if c.html:
        shown = {"this": tokenizer} | others(c)
        write_whole(
            c.html, html_page([text[:3000] for text in kept[:5]], shown, title=f"Tokens of {c.out}")
        )
        print(f"wrote {c.html}")
    if c.stats and kept:
        print_report(c, tokenizer, kept)


if __name__ == "__main__":
    run(main)
