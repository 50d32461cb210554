"""Seconds to train a vocabulary and to encode a text, by our tokenizers and by other packages.

    python benchmarks/tokenizer.py --shakespeare=tinyshakespeare.txt

Trains on the source of the running Python's library, the files that data/python_stdlib/prepare.py
selects. Prints one table with the median and range of `runs`. Programs that are compared take
turns. To continue an interrupted call, repeat the command: complete comparisons are kept.
"""

import importlib.util
import runpy
import sys
import sysconfig
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import torch

from benchmarks.harness import Results, in_turn, spread, table
from bonsai import ROOT
from bonsai.files.textfile import read_text
from bonsai.system.errors import run
from bonsai.tokenizers import BPETokenizer
from bonsai.tokenizers.bpe import count_chunks, learn_merges, rust_tokens, tokens_of
from bonsai.tokenizers.patterns import GPT4
from configurator import configure, resolve_path

runs = 3  # of each measurement [>= 1]
vocab_size = 32768  # for the library's source [>= 256]
shakespeare = ""  # the file of Tiny Shakespeare, for 4,096 tokens; empty: not measured [path]
out = ""  # folder for tokenizer.json and .txt; rows in it are not measured again [path]
force = False  # measure them again

PACKAGES = ("rustbpe", "tiktoken", "regex", "tokenizers")
COLUMNS = (
    ("", "what", ""), ("median, s", "seconds.median", ".2f"), ("min", "seconds.low", ".2f"),
    ("max", "seconds.high", ".2f"), ("", "note", ""),
)  # fmt: skip


def library_source() -> list[str]:
    """The texts of the data set python_stdlib."""
    prepare = runpy.run_path(str(ROOT / "data" / "python_stdlib" / "prepare.py"))
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [root / name for name in prepare["source_files"](root)]
    return [file.read_bytes().decode("utf-8", "replace") for file in files]


def timed(calls: dict[str, Callable[[], object]], runs: int) -> tuple[dict[str, dict], dict]:
    """The seconds of each call, and its result. Calls take turns, so that other load on the machine
    affects all of them."""
    seconds, results = {name: [] for name in calls}, {}
    for _, name in in_turn(calls, runs):
        start = time.perf_counter()
        results[name] = calls[name]()
        seconds[name].append(time.perf_counter() - start)
    return {name: spread(values) for name, values in seconds.items()}, results


def megabytes(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def rustbpe_alone(texts: list[str], size: int) -> list[bytes]:
    """Trains as in rustbpe's own documentation."""
    import rustbpe

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), size, pattern=GPT4)
    return [bytes(token) for token, _ in trainer.get_mergeable_ranks()]


def hugging_face(texts: list[str], size: int) -> None:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT4.replace("?+", "?").replace("++", "+")), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False),
    )


def readable(texts: list[str], size: int) -> list[bytes | None]:
    return tokens_of(learn_merges(count_chunks(texts, GPT4), size - 256))


def training(texts: list[str], size: int, runs: int) -> list[dict]:
    """A row for each trainer, on the same texts."""
    calls = {
        "rustbpe alone": lambda: rustbpe_alone(texts, size),
        "fast path": lambda: rust_tokens(texts, size - 256, GPT4),
        "readable": lambda: readable(texts, size),
        "Hugging Face tokenizers": lambda: hugging_face(texts, size),
    }
    if importlib.util.find_spec("tokenizers") is None:
        calls.popitem()
    seconds, tokens = timed(calls, runs)
    rows = []
    for name in calls:
        ratio = seconds[name]["median"] / seconds["rustbpe alone"]["median"]
        note = f"{ratio:.2f}x rustbpe alone"
        if name in ("fast path", "readable"):
            same = tokens[name] == tokens["rustbpe alone"]
            note += ", the same merges" if same else ", OTHER MERGES"
        what = f"{name}, {megabytes(texts):.1f} MB, {size:,} tokens"
        rows.append({"what": what, "seconds": seconds[name], "note": note})
    return rows


def encoding(texts: list[str], size: int, runs: int) -> list[dict]:
    tokens = rust_tokens(texts, size - 256, GPT4)
    fast, slow = BPETokenizer(tokens, GPT4), BPETokenizer(tokens, GPT4, fast=False)

    def by_itself() -> list[list[int]]:
        slow._cache.clear()
        return [slow.encode(text) for text in texts]

    through = "encode, through tiktoken"
    calls = {through: lambda: [fast.encode(t) for t in texts], "encode, readable": by_itself}
    seconds, ids = timed(calls, runs)
    same = "the same ids" if ids[through] == ids["encode, readable"] else "OTHER IDS"
    rows, size = [], megabytes(texts)
    for name, times in seconds.items():
        note = f"{size / times['median']:.1f} MB/s, {same}"
        rows.append({"what": f"{name}, {size:.1f} MB", "seconds": times, "note": note})
    return rows


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    packages = {name: installed(name) for name in PACKAGES}
    device = torch.device("cpu")
    results = Results("tokenizer", c.out, device, COLUMNS, again=c.force, packages=packages)
    print(", ".join(f"{name} {number}" for name, number in packages.items()), flush=True)
    library = library_source()
    parts = [("training", library, c.vocab_size), ("encoding", library[:100], c.vocab_size)]
    if c.shakespeare:
        parts.insert(0, ("training", [read_text(resolve_path(c.shakespeare))], 4096))
    rows = []
    for part, texts, size in parts:
        key = {"part": part, "MB": megabytes(texts), "tokens": size, "runs": c.runs}
        work = {"training": training, "encoding": encoding}[part], texts, size, c.runs
        rows += results.measure_together(key, lambda work=work: work[0](*work[1:]))
    results.finish(table(rows, COLUMNS))


if __name__ == "__main__":
    run(main)
