"""From text to train.bin: data/custom/prepare.py beside nanoGPT's way, start-up included.

    python benchmarks/data.py --input=corpus.txt
    python benchmarks/data.py --input=corpus.txt --rows=text --repeats=1 --verify=False

nanoGPT's way is rewritten after its openwebtext script: documents in a table of the datasets
library are split, tokenized one by one with tiktoken by `map` in several processes, and then all
ids are written through a memory map in 1024 parts. Documents are pieces of 5,000 characters of the
input. Its time does not include making that table, and ours not writing the .jsonl. Each run is a
process of its own; the ways take turns, and the table has medians. Memory is that of the largest
process. For every row all ids are compared with tiktoken's, once. With --out an interrupted call
goes on with the next run when the command is repeated.
"""

import collections
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import numpy as np

from benchmarks.processes import supervised
from bonsai import ROOT
from bonsai.data.finding import find_files
from bonsai.data.readers import read_pieces
from bonsai.files.textfile import check_writable
from bonsai.system.errors import UserError, run
from bonsai.tokenizers import get
from configurator import Config, configure

# harness.py is imported only in main: it loads torch, which processes that run functions of this
# file do not need.

# -----------------------------------------------------------------------------
input = ""  # a text file (or files) in UTF-8 [paths]
rows = "nanogpt,tokenizer,text,jsonl"  # tokenizer: our program without gigatoken [list]
repeats = 3  # the table has their median [>= 1]
workers = 2  # processes of nanoGPT's way, threads of ours [>= 1]
characters = 5000  # of a document [>= 1]
verify = True  # compare all ids with tiktoken's
folder = ""  # for the files of the runs; empty: a temporary one [path]
out = ""  # folder for data.json and .txt; runs in it are not repeated [path]
force = False  # repeat them
# -----------------------------------------------------------------------------

