"""From text to train.bin: data/custom/prepare.py beside nanoGPT's way, start-up included.

python benchmarks/prepare.py --input=corpus.txt
python benchmarks/prepare.py --input=corpus.txt --rows=text --repeats=1 --verify=False

nanoGPT's way, written anew from what its openwebtext script does: documents in a table of the
datasets library, split, tokenized one by one with tiktoken by `map` in some processes, then all ids
written through a memory map in 1024 parts. The documents are 5,000 characters of the input each.
Making that table is not in its time, nor is the writing of the .jsonl in ours. Each run is a
process of its own; the ways take turns, and the table has medians. Memory is that of the largest
process.

The ids of every row are held against tiktoken's, each of them, once.
"""

import collections
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import numpy as np

from bonsai.data.finding import find_files
from bonsai.data.readers import read_pieces
from bonsai.system.errors import UserError, run
from bonsai.tokenizers import get
from configurator import configure

# -----------------------------------------------------------------------------
input = ""  # a text file (or files) in UTF-8 [paths]
rows = "nanogpt,tokenizer,text,jsonl"  # tokenizer: our program without gigatoken [list]
repeats = 3  # of which the table has the median [>= 1]
workers = 2  # processes of nanoGPT's way, threads of ours [>= 1]
characters = 5000  # of a document [>= 1]
verify = True  # hold all ids against tiktoken's
folder = ""  # for the files of the runs; default: a temporary one [path]
out = ""  # write the numbers to this .json file [path]
# -----------------------------------------------------------------------------

EOT = 50256


ROWS = ("nanogpt", "tokenizer", "text", "jsonl")


def make_table(jsonl: str, table: str) -> None:
    """The documents as a table on the disk; runs in a process of its own."""
    import datasets

    datasets.disable_progress_bars()
    made = datasets.Dataset.from_json(jsonl, cache_dir=f"{table}.cache")
    made.save_to_disk(table)
    shutil.rmtree(f"{table}.cache")


def nanogpt_way(table: str, target: str, workers: int) -> None:
    """Runs in a process of its own."""
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
    code = f"import sys; sys.path[:0] = [{str(ROOT / 'benchmarks')!r}]; import prepare; "
    return [sys.executable, "-c", f"{code}prepare.{function}{arguments!r}"]


def command(row: str, text: Path, jsonl: Path, target: Path) -> list[str]:
    if row == "nanogpt":
        return call("nanogpt_way", f"{jsonl}.table", str(target), workers)
    source = jsonl if row == "jsonl" else text
    encoder = "tokenizer" if row == "tokenizer" else "auto"
    return [
        *(sys.executable, str(ROOT / "data/custom/prepare.py"), f"--input={source}"),
        *(f"--out={target}", f"--workers={workers}", f"--encoder={encoder}"),
    ]


def timed(arguments: list[str], log: Path) -> tuple[float, float]:
    """(seconds, MB of memory) of a program. Raises UserError with its last words if it fails."""
    start = time.perf_counter()
    with open(log, "w") as f:
        process = subprocess.Popen(arguments, stdout=f, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise UserError(f"{arguments[1]} failed: {log.read_text().strip().splitlines()[-1:]}")
    return seconds, usage.ru_maxrss / 1024


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
    """Compare every id with those of tiktoken's encode_ordinary: in order for one text, as a bag
    of documents where they were split by a hash or shuffled."""
    bins = [np.memmap(target / f"{name}.bin", dtype="<u2", mode="r") for name in ("train", "val")]
    bpe = get("gpt2")._bpe
    if row not in ("text", "tokenizer"):
        found = collections.Counter()
        for ids in bins:
            ends = np.flatnonzero(ids == EOT)
            for start, end in zip([0, *(ends[:-1] + 1)], ends):
                found[ids[start:end].tobytes()] += 1
        wanted = collections.Counter(
            np.array(bpe.encode_ordinary(text), "<u2").tobytes()
            for text in documents(text, characters)
        )
        return found == wanted
    # One text, cut in two where no token crosses or at a line end: the two texts are encoded.
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
    """Runs in a process of its own, so that its memory is not taken for that of the next run."""
    sys.exit(0 if ids_are_tiktokens(row, Path(text), Path(target), characters) else 3)


def main() -> None:
    names = rows.split(",")
    if unknown := set(names) - set(ROWS):
        raise UserError(f"rows={rows}: {unknown.pop()!r} is not one of {', '.join(ROWS)}")
    (text,) = find_files(input)[:1]
    size = text.stat().st_size / 1e6
    print(f"{text.name}: {size:,.1f} MB; {workers} workers, {repeats} runs in turn")
    times: dict[str, list[float]] = collections.defaultdict(list)
    memory: dict[str, float] = collections.defaultdict(float)
    same: dict[str, bool | None] = dict.fromkeys(names)
    with tempfile.TemporaryDirectory(dir=folder or None) as temporary:
        place = Path(temporary)
        jsonl = place / "documents.jsonl"
        if {"nanogpt", "jsonl"} & set(names):
            with open(jsonl, "w", encoding="utf-8") as f:
                f.writelines(json.dumps({"text": d}) + "\n" for d in documents(text, characters))
        if "nanogpt" in names:
            timed(call("make_table", str(jsonl), f"{jsonl}.table"), place / "log.txt")
            if "jsonl" not in names:  # nanoGPT's way needs ten times the text on the disk as it is
                jsonl.unlink()
        for repeat in range(repeats):
            for row in names:
                target = place / "out"
                target.mkdir()
                seconds, megabytes = timed(command(row, text, jsonl, target), place / "log.txt")
                times[row].append(seconds)
                memory[row] = max(memory[row], megabytes)
                print(f"{row}: {seconds:.2f} s, {size / seconds:.1f} MB/s", flush=True)
                if verify and not repeat:
                    arguments = call("check", row, str(text), str(target), characters)
                    status = subprocess.run(arguments).returncode
                    if status not in (0, 3):
                        raise UserError(f"the check of {row} itself failed: see above")
                    same[row] = status == 0
                shutil.rmtree(target)

    import torch  # not before: a program starts with its parent's memory in its account

    from bonsai.files.jsonfile import write_json
    from bonsai.system.provenance import header, provenance
    from bonsai.system.tables import spread, table

    base = spread(times["nanogpt"])["median"] if "nanogpt" in names else None
    found = []
    for row in names:
        s = spread(times[row])
        found.append(
            {
                "row": row,
                "seconds": s["median"],
                "spread": (s["high"] - s["low"]) / s["median"],
                "rate": size / s["median"],
                "ratio": base / s["median"] if base else None,
                "memory": memory[row],
                "same": {None: "not checked", True: "yes", False: "NO"}[same[row]],
            }
        )
    columns = (("way", "row", ""), ("seconds", "seconds", ".2f"), ("spread", "spread", ".0%"))
    columns += (("MB/s", "rate", ".1f"), ("times nanoGPT's way", "ratio", ".1f"))
    columns += (("peak memory, MB", "memory", ".0f"), ("ids are tiktoken's", "same", ""))
    device = torch.device("cpu")
    print("\n".join([*header(device), "", table(found, columns)]))
    if out:
        write_json(out, {**provenance(device), "input": text.name, "MB": size, "rows": found})


if __name__ == "__main__":
    run(lambda: configure(globals()), main)
