"""All checks and measurements for a GPU, in stages of at most 4 minutes on one H100.

    python benchmarks/gpu.py --stages=tests,train,parts,decode,long,bytes  # all that needs no text
    python benchmarks/gpu.py --stages=race --text=text.xz    # repeat it until the race is done
    python benchmarks/gpu.py --stages=tests,train,parts,decode,race,long,bytes --toy --out=dry

Everything in calls of less than 5 minutes; the second one is to be repeated until the race and the
models of bytes are done:

    python benchmarks/gpu.py --stages=tests,train,parts,decode,long --peer=../nanoGPT --total=285
    python benchmarks/gpu.py --stages=race,bytes --peer=../nanoGPT --text=text.xz \\
        --total=285 --limit=285

A stage runs some programs of this repository. A program that has succeeded is not run again with
the same arguments, commit, GPU and torch, and rows of tables are not measured again, so an
interrupted call can be repeated. Nothing that a call has started outlives it, even if it is killed
(SIGKILL); however else it ends, it prints the tables of all measurements, which are in OUT. Only
one call at a time can use that folder.

Nothing is installed or downloaded: torch, numpy, tqdm and this repository are enough. Only
preparing --text also needs tiktoken, with GPT-2's vocabulary in TIKTOKEN_CACHE_DIR.
"""

import lzma
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

from benchmarks.processes import leave_by_exit_on_signals, supervised
from benchmarks.steps import Steps, alone_in, text_of
from bonsai import ROOT
from bonsai.files.access import exists, write_whole
from bonsai.system.commit import commit
from bonsai.system.errors import UserError, run
from configurator import Config, configure, resolve_path

# -----------------------------------------------------------------------------
stages = ""  # some of tests, train, parts, decode, race, long and bytes, in order [list]
out = "bench_out"  # folder for the programs' JSON, logs and tables [path]
peer = ""  # folder of a nanoGPT checkout to compare with [path]
text = ""  # a file or folder of text for the race, if there is no data/race_text [path]
total = 0  # seconds for all stages together; the next call does the rest; 0: no limit [>= 0]
limit = 240  # seconds for each stage [>= 1]
tokens = 0  # of a run of the race; 7372800 fits into a call; 0: race_gpu.py's default [>= 0]
force = False  # repeat finished programs
python = ""  # the Python that runs the programs; empty: this one [path]
toy = False  # a rehearsal with tiny models on a CPU
# -----------------------------------------------------------------------------


class Call:
    """The settings of one call, and the arguments that most programs get."""

    def __init__(self, c: Config, steps: Steps):
        self.c, self.steps, self.folder = c, steps, Path(c.out)
        self.out, self.peer = f"--out={c.out}", [f"--peer={c.peer}"] if c.peer else []
        self.force, self.device = ["--force"] * c.force, ["--device=cpu"] * c.toy


# ---- the stages: each returns whether all of its programs succeeded ----


def checks(call: Call) -> bool:
    program = "tests/benchmarks/test_gpu.py"
    return call.steps.run("tests", program, call.out, *call.force, *call.device)


def training(call: Call) -> bool:
    """Throughput beside the peer's; profiles of a step of the classic GPT-2 and of the fast one;
    the speed of a step as in a run."""
    rows = ["--sizes=124M,355M", "--modes=compiled"]
    if call.c.toy:
        rows = ["--sizes=toy", "--modes=eager", "--repeats=2"]
    words = [call.out, *rows, *call.peer, *call.force, *call.device]
    fast, model, steps_of_a_run = benched(call)
    ended_well = [
        call.steps.run("train", "benchmarks/train.py", *words),
        bench(call, "classic", *model, "--profile"),
        bench(call, "fast", fast, *model, "--profile"),
        bench(call, "fast_run", fast, *model, *steps_of_a_run),
    ]
    return all(ended_well)


def parts(call: Call) -> bool:
    """The gain of parts of a step: the update alone, beside torch's; and the fast run's step of
    `train` with the residual stream in float32."""
    rows = ["--sizes=toy,fast_toy", "--updates=2", "--repeats=2"] if call.c.toy else []
    words = [call.out, *rows, *call.force, *call.device]
    fast, model, steps_of_a_run = benched(call)
    stream = "--bfloat16_stream=False"
    ended_well = [
        call.steps.run("update", "benchmarks/update.py", *words),
        bench(call, "fast_run_float32", fast, *model, *steps_of_a_run, stream),
    ]
    return all(ended_well)