EOT = 50256
# Runs a program, then prints a line with its seconds and the memory of the largest process
TIMED = """
import resource, subprocess, sys, time
begin = time.perf_counter()
status = subprocess.call(sys.argv[1:])
seconds = time.perf_counter() - begin
if status:
    sys.exit(1)
print(seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
ROWS = ("nanogpt", "tokenizer", "text", "jsonl")
COLUMNS = (
    ("way", "way", ""), ("seconds", "seconds.median", ".2f"), ("spread", "seconds.spread", ".0%"),
    ("MB/s", "rate", ".1f"), ("times nanoGPT's way", "ratio", ".1f"),
    ("peak memory, MB", "memory", ".0f"), ("ids are tiktoken's", "same", ""),
)  # fmt: skip


def make_table(jsonl: str, table: str) -> None:
    """Write the documents as a table to the disk. Runs in a process of its own."""
    import datasets

    datasets.disable_progress_bars()
    made = datasets.Dataset.from_json(jsonl, cache_dir=f"{table}.cache")
    made.save_to_disk(table)
    shutil.rmtree(f"{table}.cache")


def nanogpt_way(table: str, target: str, workers: int) -> None:
    """From the table to train.bin and val.bin. Runs in a process of its own."""
    import datasets
    import tiktoken

    datasets.disable_progress_bars()
    encoding = tiktoken.get_encoding("gpt2")
    both = datasets.load_from_disk(table).train_test_split(test_size=0.05, seed=2357, shuffle=True)

    def tokenize(row: dict) -> dict:
        ids = [*encoding.encode_ordinary(row["text"]), EOT]
        return {"ids": ids, "len": len(ids)}

    caches = {name: f"{target}/{name}.arrow" for name in both}
    both = both.map(tokenize, remove_columns=["text"], num_proc=workers, cache_file_names=caches)
    for name, part in (("train", both["train"]), ("val", both["test"])):
        total = int(np.sum(part["len"], dtype=np.uint64))
        ids = np.memmap(f"{target}/{name}.bin", dtype=np.uint16, mode="w+", shape=(total,))
        start, shards = 0, min(1024, len(part))
        for i in range(shards):
            shard = part.shard(num_shards=shards, index=i, contiguous=True).with_format("numpy")
            values = np.concatenate(shard["ids"])
            ids[start : start + len(values)] = values
            start += len(values)
        ids.flush()


def call(function: str, *arguments: str | int) -> list[str]:
    """The command that calls a function of this file."""
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}]; from benchmarks import data; "
    return [sys.executable, "-c", f"{code}data.{function}{arguments!r}"]


def command(row: str, text: Path, jsonl: Path, target: Path, workers: int) -> list[str]:
    if row == "nanogpt":
        return call("nanogpt_way", f"{jsonl}.table", str(target), workers)
    source = jsonl if row == "jsonl" else text
    encoder = "tokenizer" if row == "tokenizer" else "auto"
    options = [f"--input={source}", f"--out={target}", f"--workers={workers}"]
    program = str(ROOT / "data" / "custom" / "prepare.py")
    return [sys.executable, program, *options, f"--encoder={encoder}"]


def timed(arguments: list[str], log: Path) -> tuple[float, float]:
    """(seconds, MB of memory) of a program. Raises UserError with its last line if it fails.

    A small process starts it, because the peak memory that the system reports for a program
    includes that of the process which has started it.
    """
    small = [sys.executable, "-S", "-c", TIMED, *arguments]
    with (
        open(log, "w") as f,
        supervised(math.inf, small, stdout=f, stderr=subprocess.STDOUT) as process,
    ):
        status = process.wait()
    last = log.read_text().strip().splitlines()[-1:]
    if status:
        raise UserError(f"{arguments[1]} failed: {' '.join(last)}")
    seconds, kilobytes = map(float, last[0].split())
    return seconds, kilobytes / 1024


def documents(text: Path, characters: int) -> Iterator[str]:
    """The text cut into documents of so many characters."""
    rest = ""
    for piece in read_pieces([text]):
        rest += piece.data.decode("utf-8")
        whole = len(rest) - len(rest) % characters
        yield from (rest[i : i + characters] for i in range(0, whole, characters))
        rest = rest[whole:]
    if rest:
        yield rest


def ids_are_tiktokens(row: str, text: Path, target: Path, characters: int) -> bool:
    """Compare all ids with those of tiktoken's encode_ordinary: in order for one text; as a
    multiset of documents if these were split by a hash or shuffled."""
    bins = [np.memmap(target / f"{name}.bin", dtype="<u2", mode="r") for name in ("train", "val")]
    bpe = get("gpt2")._bpe
    if row not in ("text", "tokenizer"):
        ours = collections.Counter()
        for ids in bins:
            ends = np.flatnonzero(ids == EOT)
            for start, end in zip([0, *(ends[:-1] + 1)], ends):
                ours[ids[start:end].tobytes()] += 1
        theirs = collections.Counter(
            np.array(bpe.encode_ordinary(text), "<u2").tobytes()
            for text in documents(text, characters)
        )
        return ours == theirs
    # One text was cut into two splits, where no token crosses or at a line end: each is encoded.
    meta = json.loads((target / "meta.json").read_text())
    border, at = meta["splits"]["train"]["bytes"], 0
    expected = {0: [], 1: []}
    for piece in read_pieces([text]):
        cut = min(max(border - at, 0), len(piece.data))
        for i, data in enumerate((piece.data[:cut], piece.data[cut:])):
            ids = bpe.encode_ordinary(data.decode("utf-8"))
            expected[i].append(np.array(ids, "<u2"))
        at += len(piece.data)
    return all(np.array_equal(np.concatenate([*expected[i], [EOT]]), bins[i]) for i in expected)


def check(row: str, text: str, target: str, characters: int) -> None:
    """Runs in a process of its own, so that its memory does not count for the next run."""
    sys.exit(0 if ids_are_tiktokens(row, Path(text), Path(target), characters) else 3)


def measure(c: Config, names: list[str], text: Path, place: Path, results) -> None:
    """Do all missing runs, in turn. Each way has a row, which is written after each run: with the
    seconds of its runs, the largest memory, and whether the ids are right."""
    from benchmarks.harness import in_turn, spread

    jsonl, size = place / "documents.jsonl", text.stat().st_size / 1e6
    rows = {row["way"]: row for row in results.rows}  # from an interrupted call
    for name in names:
        rows.setdefault(name, {"way": name, "each": [], "memory": 0.0, "same": "not checked"})
    left = {name for name in names if len(rows[name]["each"]) < c.repeats}
    if {"nanogpt", "jsonl"} & left:
        with open(jsonl, "w", encoding="utf-8") as f:
            f.writelines(json.dumps({"text": d}) + "\n" for d in documents(text, c.characters))
    if "nanogpt" in left:
        timed(call("make_table", str(jsonl), f"{jsonl}.table"), place / "log.txt")
        if "jsonl" not in left:  # nanoGPT's way alone needs ten times the text's size on the disk
            jsonl.unlink()
    for repeat, name in in_turn(names, c.repeats):
        row = rows[name]
        if repeat < len(row["each"]):
            continue
        target = place / "out"
        target.mkdir()
        program = command(name, text, jsonl, target, c.workers)
        seconds, megabytes = timed(program, place / "log.txt")
        print(f"{name}: {seconds:.2f} s, {size / seconds:.1f} MB/s", flush=True)
        if c.verify and row["same"] == "not checked":
            program = call("check", name, str(text), str(target), c.characters)
            with supervised(math.inf, program) as process:
                status = process.wait()
            if status not in (0, 3):
                raise UserError(f"the check of {name} itself failed: see above")
            row["same"] = "NO" if status else "yes"
        shutil.rmtree(target)
        row["each"], row["memory"] = [*row["each"], seconds], max(row["memory"], megabytes)
        row["seconds"] = spread(row["each"])
        row["rate"] = size / row["seconds"]["median"]
        theirs = rows.get("nanogpt", {}).get("seconds")
        for other in rows.values() if theirs else ():
            if "seconds" in other:
                other["ratio"] = theirs["median"] / other["seconds"]["median"]
        results.put(row for row in rows.values() if row["each"])


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    names = c.rows.split(",")
    if unknown := set(names) - set(ROWS):
        raise UserError(f"rows={c.rows}: {unknown.pop()!r} is not one of {', '.join(ROWS)}")
    if c.out:
        check_writable(Path(c.out) / "data.json", "the results")
    text = find_files(c.input)[0]
    size = text.stat().st_size / 1e6

    import torch

    from benchmarks.harness import Results

    about = {"input": text.name, "MB": size, "workers": c.workers, "characters": c.characters}
    results = Results("data", c.out, torch.device("cpu"), COLUMNS, again=c.force, **about)
    print(f"{text.name}: {size:,.1f} MB; {c.workers} workers, {c.repeats} runs in turn")
    with tempfile.TemporaryDirectory(dir=c.folder or None) as place:
        measure(c, names, text, Path(place), results)
    results.finish()


if __name__ == "__main__":
    run(main)
