"""What long contexts of bytes cost: generating 8,192 of them, and training on up to 65,536.

    python benchmarks/byte_costs.py                      # both parts, some 5 minutes on two cores
    python benchmarks/byte_costs.py --part=generation    # with caches, without, and a dense GPT
    python benchmarks/byte_costs.py --part=context --dense_limit=65536

Generation: MEGABYTE and a dense GPT of equal training FLOPs per byte at that context, with caches,
`rows` texts at a time; and MEGABYTE without its caches, timed at some lengths and summed over all.
Context: a training step at each length, in a process of its own, so that its memory is its own.
The weights are random: nothing here depends on them.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import torch

from bonsai.engine import SamplingParams, generate, prepare
from bonsai.files.access import write_whole
from bonsai.files.jsonfile import write_json
from bonsai.models.table import build_model
from bonsai.system.errors import UserError, run
from bonsai.system.provenance import provenance
from bonsai.system.runtime import memory_in_use, setup
from bonsai.system.tables import table
from bonsai.training.step import OPTIMIZER, TrainingStep, synthetic
from configurator import configure

# -----------------------------------------------------------------------------
part = "both"  # what is measured [both | generation | context]
rows = "1,8"  # texts at a time, for generation [list of int >= 1]
length = 8192  # bytes to generate, and the context [>= 1]
contexts = "1024,2048,4096,8192,16384,32768,65536"  # lengths to train on [list of int >= 2]
dense_limit = 16384  # the dense GPT is timed up to here, and computed beyond [>= 0]
step = ""  # one step alone, such as MEGABYTE:65536; the last line is JSON
out = "out-byte-costs"  # folder for byte_costs.json and .txt [path]
device = "auto"  # cpu, cuda; auto: the first that is there
dtype = "auto"  # of training; a CPU generates in float32 [auto | float32 | bfloat16 | float16]
# -----------------------------------------------------------------------------

BLOCK = dict(
    bias=False, position="rope", norm="rmsnorm", norm_gain=False, qk_norm=True, activation="relu2"
)
# 18.4 and 18.2 MFLOPs per byte forward at a context of 8,192; at others they are not equal
GENERATION = {
    "dense": dict(model="gpt", n_layer=4, n_head=4, n_embd=128),
    "MEGABYTE": dict(model="megabyte", patch_size=8, n_layer=8, n_head=8, n_embd=768)
    | dict(local_layer=2, local_head=4, local_embd=128),
}
# 2.7 and 2.6 at 512, where benchmarks/bytes.py compares them
CONTEXT = {
    "dense": dict(model="gpt", n_layer=4, n_head=4, n_embd=128),
    "MEGABYTE": dict(model="megabyte", patch_size=8, n_layer=3, n_head=6, n_embd=384)
    | dict(local_layer=3, local_head=4, local_embd=128),
}
GENERATION_COLUMNS = (
    ("model", "model", ""),
    ("caches", "caches", ""),
    ("rows", "rows", "d"),
    ("MFLOPs/byte", "mflops", ".1f"),
    ("layers in a row", "serial", ".2f"),
    ("seconds", "seconds", ",.1f"),
    ("bytes/s", "rate", ",.0f"),
    ("times dense", "ratio", ".2f"),
)
CONTEXT_COLUMNS = (
    ("context", "T", ",d"),
    ("dense MFLOPs/byte", "dense_mflops", ",.2f"),
    ("MEGABYTE", "MEGABYTE_mflops", ",.2f"),
    ("dense µs/byte", "dense_us", ",.1f"),
    ("MEGABYTE", "MEGABYTE_us", ",.1f"),
    ("dense GiB", "dense_gib", ".2f"),
    ("MEGABYTE", "MEGABYTE_gib", ".2f"),
)


def make(settings: dict, T: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(settings["model"], {**BLOCK, **settings, "block_size": T, "vocab_size": 257})


@torch.no_grad()
def uncached_seconds(model, ids: torch.Tensor, points: int = 7) -> float:
    """Seconds for every byte computed from all before it: timed at some lengths, summed by the
    trapezoidal rule."""
    at = torch.linspace(1, ids.size(1), points).long().tolist()
    model(ids[:, :2])  # the first call is slower
    times = []
    for n in at:
        begin = time.perf_counter()
        model(ids[:, :n])[0].sum().item()
        times.append(time.perf_counter() - begin)
    pairs = zip(times, times[1:], at, at[1:])
    return sum((a + b) / 2 * (y - x) for a, b, x, y in pairs)


def generation() -> list[dict]:
    """Seconds for `length` bytes, by model and number of rows."""
    runtime = setup(device, "float32", False)
    found = []
    for n in map(int, rows.split(",")):
        for name, settings in GENERATION.items():
            model = make(settings, length).to(runtime.device)
            serial = model.serial_layers() if hasattr(model, "serial_layers") else 0
            row = {"model": name, "caches": "yes", "rows": n, "T": length}
            row |= {"mflops": model.flops_per_token(length) / 3e6}
            row |= {"serial": serial or model.config.n_layer}
            model = prepare(model)  # which has fewer parameters
            list(generate(model, [1], SamplingParams(20), n))
            begin = time.perf_counter()
            count = sum(1 for _ in generate(model, [1], SamplingParams(length), n))
            seconds = time.perf_counter() - begin
            found.append({**row, "seconds": seconds, "rate": n * count / seconds})
            print(f"{name}, {n} rows: {seconds:.1f} s", flush=True)
            if n == 1 and name == "MEGABYTE":
                ids = torch.randint(256, (1, length), device=runtime.device)
                seconds = uncached_seconds(model, ids)
                found.append({**row, "caches": "no", "seconds": seconds, "rate": length / seconds})
                print(f"{name}, without caches: {seconds:.1f} s", flush=True)
    for row in found:
        dense = next(r for r in found if r["model"] == "dense" and r["rows"] == row["rows"])
        row["ratio"] = row["rate"] / dense["rate"]
    return found


def one_step(spec: str) -> None:
    """Time training steps at one context and print what they took; peak memory of this process."""
    name, _, T = spec.partition(":")
    if name not in CONTEXT or not T.isdigit() or int(T) < 2:
        raise UserError(f"step={spec}: give a model and a context, such as MEGABYTE:65536")
    runtime = setup(device, dtype, False)
    T, batch = int(T), max(1, 16384 // int(T))
    model = make(CONTEXT[name], T).to(runtime.device)
    stream = synthetic(257, batch, T, runtime.device)
    train = TrainingStep(model, stream, {**OPTIMIZER, "seed": 0}, runtime)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        train().item()
        runtime.synchronize()
        seconds.append(time.perf_counter() - begin)
    us = 1e6 * statistics.median(seconds) / (batch * T)
    print(json.dumps({"us": us, "gib": memory_in_use(runtime.device) / 2**30, "batch": batch}))


def context() -> list[dict]:
    """Cost of training per byte at each context."""
    found = []
    for T in map(int, contexts.split(",")):
        row = {"T": T}
        for name, settings in CONTEXT.items():
            with torch.device("meta"):
                row[f"{name}_mflops"] = make(settings, T).flops_per_token(T) / 3e6
            if name == "dense" and dense_limit < T:
                continue
            command = [sys.executable, __file__, f"--step={name}:{T}", f"--device={device}"]
            done = subprocess.run([*command, f"--dtype={dtype}"], capture_output=True, text=True)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or ["no memory?"]
                raise UserError(f"{name} at {T:,} failed: {lines[-1]}")
            took = json.loads(done.stdout.splitlines()[-1])
            row |= {f"{name}_us": took["us"], f"{name}_gib": took["gib"]}
        print(f"context {T:,}: {row}", flush=True)
        found.append(row)
    return found


def crossover(cheap: str = "MEGABYTE") -> int:
    """The first multiple of 64 bytes of context at which MEGABYTE needs fewer FLOPs per byte."""
    for T in range(64, 1 << 17, 64):
        with torch.device("meta"):
            dense, other = (make(CONTEXT[n], T).flops_per_token(T) for n in ("dense", cheap))
        if other < dense:
            return T
    return 0


def main() -> None:
    configure(globals())
    if step:
        return one_step(step)
    results, text = {}, ""
    if part != "context":
        results["generation"] = generation()
        text += f"\n{table(results['generation'], GENERATION_COLUMNS)}\n"
    if part != "generation":
        results["context"], T = context(), crossover()
        text += f"\n{table(results['context'], CONTEXT_COLUMNS)}\n"
        text += f"\nfrom a context of {T:,} bytes MEGABYTE needs fewer FLOPs per byte\n"
    print(text)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "byte_costs.txt", text)
    where = setup(device, "float32", False).device
    write_json(folder / "byte_costs.json", {**provenance(where), **results})


if __name__ == "__main__":
    run(main)