def benched(call: Call) -> tuple[str, list[str], list[str]]:
    """Arguments for bench.py: the fast recipe's config, the model's size, the steps of a run."""
    model = "--batch_size=32 --block_size=1024 --bias=False --vocab_size=50304 --real_data=False"
    if call.c.toy:
        model = "--n_layer=1 --n_head=1 --n_embd=32 --block_size=32 --vocab_size=99 "
        model += "--batch_size=2 --steps=2 --warmup=1 --real_data=False"
    run = [f"--micro_batches={2 if call.c.toy else 16}", "--steps=5", "--warmup=2"]
    return "config/fast_gpt2.py", model.split(), run


def bench(call: Call, name: str, *words: str) -> bool:
    """Measure one model with bench.py. NAME.txt gets the results in its log."""
    files = [f"--out_dir={call.folder / name}", f"--json={call.folder / name}.json"]
    try:
        return call.steps.run(name, "bench.py", *words, *files, *call.device)
    finally:
        said = text_of(call.folder / f"{name}.log")
        if found := re.search(r"^tokens/s.*", said, re.M | re.S):
            write_whole(call.folder / f"{name}.txt", f"{name}:\n{found[0]}")


def decoding(call: Call) -> bool:
    """One text at a time and 64, without compiled models, which take minutes; and sample.py."""
    rows = ["--sizes=124M", "--prompt=100", "--tokens=300"]
    rows += ["--kinds=bfloat16;bfloat16, graphs;int8, graphs"]
    model = []
    if call.c.toy:
        rows = ["--sizes=toy", "--prompt=10", "--tokens=30", "--repeats=2"]
        rows += ["--kinds=float32;int8, float32"]
        model = ["--n_layer=1", "--n_head=1", "--n_embd=16", "--block_size=16", "--repeats=1"]
        model += ["--options=--num_samples=2 --max_new_tokens=9"]
    rows += [call.out, *call.peer, *call.force, *call.device]
    model += [call.out, *call.peer, *call.force, *call.device]
    ended_well = [
        call.steps.run("decode", "benchmarks/decode.py", *rows),
        call.steps.run("sample", "benchmarks/sample.py", *model),
    ]
    return all(ended_well)


def race(call: Call) -> bool:
    """The race. A run with its evaluation takes up to a minute, so none begins in the last one."""
    data, words = "race_text", [f"--tokens={call.c.tokens}"] if call.c.tokens else []
    if call.c.toy:
        tiny = "--device=cpu --dtype=float32 --compile=False --n_layer=1 --n_head=1 --n_embd=32 "
        tiny += "--block_size=64"
        data, words = "race_toy", ["--tokens=512", "--block_size=64", "--shipped=2x2"]
        words += ["--batches=2x1", "--rates=1e-3,2e-3", f"--theirs={tiny}"]
        words += [f"--ours={tiny} --batch_size=2 --gradient_accumulation_steps=1"]
    if call.c.force:
        (call.folder / "race.json").unlink(missing_ok=True)
    if not prepared(call, data):
        return False
    minutes = max(0.0001, (call.steps.left() - 60) / 60)
    words += [call.out, f"--dataset={data}", *call.peer, f"--minutes={minutes:.4f}"]
    return call.steps.run("race", "benchmarks/race_gpu.py", *words)


def prepared(call: Call, data: str) -> bool:
    """Prepare the race's data if they are missing. Returns whether they are there."""
    text, tokenizer = call.c.text, "gpt2"
    if exists(ROOT / "data" / data / "meta.json"):
        if text:
            print(f"data/{data} has been prepared: --text is not read", flush=True)
        return True
    if call.c.toy:
        text, tokenizer = str(call.folder / "toy.txt.xz"), "byte"
        with lzma.open(text, "wb", preset=0) as f:
            f.writelines(page.read_bytes() for page in (ROOT / "docs").glob("*.md"))
    if not text:
        print("no text: set --text to a file or folder of some hundred MB", flush=True)
        return False
    endings = [".c", ".h", ".py", ".md"]
    if Path(text).is_file() and Path(text).suffix:
        endings.append(Path(text).suffix)  # may be that of a compressed file
    words = [f"--input={text}", f"--endings={','.join(endings)}", f"--name={data}"]
    words += [f"--tokenizer={tokenizer}", "--val_fraction=0.005"]
    return call.steps.measure("prepare", "data/custom/prepare.py", *words)


def long_contexts(call: Call) -> bool:
    """The savings of local attention."""
    words = ["--lengths=1024,4096,16384", "--n_head=12", "--n_embd=768"]
    if call.c.toy:
        words = ["--lengths=64,128", "--n_layer=2", "--n_embd=32", "--window=16"]
    words += [call.out, *call.force, *call.device]
    return call.steps.run("windows", "benchmarks/windows.py", *words)


