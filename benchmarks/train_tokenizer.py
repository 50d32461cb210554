"""How long a vocabulary takes to train and a text to encode: ours, and what others there are here.

python benchmarks/train_tokenizer.py --shakespeare=tinyshakespeare.txt

Trains on the source of the running Python's library, as data/python_stdlib/prepare.py picks it.
Prints one table; every row is timed in the same run, the median of `runs` with the spread.
"""

import importlib.util
import os
import platform
import runpy
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line


from bonsai import ROOT
from bonsai.system.errors import run
from bonsai.system.tables import columns
from bonsai.tokenizers import BPETokenizer
from bonsai.tokenizers.bpe import count_chunks, learn_merges, rust_tokens, tokens_of
from bonsai.tokenizers.patterns import GPT4
from configurator import configure, resolve_path

runs = 3  # of each measurement [>= 1]
vocab_size = 32768  # for the library's source [>= 256]
shakespeare = ""  # Tiny Shakespeare, for 4,096 tokens; left out if not given [path]

Row = tuple[str, list[float], str]


def library_source() -> list[str]:
    """The files that make the data set python_stdlib."""
    prepare = runpy.run_path(str(ROOT / "data" / "python_stdlib" / "prepare.py"))
    root = Path(sysconfig.get_paths()["stdlib"])
    files = prepare["source_files"](root)
    return [(root / file).read_bytes().decode("utf-8", "replace") for file in files]


def timed(calls: dict[str, Callable[[], object]]) -> tuple[dict[str, list[float]], dict]:
    """The seconds of each call, and what it gave. All take turns, so that a busy moment of the
    machine meets each of them."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    results = {}
    for _ in range(runs):
        for name, call in calls.items():
            start = time.perf_counter()
            results[name] = call()
            seconds[name].append(time.perf_counter() - start)
    return seconds, results


def rustbpe_alone(texts: list[str], size: int) -> list[bytes]:
    """As its own documentation uses it."""
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


def training(texts: list[str], size: int) -> list[Row]:
    """The trainers on the same texts."""
    calls = {
        "rustbpe alone": lambda: rustbpe_alone(texts, size),
        "fast path": lambda: rust_tokens(texts, size - 256, GPT4),
        "readable": lambda: readable(texts, size),
        "Hugging Face tokenizers": lambda: hugging_face(texts, size),
    }
    if importlib.util.find_spec("tokenizers") is None:
        calls.popitem()
    seconds, tokens = timed(calls)
    what = f"{sum(len(text.encode()) for text in texts) / 1e6:.1f} MB, {size:,} tokens"
    rows = []
    for name in calls:
        ratio = statistics.median(seconds[name]) / statistics.median(seconds["rustbpe alone"])
        notes = [f"{ratio:.2f}x rustbpe alone"]
        if name in ("fast path", "readable"):
            same = tokens[name] == tokens["rustbpe alone"]
            notes.append("the same merges" if same else "OTHER MERGES")
        rows.append((f"{name}, {what}", seconds[name], ", ".join(notes)))
    return rows


def encoding(texts: list[str]) -> list[Row]:
    tokens = rust_tokens(texts, vocab_size - 256, GPT4)
    fast, slow = BPETokenizer(tokens, GPT4), BPETokenizer(tokens, GPT4, fast=False)

    def by_itself() -> list[list[int]]:
        slow._cache.clear()
        return [slow.encode(text) for text in texts]

    seconds, ids = timed(
        {
            "encode, through tiktoken": lambda: [fast.encode(text) for text in texts],
            "encode, readable": by_itself,
        }
    )
    size = sum(len(text.encode()) for text in texts) / 1e6
    same = len({str(result) for result in ids.values()}) == 1
    note = "the same ids" if same else "OTHER IDS"
    return [
        (f"{name}, {size:.1f} MB", took, f"{size / statistics.median(took):.1f} MB/s, {note}")
        for name, took in seconds.items()
    ]


def measure() -> list[Row]:
    rows = []
    if shakespeare:
        rows += training([resolve_path(shakespeare).read_text(encoding="utf-8")], 4096)
    texts = library_source()
    return rows + training(texts, vocab_size) + encoding(texts[:100])


def machine() -> str:
    names = ("rustbpe", "tiktoken", "regex", "tokenizers")
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"no {name}")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return (
        f"commit {commit or 'unknown'}, Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, {', '.join(versions)}, {runs} runs"
    )


def main() -> None:
    configure(globals())
    print(f"{' '.join(['python', *sys.argv])}\n{machine()}")
    rows = [["", "median", "min", "max", ""]]
    for what, seconds, note in measure():
        middle = statistics.median(seconds)
        rows.append([what, *(f"{s:.2f} s" for s in (middle, min(seconds), max(seconds))), note])
    print(columns(rows))


if __name__ == "__main__":
    run(main)
