"""Training throughput of several models, and of a nanoGPT checkout on the same work.

    python benchmarks/train.py                          # only ours
    python benchmarks/train.py --peer=../nanoGPT        # side by side
    python benchmarks/train.py --sizes=124M --modes=compiled --out=results

A step is that of each project's train.py: make a batch from a file of tokens, forward, backward,
clip the gradient, update. The loss is read every log_interval steps, as both do. Repeats alternate
between the two, in one process on one machine. A repeat is timed from an idle device to an idle
device, and the table has medians. The peer has its own model, optimizer and batches; it runs under
autocast where its train.py does (on GPUs), and is compiled if ours is.
"""

import gc
import sys
import tempfile
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import numpy as np
import torch

from benchmarks.harness import Peer, Results, in_turn, known, spread, table
from bonsai.data.batches import Batches, prefetch
from bonsai.data.dataset import Dataset, Mixture
from bonsai.data.split import Split
from bonsai.models.table import build_model
from bonsai.planning.memory import GIB, out_of_memory
from bonsai.system.devices import DTYPES, peak_flops, pick_device, pick_dtype
from bonsai.system.errors import run
from bonsai.system.runtime import Runtime, setup
from bonsai.training.settings import StepSettings
from bonsai.training.step import TrainingStep
from bonsai.training.timing import TimedSteps, time_steps
from configurator import Config, configure, resolve_path

# -----------------------------------------------------------------------------
peer = ""  # folder of a nanoGPT checkout to compare with [path]
sizes = "auto"  # rows, from SIZES below; auto: recipe,char on a CPU, 124M,355M on a GPU [list]
dtypes = "auto"  # auto: bfloat16 on a GPU; float32,bfloat16 on a CPU that computes in both [list]
modes = "auto"  # eager, compiled; auto: eager on a CPU, both on a GPU [list]
repeats = 5  # the table has their median [>= 1]
steps = 0  # steps in a repeat; 0: depends on the size [>= 0]
log_interval = 10  # steps between readings of the loss [>= 1]
device = "auto"  # cpu, cuda, cuda:1, mps; auto: the first of cuda, mps, cpu that is there
seed = 1337  # of the weights and batches [>= 0]
out = ""  # folder for train.json and .txt; rows in it are not measured again [path]
force = False  # measure them again
# -----------------------------------------------------------------------------

SHAPE = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
# name: shape of the model; rows in a batch, steps of a repeat, steps of warm-up
SIZES = {
    "toy": ((2, 2, 32, 32, 65), 4, 3, 1),
    "recipe": ((4, 4, 128, 64, 65), 12, 60, 10),  # nanoGPT's for a CPU
    "char": ((6, 6, 384, 256, 65), 16, 4, 2),  # its Shakespeare model, 10.65M
    "124M": ((12, 12, 768, 1024, 50304), 32, 10, 5),
    "355M": ((24, 16, 1024, 1024, 50304), 16, 10, 5),
}
AUTO = {
    "cpu": {"sizes": "recipe,char", "dtypes": "float32,auto", "modes": "eager"},
    "cuda": {"sizes": "124M,355M", "dtypes": "bfloat16", "modes": "eager,compiled"},
}
ROW = (("model", "size", ""), ("dtype", "dtype", ""), ("mode", "mode", ""), ("batch", "batch", ""))
OURS, THEIRS = (
    (
        ("tokens/s", f"{name}.tokens_per_s.median", ",.0f"),
        ("spread", f"{name}.tokens_per_s.spread", ".1%"),
        ("MFU", f"{name}.mfu", ".1%"),
        ("GiB", f"{name}.peak_gib", ".2f"),
    )
    for name in ("ours", "peer")
)
THEIRS = (("peer", "peer.dtype", ""), *THEIRS, ("ratio", "ratio.median", ".3f"))


def fields(size: str) -> dict:
    return {**dict(zip(SHAPE, SIZES[size][0])), "bias": False, "dropout": 0.0}


