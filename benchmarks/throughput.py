"""Training throughput of several models, and of a nanoGPT checkout on the same work.

    python benchmarks/throughput.py                          # ours alone
    python benchmarks/throughput.py --peer=../nanoGPT        # side by side
    python benchmarks/throughput.py --sizes=124M --modes=compiled --out=results

A step is what each project's train.py does for one: make a batch from a file of tokens, forward,
backward, clip the gradient, update; the loss is read every log_interval steps, as both do. Repeats
alternate between the two, in one process on one machine; a repeat is timed from idle device to idle
device, and the table has medians. The peer runs its own model, optimizer and way to make batches,
under autocast where its train.py has it (on GPUs), and compiled where ours is.
"""

import contextlib
import gc
import io
import json
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import numpy as np
import torch

from benchmarks.harness import load_peer, peer_commit
from bonsai.data.batches import Batches, prefetch
from bonsai.data.dataset import Dataset, Mixture, Split
from bonsai.files.access import write_whole
from bonsai.files.jsonfile import write_json
from bonsai.models.table import build_model
from bonsai.planning.memory import GIB, out_of_memory
from bonsai.system.errors import UserError, run
from bonsai.system.provenance import header, provenance
from bonsai.system.runtime import DTYPES, Runtime, peak_flops, pick_device, pick_dtype, setup
from bonsai.system.tables import spread, table
from bonsai.training.step import OPTIMIZER, TrainingStep, time_steps
from configurator import configure, resolve_path

# -----------------------------------------------------------------------------
peer = ""  # folder of a nanoGPT checkout to compare with [path]
sizes = "auto"  # rows, from SIZES below; auto: recipe,char on a CPU, 124M,355M on a GPU [list]
dtypes = "auto"  # auto: bfloat16 on a GPU; float32,bfloat16 on a CPU that computes in both [list]
modes = "auto"  # eager, compiled; auto: eager on a CPU, both on a GPU [list]
repeats = 5  # of which the table has the median [>= 1]
steps = 0  # steps in a repeat; 0: as the size says [>= 0]
log_interval = 10  # steps between readings of the loss [>= 1]
device = "auto"  # cpu, cuda, cuda:1, mps; auto: the first of cuda, mps, cpu that is there
seed = 1337  # of the weights and batches [>= 0]
out = ""  # folder for throughput.json and .txt; rows that are there are not measured again [path]
force = False  # measure them again
# -----------------------------------------------------------------------------


