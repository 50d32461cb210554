"""Models of bytes: dense GPTs, MEGABYTE and SpaceByte at equal training FLOPs per byte.

    python data/python_stdlib/prepare.py
    python benchmarks/bytes.py --quick                 # one seed and rate per arm: < 30 minutes
    python benchmarks/bytes.py --full                  # rates, then seeds: some 10 hours
    python benchmarks/bytes.py --quick --scale=gpu     # the sizes for one H100: some 8 minutes
    python benchmarks/bytes.py --part=generation       # some 3 minutes; the next one, too
    python benchmarks/bytes.py --part=context --dense_limit=65536

An arm is a model with its sizes. All arms see the same number of bytes, in batches of the same
size, and their training costs the same FLOPs per byte within 6%. --full tries all `rates` with the
first seed, then trains each arm with the other seeds at its best rate. Bits per byte are those of
the whole validation split (--quick: of windows spread over it). Runs that are in the results
already are not repeated: to go on after an interruption, repeat the command. On a GPU models are
compiled for training, which takes most of the time of --quick, but not for evaluation.

The other parts measure the costs of long contexts, with random weights. `generation`: 8,192 bytes
by MEGABYTE and by a dense GPT of equal training FLOPs per byte at that context, `rows` texts at a
time; also by MEGABYTE without its caches, timed at some lengths and summed over all. `context`: a
training step at each length, in a process of its own, so that its memory is measured alone.
"""

import itertools
import math
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import torch

from benchmarks.harness import Results, check_minutes, known, seconds_of, table
from bonsai.data.batches import Batches, prefetch
from bonsai.data.dataset import Mixture
from bonsai.engine import SamplingParams, generate, prepare
from bonsai.evaluation.loss import split_loss
from bonsai.files.access import save_picture
from bonsai.models.megabyte import Megabyte
from bonsai.models.table import build_model
from bonsai.planning.memory import GIB
from bonsai.system.caches import keep_fonts
from bonsai.system.devices import memory_in_use, pick_device
from bonsai.system.errors import UserError, run
from bonsai.system.runtime import Runtime, setup
from bonsai.training.schedule import learning_rate_at, set_rates
from bonsai.training.settings import StepSettings
from bonsai.training.step import TrainingStep
from bonsai.training.timing import TimedSteps, synthetic
from configurator import Config, configure

# -----------------------------------------------------------------------------
part = "arms"  # what to measure [arms | generation | context]
device = "auto"  # cpu, cuda; auto: cuda if it is there
dtype = "auto"  # of training; a CPU generates in float32 [auto | float32 | bfloat16 | float16]
compile: bool | str = "auto"  # torch.compile for training; auto: on CUDA [auto | on | off]
out = "out-bytes"  # folder for the results and bytes.png [path]
# the arms
quick = False  # one seed, one rate per arm, fewer bytes
full = False  # all rates with the first seed, then all seeds with each arm's best
scale = "cpu"  # sizes of the arms; gpu: one H100, toy: tests of this program [cpu | gpu | toy]
arms = ""  # only these, with semicolons between them, such as "dense, short; MEGABYTE 4"
rates = "0.01,0.02,0.04"  # learning rates that --full tries [list of float >= 0]
rate = 0.02  # learning rate of --quick [>= 0]
optimizer = "muon"  # or adamw, which needs other rates: --rate=2e-3, --rates=1e-3,2e-3,4e-3
seeds = 3  # of --full [>= 1]
steps = 0  # optimizer steps; 0: one pass over the data for --full, 200 for --quick [>= 0]
dataset = "python_stdlib"  # a folder in data/, of bytes [paths]
generated = 512  # bytes to generate, to measure the rate [>= 0]
minutes = 0.0  # begin no run after so many; repeat the command to go on; 0: no limit [>= 0]
# long contexts
rows = "1,8"  # texts at a time, for generation [list of int >= 1]
length = 8192  # bytes to generate, and the context [>= 1]
contexts = "1024,2048,4096,8192,16384,32768,65536"  # lengths to train on [list of int >= 2]
dense_limit = 16384  # the longest context at which the dense GPT is timed [>= 0]
# -----------------------------------------------------------------------------

SEED = 1337
BLOCK = dict(
    bias=False, position="rope", norm="rmsnorm", norm_gain=False, qk_norm=True, activation="relu2"
)


def layers(number: int, heads: int, width: int) -> dict:
    return {"n_layer": number, "n_head": heads, "n_embd": width}