class PeerStep:
    """A step of the peer's train.py: its model, optimizer and batches. Called like TimedSteps."""

    def __init__(self, peer: Peer, size: str, tokens: Path, runtime: Runtime):
        self.T, self.rows = fields(size)["block_size"], SIZES[size][1]
        self.tokens, self.device = tokens, runtime.device
        kind = runtime.device.type
        half = kind == "cuda" and runtime.dtype != "float32"  # on a CPU it computes in float32
        self.context = torch.autocast(kind, DTYPES[runtime.dtype]) if half else nullcontext()
        self.dtype = runtime.dtype if half else "float32"
        self.scaler = torch.amp.GradScaler(kind, enabled=self.dtype == "float16")
        self.model = peer.model(fields(size)).to(runtime.device)
        ours = StepSettings()
        decay, rate, betas = ours.weight_decay, ours.learning_rate, (ours.beta1, ours.beta2)
        self.grad_clip = ours.grad_clip
        with redirect_stdout(StringIO()):  # it prints its groups
            self.optimizer = self.model.configure_optimizers(decay, rate, betas, kind)
        self.net = torch.compile(self.model) if runtime.compile else self.model
        self.batch = self.fetch()

    def fetch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As the peer does: open a memory map, convert random windows one by one, stack them."""
        T, data = self.T, np.memmap(self.tokens, dtype=np.uint16, mode="r")
        places = torch.randint(len(data) - T, (self.rows,)).tolist()
        windows = [[data[p + k : p + k + T].astype(np.int64) for p in places] for k in (0, 1)]
        pair = [torch.stack([torch.from_numpy(w) for w in rows]) for rows in windows]
        if self.device.type == "cuda":
            pair = [part.pin_memory() for part in pair]
        return tuple(part.to(self.device, non_blocking=True) for part in pair)

    def __call__(self) -> torch.Tensor:
        with self.context:
            _, loss = self.net(*self.batch)
        self.batch = self.fetch()  # while the GPU is busy
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def log(self, loss: torch.Tensor) -> float:
        return loss.item()


def our_step(size: str, tokens: Path, runtime: Runtime, seed: int) -> TimedSteps:
    model = build_model("gpt", fields(size))
    T, vocab_size, rows = model.config.block_size, model.config.vocab_size, SIZES[size][1]
    splits = {"train": Split([tokens], max_id=vocab_size - 1)}
    data = Dataset("random", tokens.parent, splits, vocab_size, None, None)
    batches = Batches(Mixture([data]), T, rows, seed)
    stream = prefetch(batches, 0, rows, pin=runtime.device.type == "cuda")
    return TimedSteps(TrainingStep(model, StepSettings(seed=seed), runtime), stream)


def measure(c: Config, size: str, count: int, runtime: Runtime, peer: Peer | None) -> dict:
    """Rates, MFU and peak memory of both: {"ours": ..., "peer": ..., "ratio": ...}."""
    on_gpu, (_, rows, _, warmup) = runtime.device.type == "cuda", SIZES[size]
    contestants, measured = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        tokens, rng = Path(folder) / "train.bin", np.random.default_rng(c.seed)
        rng.integers(0, fields(size)["vocab_size"], 4_000_000, dtype=np.uint16).tofile(tokens)
        for name in ("ours", "peer") if peer else ("ours",):
            before = torch.cuda.memory_allocated(runtime.device) if on_gpu else 0
            if on_gpu:
                torch.cuda.reset_peak_memory_stats(runtime.device)
            torch.manual_seed(c.seed)
            if name == "ours":
                contestants[name] = our_step(size, tokens, runtime, c.seed)
            else:
                contestants[name] = PeerStep(peer, size, tokens, runtime)
            time_steps(contestants[name], warmup, runtime.synchronize)
            # what a process with this one alone would need; on a CPU it cannot be told
            peak = torch.cuda.max_memory_allocated(runtime.device) - before if on_gpu else None
            measured[name] = {"seconds": [], "peak_gib": peak and peak / GIB}
        for _, name in in_turn(contestants, c.repeats):
            t = time_steps(contestants[name], count, runtime.synchronize, c.log_interval)
            measured[name]["seconds"].append(t)
        contestants["ours"].stream.close()
    T = fields(size)["block_size"]
    peak = peak_flops(runtime.device, runtime.dtype)
    flops = contestants["ours"].training.model.flops_per_token(T)
    for part in measured.values():
        part["tokens_per_s"] = spread([count * rows * T / t for t in part["seconds"]])
        part["mfu"] = part["tokens_per_s"]["median"] * flops / peak if peak else None
    if peer:
        measured["peer"]["dtype"] = contestants["peer"].dtype
        pairs = zip(measured["ours"]["seconds"], measured["peer"]["seconds"])
        medians = [measured[name]["tokens_per_s"]["median"] for name in ("ours", "peer")]
        measured["ratio"] = {**spread([b / a for a, b in pairs]), "median": medians[0] / medians[1]}
    return {"batch": f"{rows} x {T}", **measured}


def rows_to_measure(c: Config, device: torch.device) -> list[tuple[str, str, str]]:
    """(size, dtype, mode) of every row."""
    auto = AUTO["cuda" if device.type == "cuda" else "cpu"]
    chosen = {k: (default if c[k] == "auto" else c[k]).split(",") for k, default in auto.items()}
    known("sizes", chosen["sizes"], SIZES)
    known("modes", chosen["modes"], ("eager", "compiled"))
    dtypes = dict.fromkeys(pick_dtype(d, device)[0] for d in chosen["dtypes"])  # each once
    return [(s, d, m) for s in chosen["sizes"] for d in dtypes for m in chosen["modes"]]


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    device, _ = pick_device(c.device)
    todo, peer = rows_to_measure(c, device), Peer(resolve_path(c.peer)) if c.peer else None
    commit = peer.commit if peer else None
    columns = (*ROW, *OURS, *(THEIRS if peer else ()), ("n", "ours.tokens_per_s.n", "d"))
    results = Results("train", c.out, device, columns, again=c.force, peer_commit=commit)
    rows = []
    for size, dtype, mode in todo:
        count = c.steps or SIZES[size][2]
        key = {"size": size, "dtype": dtype, "mode": mode, "steps": count, "repeats": c.repeats}
        print(f"{size} {dtype} {mode}: {c.repeats} x {count} steps ...", flush=True)
        runtime = setup(str(device), dtype, mode == "compiled")
        work = (c, size, count, runtime, peer)
        try:
            rows.append(results.measure(key, lambda work=work: measure(*work)))
        except (RuntimeError, MemoryError) as e:
            if not out_of_memory(e):
                raise
            print(f"{size} {dtype} {mode}: out of memory, left out", flush=True)
        finally:
            gc.collect()
            torch.compiler.reset()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    results.finish(table(rows, columns))


if __name__ == "__main__":
    run(main)