@dataclass
class Size:
    """A model without dropout and biases, and how much of it a repeat is."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    batch_size: int
    steps: int
    warmup: int

    def fields(self) -> dict:
        names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
        return {**{n: getattr(self, n) for n in names}, "bias": False, "dropout": 0.0}


SIZES = {
    "toy": Size(2, 2, 32, 32, 65, batch_size=4, steps=3, warmup=1),
    "recipe": Size(4, 4, 128, 64, 65, batch_size=12, steps=60, warmup=10),  # nanoGPT's CPU recipe
    "char": Size(6, 6, 384, 256, 65, batch_size=16, steps=4, warmup=2),  # Shakespeare, 10.65M
    "124M": Size(12, 12, 768, 1024, 50304, batch_size=32, steps=10, warmup=5),
    "355M": Size(24, 16, 1024, 1024, 50304, batch_size=16, steps=10, warmup=5),
}

COLUMNS = (
    ("model", "size", ""),
    ("dtype", "dtype", ""),
    ("mode", "mode", ""),
    ("batch", "batch", ""),
    ("tokens/s", "rate", ",.0f"),
    ("spread", "spread", ".1%"),
    ("MFU", "mfu", ".1%"),
    ("GiB", "gib", ".2f"),
    ("peer", "peer_dtype", ""),
    ("tokens/s", "peer_rate", ",.0f"),
    ("spread", "peer_spread", ".1%"),
    ("MFU", "peer_mfu", ".1%"),
    ("GiB", "peer_gib", ".2f"),
    ("ratio", "ratio", ".3f"),
    ("n", "n", "d"),
)


class PeerStep:
    """A step of the peer's train.py: its model, optimizer and batches; called like TrainingStep."""

    def __init__(self, module: ModuleType, size: Size, tokens: Path, runtime: Runtime):
        self.size, self.tokens, self.device = size, tokens, runtime.device
        kind = runtime.device.type
        half = kind == "cuda" and runtime.dtype != "float32"  # on a CPU it computes in float32
        self.context = torch.autocast(kind, DTYPES[runtime.dtype]) if half else nullcontext()
        self.dtype = runtime.dtype if half else "float32"
        self.scaler = torch.amp.GradScaler(kind, enabled=self.dtype == "float16")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its size
            self.model = module.GPT(module.GPTConfig(**size.fields())).to(runtime.device)
            betas = (OPTIMIZER["beta1"], OPTIMIZER["beta2"])
            decay, rate = OPTIMIZER["weight_decay"], OPTIMIZER["learning_rate"]
            self.optimizer = self.model.configure_optimizers(decay, rate, betas, kind)
        self.net = torch.compile(self.model) if runtime.compile else self.model
        self.batch = self.fetch()

    def fetch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Windows at random places of a map opened anew, converted one by one and stacked."""
        T, data = self.size.block_size, np.memmap(self.tokens, dtype=np.uint16, mode="r")
        places = torch.randint(len(data) - T, (self.size.batch_size,)).tolist()
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
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), OPTIMIZER["grad_clip"])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def log(self, loss: torch.Tensor) -> float:
        return loss.item()


def our_step(size: Size, tokens: Path, runtime: Runtime) -> TrainingStep:
    model = build_model("gpt", size.fields()).to(runtime.device)
    splits = {"train": Split([tokens], max_id=size.vocab_size - 1)}
    data = Dataset("random", tokens.parent, splits, size.vocab_size, None, None)
    batches = Batches(Mixture([data]), size.block_size, size.batch_size, seed)
    stream = prefetch(batches, 0, size.batch_size, pin=runtime.device.type == "cuda")
    return TrainingStep(model, stream, {**OPTIMIZER, "seed": seed}, runtime)


def measure(size: Size, runtime: Runtime, module: ModuleType | None, count: int) -> dict:
    """Seconds of each repeat and peak memory, ours and the peer's: {"ours": ..., "peer": ...}."""
    on_gpu = runtime.device.type == "cuda"
    contestants, found = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "train.bin"
        rng = np.random.default_rng(seed)
        rng.integers(0, size.vocab_size, 4_000_000, dtype=np.uint16).tofile(tokens)
        for name in ("ours", "peer") if module else ("ours",):
            before = torch.cuda.memory_allocated(runtime.device) if on_gpu else 0
            if on_gpu:
                torch.cuda.reset_peak_memory_stats(runtime.device)
            torch.manual_seed(seed)
            if name == "ours":
                contestants[name] = our_step(size, tokens, runtime)
            else:
                contestants[name] = PeerStep(module, size, tokens, runtime)
            time_steps(contestants[name], size.warmup, runtime.synchronize)
            # what a process that did nothing else would need; not to be told apart on a CPU
            peak = torch.cuda.max_memory_allocated(runtime.device) - before if on_gpu else None
            found[name] = {"seconds": [], "peak_memory_bytes": peak}
        for r in range(repeats):
            for name in list(contestants)[:: -1 if r % 2 else 1]:  # the first slot is no advantage
                t = time_steps(contestants[name], count, runtime.synchronize, log_interval)
                found[name]["seconds"].append(t)
        contestants["ours"].stream.close()
    if module:
        found["peer"]["dtype"] = contestants["peer"].dtype
    return found


def summarize(found: dict, size: Size, runtime: Runtime, count: int) -> None:
    """Add rates, MFU and the ratio to what `measure` found."""
    per_repeat = count * size.batch_size * size.block_size
    peak = peak_flops(runtime.device, runtime.dtype)
    flops = build_model("gpt", size.fields()).flops_per_token(size.block_size)
    for part in found.values():
        rate = spread([per_repeat / t for t in part["seconds"]])
        part["tokens_per_s"] = rate
        part["mfu"] = rate["median"] * flops / peak if peak else None
    if "peer" in found:
        pairs = zip(found["ours"]["seconds"], found["peer"]["seconds"])
        medians = [found[name]["tokens_per_s"]["median"] for name in ("ours", "peer")]
        found["ratio"] = {**spread([b / a for a, b in pairs]), "median": medians[0] / medians[1]}