def patches(size: int, over: tuple, within: tuple, **more) -> dict:
    """A model of patches. over, within: (layers, heads, width) over patches, and over bytes."""
    local = dict(zip(("local_layer", "local_head", "local_embd"), within))
    return {"patch_size": size, **layers(*over), **local, **more}


def windowed(boundary: str, over: tuple, within: tuple) -> dict:
    """SpaceByte, with windows as long as its byte layers are wide. On Python's source its patches
    have 8.4 bytes on average; those of the control with fixed patches have 8."""
    return patches(8, over, within, local_window=within[2], boundary=boundary)


# name: (architecture, its settings, context). tests/benchmarks/test_bytes.py checks that all cost
# the same
CPU_ARMS = {
    "dense, short": ("gpt", layers(4, 4, 128), 512),
    "dense, equal": ("gpt", layers(2, 4, 120), 2048),
    "dense, window": ("gpt", layers(4, 4, 128) | dict(attention_window=512), 2048),
    "MEGABYTE 4": ("megabyte", patches(4, (4, 4, 240), (2, 4, 128)), 2048),
    "MEGABYTE 8": ("megabyte", patches(8, (3, 6, 384), (3, 4, 128)), 2048),
    "SpaceByte": ("spacebyte", windowed("space", (4, 4, 240), (4, 4, 128)), 2048),
    "SpaceByte, fixed": ("spacebyte", windowed("fixed", (4, 4, 240), (4, 4, 128)), 2048),
    # with the context of "dense, short": then batches have bytes from as many places as its batches
    "MEGABYTE 4, short": ("megabyte", patches(4, (4, 4, 256), (2, 4, 128)), 512),
    "SpaceByte, short": ("spacebyte", windowed("space", (4, 4, 240), (4, 4, 128)), 512),
}
GPU_ARMS = {
    # one of each kind first, as a call of a few minutes runs only the first ones
    "dense, short": ("gpt", layers(8, 8, 512), 1024),
    "MEGABYTE 4": ("megabyte", patches(4, (6, 8, 960), (6, 6, 384)), 8192),
    "SpaceByte": ("spacebyte", windowed("space", (8, 8, 1216), (6, 6, 384)), 8192),
    "dense, window": ("gpt", layers(8, 8, 512) | dict(attention_window=1024), 8192),
    "dense, equal": ("gpt", layers(4, 6, 384), 8192),
    "MEGABYTE 8": ("megabyte", patches(8, (8, 16, 1024), (6, 8, 512)), 8192),
    "SpaceByte, fixed": ("spacebyte", windowed("fixed", (8, 8, 1216), (6, 6, 384)), 8192),
}
TOY_ARMS = {
    "dense, short": ("gpt", layers(1, 2, 32), 64),
    "MEGABYTE 4": ("megabyte", layers(1, 2, 32) | dict(local_embd=32), 128),
    "SpaceByte": ("spacebyte", layers(1, 2, 32) | dict(local_embd=32), 128),
}
SCALES = {"cpu": CPU_ARMS, "gpu": GPU_ARMS, "toy": TOY_ARMS}
BYTES_PER_STEP = {"cpu": 8192, "gpu": 131072, "toy": 512}
QUICK_STEPS = {"cpu": 200, "gpu": 200, "toy": 5}
LONG_STEP = 16384  # bytes of a step at a long context
# 18.4 and 18.2 MFLOPs per byte in a forward pass with a context of 8,192; not equal with others
GENERATION = {
    "dense": ("gpt", layers(4, 4, 128)),
    "MEGABYTE": ("megabyte", patches(8, (8, 8, 768), (2, 4, 128))),
}
# 2.7 and 2.6 MFLOPs per byte with a context of 512
CONTEXT = {"dense": CPU_ARMS["dense, short"][:2], "MEGABYTE": CPU_ARMS["MEGABYTE 8"][:2]}

ARM_COLUMNS = (
    ("arm", "arm", ""), ("context", "T", ",d"), ("params", "params", ".2f"),
    ("MFLOPs/byte", "mflops", ".2f"), ("rate", "rate", ".0e"), ("seeds", "seeds", "d"),
    ("bits per byte", "bpb", ".4f"), ("± range", "range", ".4f"), ("strided", "strided", ".4f"),
    ("train bytes/s", "train_rate", ",.0f"), ("layers in a row", "serial", ".2f"),
    ("generates bytes/s", "generate_rate", ",.0f"),
)  # fmt: skip
GENERATION_COLUMNS = (
    ("model", "model", ""), ("caches", "caches", ""), ("rows", "rows", "d"),
    ("MFLOPs/byte", "mflops", ".1f"), ("layers in a row", "serial", ".2f"),
    ("seconds", "seconds", ",.1f"), ("bytes/s", "rate", ",.0f"), ("times dense", "ratio", ".2f"),
)  # fmt: skip
CONTEXT_COLUMNS = (
    ("context", "T", ",d"), ("dense MFLOPs/byte", "mflops.dense", ",.2f"),
    ("MEGABYTE", "mflops.MEGABYTE", ",.2f"), ("dense µs/byte", "us.dense", ",.1f"),
    ("MEGABYTE", "us.MEGABYTE", ",.1f"), ("dense GiB", "gib.dense", ".2f"),
    ("MEGABYTE", "gib.MEGABYTE", ".2f"),
)  # fmt: skip