def byte_models(call: Call) -> bool:
    """Models of bytes at equal FLOPs. A run takes a minute, most of it for compilation, so none
    begins in the last 90 s."""
    folder, scale = call.folder / "bytes", "toy" if call.c.toy else "gpu"
    if call.c.force:
        shutil.rmtree(folder, ignore_errors=True)
    there = exists(ROOT / "data" / "python_stdlib" / "meta.json")
    words = ["data/python_stdlib/prepare.py", "--vocab_size=0"]  # only bytes
    if not (there or call.steps.measure("prepare", *words)):
        return False
    minutes = max(0.0001, (call.steps.left() - (10 if call.c.toy else 90)) / 60)
    words = ["--quick", f"--scale={scale}", f"--out={folder}", *call.device]
    words += [f"--minutes={minutes:.4f}"]
    return call.steps.run("bytes", "benchmarks/bytes.py", *words)


STAGES = {  # name: its function, and its tables in OUT
    "tests": (checks, ["tests"]),
    "train": (training, ["train", "classic", "fast", "fast_run"]),
    "parts": (parts, ["update", "fast_run", "fast_run_float32"]),
    "decode": (decoding, ["decode", "sample"]),
    "race": (race, ["race"]),
    "long": (long_contexts, ["windows"]),
    "bytes": (byte_models, ["bytes/bytes"]),
}


# ---- a call ----


def check(c: Config) -> list[str]:
    """Check the settings; returns the names of the stages. Makes paths absolute, because the
    programs run in the repository. Raises UserError."""
    if os.name != "posix":
        raise UserError("this needs process groups and file locks: run it on Linux")
    names = [name for name in c.stages.split(",") if name]
    if not names:
        raise UserError("no stage given: set some, for example --stages=tests,train")
    for name in names:
        if name not in STAGES:
            raise UserError(f"unknown stage {name}: there are {', '.join(STAGES)}")
    for name in ("peer", "text"):
        c[name] = c[name] and os.path.abspath(resolve_path(c[name]))
    if c.peer and not exists(f"{c.peer}/model.py"):
        raise UserError(f"--peer={c.peer} has no model.py: give the folder of a nanoGPT checkout")
    if c.text and not exists(c.text):
        raise UserError(f"--text={c.text} does not exist")
    if not (found := shutil.which(c.python or sys.executable)):
        raise UserError(f"there is no {c.python}: set --python to another")
    c["out"], c["python"] = os.path.abspath(c.out), os.path.abspath(found)
    return names


def machine(c: Config) -> str:
    """The GPU and the torch that the programs' Python finds. Raises UserError."""
    if c.toy:
        return "a rehearsal"
    code = "import torch; print(torch.cuda.get_device_name(), torch.__version__)"
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with supervised(c.limit, [c.python, "-c", code], **options) as process:
        said = process.stdout.read()
    if process.returncode:
        hint = "set --python, or --toy=1 for a rehearsal on a CPU"
        raise UserError(f"{c.python} finds no torch with a CUDA GPU: {hint}")
    return said.strip()


def print_tables(folder: Path, names: list[str]) -> None:
    """Print the tables of these stages, also incomplete ones."""
    print()
    for name in names:
        texts = [text_of(folder / f"{table}.txt").rstrip("\n") for table in STAGES[name][1]]
        if found := "\n\n".join(filter(None, texts)):
            print(f"{name}:\n{found}\n")
    sys.stdout.flush()


def main(**settings) -> int:
    begin = time.monotonic()
    c = configure(globals(), settings=settings)
    names, failed = check(c), 0
    with alone_in(Path(c.out)) as lock:
        leave_by_exit_on_signals()
        about = f"{machine(c)}, commit {commit()}"
        last = begin + (c.total or math.inf)
        call = Call(c, Steps(Path(c.out), c.python, about, c.force, lock, last))
        try:
            for name in names:
                print(f"== {name}", flush=True)
                start = time.monotonic()
                call.steps.begin(c.limit)
                ended_well = STAGES[name][0](call)
                seconds = f"{time.monotonic() - start:.0f} s"
                if ended_well:
                    print(f"== {name}: done in {seconds}", flush=True)
                else:
                    failed = 1
                    print(f"== {name}: NOT done after {seconds}; repeat the command to go on")
        finally:
            print_tables(call.folder, names)
    return failed


if __name__ == "__main__":
    run(main)