def flat(row: dict) -> dict:
    """A row of the table from what was measured."""
    size = SIZES[row["key"]["size"]]
    line = {**row["key"], "batch": f"{size.batch_size} x {size.block_size}"}
    for name, prefix in (("ours", ""), ("peer", "peer_")):
        if part := row.get(name):
            rate, memory = part["tokens_per_s"], part["peak_memory_bytes"]
            line |= {
                f"{prefix}rate": rate["median"],
                f"{prefix}spread": (rate["high"] - rate["low"]) / rate["median"],
                f"{prefix}mfu": part["mfu"],
                f"{prefix}gib": memory / GIB if memory else None,
                "n": rate["n"],
            }
    if "peer" in row:
        line |= {"peer_dtype": row["peer"]["dtype"], "ratio": row["ratio"]["median"]}
    return line


def rows_to_measure(kind: str) -> list[tuple[str, str, str]]:
    """(size, dtype, mode) of every row, for a type of device."""
    on_gpu = kind == "cuda"
    auto = {
        "sizes": "124M,355M" if on_gpu else "recipe,char",
        "dtypes": "bfloat16" if on_gpu else "float32,auto",
        "modes": "eager,compiled" if on_gpu else "eager",
    }
    given = {"sizes": sizes, "dtypes": dtypes, "modes": modes}
    chosen = {k: (auto[k] if v == "auto" else v).split(",") for k, v in given.items()}
    found = [pick_dtype(d, torch.device(kind))[0] for d in chosen["dtypes"]]  # 'auto' resolved
    for name, known in (("sizes", SIZES), ("modes", ("eager", "compiled"))):
        for value in chosen[name]:
            if value not in known:
                raise UserError(f"{name}={value} is not one of {', '.join(known)}")
    picked = dict.fromkeys(found)  # each once
    return [(s, d, m) for s in chosen["sizes"] for d in picked for m in chosen["modes"]]


def measured_before(about: dict) -> dict[tuple, dict]:
    """Rows in `out` from this commit, hardware and peer, by their key."""
    found = {}
    for name in ("throughput.json", "throughput.part.json"):  # the second: cut short
        path = Path(out) / name
        if not out or force or not path.exists():
            continue
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            if all(row["about"][k] == about[k] for k in ("commit", "hardware", "peer_commit")):
                found[tuple(row["key"].values())] = row
    return found


def main() -> None:
    configure(globals())
    dev, _ = pick_device(device)
    module = load_peer(resolve_path(peer)) if peer else None
    print("\n".join(header(dev)), flush=True)
    about = {**provenance(dev), "peer_commit": peer_commit(resolve_path(peer)) if peer else None}
    before, rows = measured_before(about), []
    for name, dtype, mode in rows_to_measure(dev.type):
        size = SIZES[name]
        count = steps or size.steps
        key = {"size": name, "dtype": dtype, "mode": mode, "steps": count, "repeats": repeats}
        if tuple(key.values()) in before:
            print(f"{name} {dtype} {mode}: measured before, in {out}")
            rows.append(before[tuple(key.values())])
            continue
        print(f"{name} {dtype} {mode}: {repeats} x {count} steps ...", flush=True)
        runtime = setup(str(dev), dtype, mode == "compiled")
        try:
            found = measure(size, runtime, module, count)
        except (RuntimeError, MemoryError) as e:
            if not out_of_memory(e):
                raise
            print(f"{name} {dtype} {mode}: out of memory, left out", flush=True)
            continue
        finally:
            gc.collect()
            torch.compiler.reset()
            if dev.type == "cuda":
                torch.cuda.empty_cache()
        summarize(found, size, runtime, count)
        rows.append({"key": key, "about": about, **found})
        if out:
            write_json(Path(out) / "throughput.part.json", {**about, "rows": rows})
    text = table([flat(row) for row in rows], COLUMNS if module else COLUMNS[:8] + COLUMNS[-1:])
    print(f"\n{text}")
    if out:
        write_json(Path(out) / "throughput.json", {**about, "rows": rows})
        (Path(out) / "throughput.part.json").unlink(missing_ok=True)
        write_whole(Path(out) / "throughput.txt", text + "\n")


if __name__ == "__main__":
    run(main)