def settings_of(name: str, sizes: dict, T: int) -> dict:
    """All settings of a model."""
    return {"model": name, **BLOCK, **sizes, "block_size": T, "vocab_size": 257}


def make(settings: dict, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model(settings["model"], settings)


def costs(model: torch.nn.Module) -> dict:
    """MFLOPs of a forward pass per byte, and how many layers in a row a generated byte needs."""
    return {"mflops": model.flops_per_token() / 3e6, "serial": model.serial_layers()}


# ---- the arms ----


def train_arm(c: Config, model, lr: float, seed: int, count: int, data: Mixture, runtime) -> dict:
    """Train for `count` steps; returns the seconds and the rate."""
    T = model.config.block_size
    rows = BYTES_PER_STEP[c.scale] // T
    batches = Batches(data, T, rows, seed, "epoch")
    stream = prefetch(batches, 0, rows, pin=runtime.device.type == "cuda")
    settings = StepSettings(
        optimizer=c.optimizer,
        learning_rate=lr,
        min_lr=0.0,
        warmup_iters=max(1, count // 20),
        lr_decay_iters=count,
        embedding_lr=0.1,
        scalar_lr=1e-2,
        seed=seed,
    )
    training = TrainingStep(model, settings, runtime)
    seconds, losses = [], []
    try:
        for i in range(count):
            set_rates(training.optimizer, learning_rate_at(i, settings), i, settings)
            runtime.synchronize()
            begin = time.perf_counter()
            losses.append(training(i, stream).item())
            seconds.append(time.perf_counter() - begin)
            if i % 50 == 0 or i == count - 1:
                bits = statistics.mean(losses[-50:]) / math.log(2)
                print(f"  {i}/{count}: {bits:.3f} bits, {1000 * seconds[-1]:.0f} ms", flush=True)
    finally:
        stream.close()
    took = {"seconds": sum(seconds), "first_step": seconds[0]}
    return took | {"train_rate": rows * T / statistics.median(seconds)}


def validate(model, data: Mixture, runtime: Runtime, quick: bool) -> dict:
    """Bits per byte of the validation split; for MEGABYTE also with strided inference."""
    split, T = data.parts[0].split("val"), model.config.block_size
    bits, windows = {"strided": None}, 131072 // T if quick else 0
    model.eval()  # in training mode all is kept for a backward pass
    for name in ("bpb", "strided") if isinstance(model, Megabyte) else ("bpb",):
        model.strided = name == "strided"
        loss, _ = split_loss(model, split, runtime, T, max(1, 8192 // T), windows)
        bits[name] = loss / math.log(2) / split.bytes_per_token
    model.strided = False
    return bits


def generation_rate(model, data: Mixture, runtime: Runtime, generated: int) -> float:
    """Bytes per second for one text, with caches, after a prompt of half a context."""
    T = model.config.block_size
    prompt = data.parts[0].split("val").read(0, T // 2).tolist()
    steps = generate(model, prompt, SamplingParams(min(generated, T // 2), seed=1))
    with runtime.autocast():
        next(steps)  # the prefill
        begin = time.perf_counter()
        n = sum(1 for _ in steps)
        return n / (time.perf_counter() - begin)


def over_seeds(runs: list[dict]) -> dict:
    """The table's row for the runs of an arm at one rate with several seeds."""
    row = dict(runs[0])
    for key in ("bpb", "strided", "train_rate", "generate_rate"):
        values = [r[key] for r in runs if r[key] is not None]
        row[key] = statistics.mean(values) if values else None
    row["seeds"], values = len(runs), [r["bpb"] for r in runs]
    row["range"] = max(values) - min(values) if len(values) > 1 else None
    return row


def compare(c: Config) -> None:
    """A row per arm. With --full: the best rate with the first seed, then other seeds at it."""
    begin = time.monotonic()
    if c.quick == c.full:
        raise UserError("choose one of --quick and --full")
    names = [a.strip() for a in c.arms.split(";") if a.strip()] or list(SCALES[c.scale])
    known("arms", names, SCALES[c.scale], "; ")
    data = Mixture.open(c.dataset)
    data.check(max(SCALES[c.scale][a][2] for a in names), 257)
    runtime = setup(c.device, c.dtype, c.compile)
    print(runtime.summary)
    tried = [float(r) for r in c.rates.split(",")] if c.full else [c.rate]
    one_pass = len(data.parts[0].split("train")) // BYTES_PER_STEP[c.scale]
    count = c.steps or (one_pass if c.full else QUICK_STEPS[c.scale])
    number = len(names) * (len(tried) + c.seeds - 1 if c.full else 1)
    print(f"{number} runs of {count} steps of {BYTES_PER_STEP[c.scale]:,} bytes", flush=True)
    results = Results("bytes", c.out, runtime.device, ARM_COLUMNS, same=("hardware",))

    def measure(arm: str, lr: float, seed: int) -> dict:
        settings = settings_of(*SCALES[c.scale][arm])

        def one_run() -> dict:
            check_minutes(c.minutes, begin)
            print(f"{arm}, rate {lr:g}, seed {seed}: {count} steps", flush=True)
            if runtime.compile:
                torch.compiler.reset()  # the graphs of earlier runs are not needed
            model = make(settings, seed).to(runtime.device)
            row = {"T": model.config.block_size, "params": model.num_params() / 1e6}
            row |= {**costs(model), **train_arm(c, model, lr, seed, count, data, runtime)}
            row |= validate(model, data, runtime, c.quick)
            row["generate_rate"] = generation_rate(model, data, runtime, c.generated)
            print(f"  {row['bpb']:.4f} bits per byte, {row['train_rate']:,.0f} bytes/s", flush=True)
            return row

        key = {"arm": arm, "rate": lr, "seed": seed, "steps": count, "quick": c.quick}
        key |= {"optimizer": c.optimizer, "dataset": c.dataset, "settings": settings}
        key |= {"compile": runtime.compile or None}  # None equals older rows without this key
        return results.measure(key, one_run)

    # all arms for each rate and seed in turn, so that an interrupted call has runs of every arm
    first = {(arm, lr): measure(arm, lr, SEED) for lr, arm in itertools.product(tried, names)}
    best = {arm: min(tried, key=lambda lr: first[arm, lr]["bpb"]) for arm in names}
    runs = {arm: [first[arm, lr]] for arm, lr in best.items()}
    for seed in range(SEED + 1, SEED + c.seeds) if c.full else ():
        for arm, lr in best.items():
            runs[arm].append(measure(arm, lr, seed))
    for arm, lr in best.items():
        if len(tried) > 1 and lr in (min(tried), max(tried)):
            print(f"{arm}: its best rate, {lr:g}, is the lowest or highest of those tried")
    summaries = [over_seeds(of_one) for of_one in runs.values()]
    results.finish(table(summaries, ARM_COLUMNS), steps=count, summary=summaries)
    draw(summaries, c.scale, Path(c.out) / "bytes.png")


def draw(rows: list[dict], scale: str, path: Path) -> None:
    """Bits per byte against training speed, a point per arm."""
    keep_fonts()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        (mark,) = axes.plot(row["train_rate"], row["bpb"], "o")
        text = f" {row['arm']}"
        axes.annotate(text, (row["train_rate"], row["bpb"]), color=mark.get_color(), fontsize=9)
    axes.set(xlabel="bytes per second in training", ylabel="bits per byte, validation")
    axes.set_title(f"equal FLOPs per byte, equal bytes ({scale})", fontsize=10)
    axes.margins(x=0.25)
    axes.grid(alpha=0.25)
    save_picture(figure, path, dpi=110)


# ---- the costs of long contexts ----


@torch.no_grad()
def uncached_seconds(model, ids: torch.Tensor, sync: Callable, points: int = 7) -> float:
    """Seconds to generate as many bytes as `ids` has if each is computed from all earlier ones:
    timed at some lengths, and summed by the trapezoidal rule."""
    at = torch.linspace(1, ids.size(1), points).long().tolist()
    model(ids[:, :2])  # the first call is slower
    times = [seconds_of(lambda n=n: model(ids[:, :n])[0].sum().item(), sync) for n in at]
    pairs = zip(times, times[1:], at, at[1:])
    return sum((a + b) / 2 * (y - x) for a, b, x, y in pairs)


def generation(c: Config) -> None:
    """Seconds for `length` bytes, for each model and number of rows."""
    runtime, T = setup(c.device, "float32", False), c.length
    results = Results("generation", c.out, runtime.device, length=T)

    def rate_of(name: str, n: int, cached: bool) -> dict:
        model = make(settings_of(*GENERATION[name], T)).to(runtime.device)
        cost, model = costs(model), prepare(model)  # costs first: prepared layers lack parameters
        list(generate(model, [1], SamplingParams(20), n))
        if cached:
            begin = time.perf_counter()
            count = sum(1 for _ in generate(model, [1], SamplingParams(T), n))
            seconds = time.perf_counter() - begin
        else:
            ids = torch.randint(256, (1, T), device=runtime.device)
            count, seconds = T, uncached_seconds(model, ids, runtime.synchronize)
        print(f"{name}, {n} rows: {seconds:.1f} s", flush=True)
        row = {"T": T, **cost, "seconds": seconds, "rate": n * count / seconds}
        dense = results.find({"model": "dense", "rows": n}) or row
        return {**row, "ratio": row["rate"] / dense["rate"]}

    rows = []
    for n in map(int, c.rows.split(",")):
        for name in GENERATION:
            for cached in (True, False) if (name, n) == ("MEGABYTE", 1) else (True,):
                key = {"model": name, "caches": "yes" if cached else "no", "rows": n}
                work = (name, n, cached)
                rows.append(results.measure(key, lambda work=work: rate_of(*work)))
    results.finish(table(rows, GENERATION_COLUMNS))


def end_with_parent() -> None:
    """Called in a worker process of an executor: end it if its parent is killed. Else it would wait
    for further work for ever."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def in_a_process(call: Callable, *args) -> Any:
    """The result of `call`, run in a new process, so that its memory is measured alone. Raises
    UserError if it fails."""
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, spawn, initializer=end_with_parent) as process:
            return process.submit(call, *args).result()
    except (BrokenProcessPool, RuntimeError, MemoryError) as e:
        raise UserError(f"{', '.join(map(str, args))}: failed: {e}") from None


def one_step(
    name: str, T: int, device: str, dtype: str, compile: bool | str
) -> tuple[float, float]:
    """Microseconds per byte of a training step, and the peak GiB of this process, NaN if
    the system does not say."""
    runtime, batch = setup(device, dtype, compile), max(1, LONG_STEP // T)
    model = make(settings_of(*CONTEXT[name], T)).to(runtime.device)
    stream = synthetic(257, batch, T, runtime.device)
    step = TimedSteps(TrainingStep(model, StepSettings(seed=0), runtime), stream)
    seconds = [seconds_of(lambda: step().item(), runtime.synchronize) for _ in range(3)]
    us = 1e6 * statistics.median(seconds) / (batch * T)
    peak = memory_in_use(runtime.device)
    return us, math.nan if peak is None else peak / GIB


def flops(name: str, T: int) -> float:
    with torch.device("meta"):
        return make(settings_of(*CONTEXT[name], T)).flops_per_token(T)


def crossover() -> int:
    """The first multiple of 64 bytes of context at which MEGABYTE needs fewer FLOPs per byte."""
    lengths = range(64, 1 << 17, 64)
    return next((T for T in lengths if flops("MEGABYTE", T) < flops("dense", T)), 0)


def context(c: Config) -> None:
    """The costs of training per byte with each context."""
    about = {name: c[name] for name in ("dtype", "compile", "dense_limit")}
    results = Results("context", c.out, pick_device(c.device)[0], **about)

    def cost_of(T: int) -> dict:
        row = {"mflops": {n: flops(n, T) / 3e6 for n in CONTEXT}, "us": {}, "gib": {}}
        for name in CONTEXT:
            if name == "dense" and c.dense_limit < T:
                continue
            took = in_a_process(one_step, name, T, c.device, c.dtype, c.compile)
            row["us"][name], row["gib"][name] = took
        print(f"context {T:,}: {row}", flush=True)
        return row

    lengths = map(int, c.contexts.split(","))
    rows = [results.measure({"T": T}, lambda T=T: cost_of(T)) for T in lengths]
    text = table(rows, CONTEXT_COLUMNS)
    more = f"from a context of {crossover():,} bytes MEGABYTE needs fewer FLOPs per byte"
    results.finish(f"{text}\n\n{more}")


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    {"arms": compare, "generation": generation, "context": context}[c.part](c)


if __name__ == "__main__":
    run(main)
