"""Bytes without a tokenizer: dense GPTs, MEGABYTE and SpaceByte at equal training FLOPs per byte.

    python data/python_stdlib/prepare.py
    python benchmarks/bytes.py --quick                 # one seed and rate per arm: < 30 minutes
    python benchmarks/bytes.py --full                  # rates, then seeds; says how many hours
    python benchmarks/bytes.py --quick --scale=gpu     # the sizes for one H100
    python benchmarks/bytes.py --full --only_table     # what has been measured so far

All arms see the same number of bytes, in batches of as many, and cost the same FLOPs per byte of
training within 6%. Each run is a file in `out` and is not repeated: call it again after an
interruption. --full takes the best of `rates` for each arm with the first seed, then the other
seeds with it. Bits per byte are of the whole validation split (--quick: of windows spread over it).
"""

import itertools
import json
import math
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import torch

from bonsai.data.batches import Batches, prefetch
from bonsai.data.dataset import Mixture
from bonsai.engine import SamplingParams, generate
from bonsai.evaluation.loss import split_loss
from bonsai.files.access import save_picture, write_whole
from bonsai.files.jsonfile import write_json
from bonsai.models.table import CONFIGS, build_model
from bonsai.system.errors import UserError, run
from bonsai.system.provenance import provenance
from bonsai.system.runtime import Runtime, setup
from bonsai.system.tables import table
from bonsai.training.schedule import set_rates
from bonsai.training.step import OPTIMIZER, TrainingStep
from configurator import configure

# -----------------------------------------------------------------------------
quick = False  # one seed, one rate per arm, fewer bytes
full = False  # all rates with the first seed, then all seeds with each arm's best
scale = "cpu"  # sizes of the arms; gpu: one H100, toy: a test of this script [cpu | gpu | toy]
arms = ""  # only these, between semicolons, as in "dense, short; MEGABYTE 4"
rates = "0.01,0.02,0.04"  # learning rates that --full tries [list of float >= 0]
rate = 0.02  # learning rate of --quick [>= 0]
optimizer = "muon"  # or adamw, whose rates are other ones: --rate=2e-3, --rates=1e-3,2e-3,4e-3
seeds = 3  # of --full [>= 1]
steps = 0  # optimizer steps; 0: one pass over the data for --full; --quick: 200 (gpu: 400) [>= 0]
dataset = "python_stdlib"  # a folder in data/, of bytes [paths]
generated = 512  # bytes to generate, for their rate [>= 0]
out = "out-bytes"  # folder for the runs, bytes.json, bytes.txt and bytes.png [path]
only_table = False  # measure nothing, show what is there
device = "auto"  # cpu, cuda; auto: the first that is there
dtype = "auto"  # as in training [auto | float32 | bfloat16 | float16]
# -----------------------------------------------------------------------------

SEED = 1337
BLOCK = dict(
    bias=False, position="rope", norm="rmsnorm", norm_gain=False, qk_norm=True, activation="relu2"
)
# name: (architecture, its settings, context). FLOPs per byte: see test_byte_projects.py
CPU_ARMS = {
    "dense, short": ("gpt", dict(n_layer=4, n_head=4, n_embd=128), 512),
    "dense, equal": ("gpt", dict(n_layer=2, n_head=4, n_embd=120), 2048),
    "dense, window": ("gpt", dict(n_layer=4, n_head=4, n_embd=128, attention_window=512), 2048),
    "MEGABYTE 4": (
        "megabyte",
        dict(patch_size=4, n_layer=4, n_head=4, n_embd=240)
        | dict(local_layer=2, local_head=4, local_embd=128),
        2048,
    ),
    "MEGABYTE 8": (
        "megabyte",
        dict(patch_size=8, n_layer=3, n_head=6, n_embd=384)
        | dict(local_layer=3, local_head=4, local_embd=128),
        2048,
    ),
}
GPU_ARMS = {
    "dense, short": ("gpt", dict(n_layer=8, n_head=8, n_embd=512), 1024),
    "dense, equal": ("gpt", dict(n_layer=4, n_head=6, n_embd=384), 8192),
    "dense, window": ("gpt", dict(n_layer=8, n_head=8, n_embd=512, attention_window=1024), 8192),
    "MEGABYTE 4": (
        "megabyte",
        dict(patch_size=4, n_layer=6, n_head=8, n_embd=960)
        | dict(local_layer=6, local_head=6, local_embd=384),
        8192,
    ),
    "MEGABYTE 8": (
        "megabyte",
        dict(patch_size=8, n_layer=8, n_head=16, n_embd=1024)
        | dict(local_layer=6, local_head=8, local_embd=512),
        8192,
    ),
}
# on Python's source a patch of SpaceByte has 8.4 bytes on average; its control has 8
for _arms, _sizes, _T in (
    (CPU_ARMS, dict(n_layer=4, n_head=4, n_embd=240, local_layer=4, local_head=4), 2048),
    (GPU_ARMS, dict(n_layer=8, n_head=8, n_embd=1216, local_layer=6, local_head=6), 8192),
):
    _width = 128 if _T == 2048 else 384
    _sizes |= dict(patch_size=8, local_embd=_width, local_window=_width)
    _arms["SpaceByte"] = ("spacebyte", dict(boundary="space", **_sizes), _T)
    _arms["SpaceByte, fixed"] = ("spacebyte", dict(boundary="fixed", **_sizes), _T)
# as long as the first of the dense ones: a batch then has bytes of as many places as its
CPU_ARMS["MEGABYTE 4, short"] = (
    "megabyte",
    dict(patch_size=4, n_layer=4, n_head=4, n_embd=256)
    | dict(local_layer=2, local_head=4, local_embd=128),
    512,
)
CPU_ARMS["SpaceByte, short"] = (*CPU_ARMS["SpaceByte"][:2], 512)
TOY_ARMS = {
    "dense, short": ("gpt", dict(n_layer=1, n_head=2, n_embd=32), 64),
    "MEGABYTE 4": ("megabyte", dict(n_layer=1, n_head=2, n_embd=32, local_embd=32), 128),
    "SpaceByte": ("spacebyte", dict(n_layer=1, n_head=2, n_embd=32, local_embd=32), 128),
}
SCALES = {"cpu": CPU_ARMS, "gpu": GPU_ARMS, "toy": TOY_ARMS}
BYTES_PER_STEP = {"cpu": 8192, "gpu": 131072, "toy": 512}
QUICK_STEPS = {"cpu": 200, "gpu": 400, "toy": 5}
COLUMNS = (
    ("arm", "arm", ""),
    ("context", "T", ",d"),
    ("params", "params", ".2f"),
    ("MFLOPs/byte", "mflops", ".2f"),
    ("rate", "rate", ".0e"),
    ("seeds", "seeds", "d"),
    ("bits per byte", "bpb", ".4f"),
    ("± range", "range", ".4f"),
    ("strided", "strided", ".4f"),
    ("train bytes/s", "train_rate", ",.0f"),
    ("layers in a row", "serial", ".2f"),
    ("generates bytes/s", "generate_rate", ",.0f"),
)


def settings_of(arm: str) -> dict:
    """Everything that decides an arm's model."""
    name, sizes, T = SCALES[scale][arm]
    if missing := set(sizes) - set(CONFIGS[name].__dataclass_fields__):
        raise UserError(f"{arm}: this {name} has no {', '.join(missing)}")
    return {"model": name, **BLOCK, **sizes, "block_size": T, "vocab_size": 257}


def serial_layers(model: torch.nn.Module) -> float:
    """Layers that a generated byte waits for, on average."""
    return model.serial_layers() if hasattr(model, "serial_layers") else model.config.n_layer


def train_arm(arm: str, lr: float, seed: int, count: int, data: Mixture, runtime: Runtime):
    """Train one arm for `count` steps: the model, and what it took."""
    settings = settings_of(arm)
    torch.manual_seed(seed)
    model = build_model(settings["model"], settings).to(runtime.device)
    T = settings["block_size"]
    rows = BYTES_PER_STEP[scale] // T
    batches = Batches(data, T, rows, seed, "epoch")
    pin = runtime.device.type == "cuda"
    stream = prefetch(batches, 0, rows, pin=pin)
    schedule = dict(learning_rate=lr, decay_lr=True, lr_schedule="cosine", min_lr=0.0)
    schedule |= dict(warmup_iters=max(1, count // 20), lr_decay_iters=count)
    schedule |= dict(optimizer=optimizer, momentum_warmup=300, seed=seed)
    step = TrainingStep(model, stream, {**OPTIMIZER, **schedule}, runtime)
    seconds, losses = [], []
    try:
        for i in range(count):
            set_rates(step.optimizer, i, step.settings)
            runtime.synchronize()
            begin = time.perf_counter()
            losses.append(step().item())
            seconds.append(time.perf_counter() - begin)
            if i % 50 == 0 or i == count - 1:
                bits = statistics.mean(losses[-50:]) / math.log(2)
                print(f"  {i}/{count}: {bits:.3f} bits, {1000 * seconds[-1]:.0f} ms", flush=True)
    finally:
        stream.close()
    return model, {"seconds": sum(seconds), "train_rate": rows * T / statistics.median(seconds)}


def validate(model, data: Mixture, runtime: Runtime) -> tuple[float, float | None]:
    """Bits per byte of the validation split, plain and by strided inference where there is one."""
    split, T = data.parts[0].split("val"), model.config.block_size
    windows = 131072 // T if quick else 0
    found = []
    for strided in (False, True) if hasattr(model, "strided") else (False,):
        model.strided = strided
        loss, _ = split_loss(model, split, runtime, T, max(1, 8192 // T), windows)
        found.append(loss / math.log(2) / split.bytes_per_token)
        model.strided = False
    return found[0], found[1] if len(found) > 1 else None


def generation_rate(model, data: Mixture, runtime: Runtime) -> float:
    """Bytes per second of one text, with caches, after half a context."""
    T = model.config.block_size
    prompt = data.parts[0].split("val").read(0, T // 2).tolist()
    steps = generate(model, prompt, SamplingParams(min(generated, T // 2), seed=1))
    with runtime.autocast():
        next(steps)  # the prefill
        begin = time.perf_counter()
        n = sum(1 for _ in steps)
        return n / (time.perf_counter() - begin)


def measure(arm: str, lr: float, seed: int, count: int, data: Mixture, runtime: Runtime) -> dict:
    """One run, from its file if it was done before."""
    kind = "quick" if quick else "full"
    parts = (
        scale,
        kind,
        optimizer,
        count,
        arm.replace(", ", "-").replace(" ", ""),
        f"{lr:g}",
        seed,
    )
    path = Path(out) / "runs" / f"{'-'.join(map(str, parts))}.json"
    settings = settings_of(arm)
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["settings"] == settings and found["dataset"] == dataset:
            return found
    if only_table:
        return {}
    print(f"{arm}, rate {lr:g}, seed {seed}: {count} steps", flush=True)
    model, found = train_arm(arm, lr, seed, count, data, runtime)
    found["bpb"], found["strided"] = validate(model, data, runtime)
    found["generate_rate"] = generation_rate(model, data, runtime)
    found |= {"arm": arm, "rate": lr, "seed": seed, "settings": settings, "dataset": dataset}
    found |= {"T": settings["block_size"], "params": model.num_params() / 1e6}
    found |= {"mflops": model.flops_per_token() / 3e6, "serial": serial_layers(model)}
    print(f"  {found['bpb']:.4f} bits per byte, {found['train_rate']:,.0f} bytes/s", flush=True)
    write_json(path, {**provenance(runtime.device), **found})
    return found


def summary(runs: list[dict]) -> dict:
    """Several seeds of an arm at one rate, as a row of the table."""
    row = dict(runs[0])
    for key in ("bpb", "strided", "train_rate", "generate_rate"):
        values = [r[key] for r in runs if r[key] is not None]
        row[key] = statistics.mean(values) if values else None
    row["seeds"], values = len(runs), [r["bpb"] for r in runs]
    row["range"] = max(values) - min(values) if len(values) > 1 else None
    return row


def compare(names: list[str], count: int, data: Mixture, runtime: Runtime) -> list[dict]:
    """A row per arm. With --full: the best rate of the first seed, then the other seeds with it."""
    rows = []
    tried = [float(r) for r in rates.split(",")] if full else [rate]
    # seed by seed and rate by rate, so that an interrupted call has something of every arm
    first = {
        (arm, lr): measure(arm, lr, SEED, count, data, runtime)
        for lr, arm in itertools.product(tried, names)
    }
    best = {}
    for arm in names:
        there = [lr for lr in tried if first[arm, lr]]
        if there:
            best[arm] = min(there, key=lambda lr: first[arm, lr]["bpb"])
    runs = {arm: [first[arm, lr]] for arm, lr in best.items()}
    for seed in range(SEED + 1, SEED + seeds) if full else ():
        for arm, lr in best.items():
            if found := measure(arm, lr, seed, count, data, runtime):
                runs[arm].append(found)
    for arm, found in runs.items():
        rows.append(summary(found))
        if len(tried) > 1 and best[arm] in (min(tried), max(tried)):
            print(f"{arm}: its best rate, {best[arm]:g}, is at the edge of those tried")
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """Bits per byte against training speed, a point per arm."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for row in rows:
        (mark,) = axes.plot(row["train_rate"], row["bpb"], "o")
        text = f" {row['arm']}"
        axes.annotate(text, (row["train_rate"], row["bpb"]), color=mark.get_color(), fontsize=9)
    axes.set(xlabel="bytes per second in training", ylabel="bits per byte, validation")
    axes.set_title(f"equal FLOPs per byte, equal bytes ({scale})", fontsize=10)
    axes.margins(x=0.25)
    axes.grid(alpha=0.25)
    save_picture(figure, path, dpi=110)
    plt.close(figure)


def plan(names: list[str], data: Mixture) -> int:
    """Steps of a run; says how much there is to do."""
    one_pass = len(data.parts[0].split("train")) // BYTES_PER_STEP[scale]
    count = steps or (one_pass if full else QUICK_STEPS[scale])
    runs = len(names) * (len(rates.split(",")) + seeds - 1 if full else 1)
    total = runs * count * BYTES_PER_STEP[scale]
    print(
        f"{runs} runs of {count} steps, {total / 1e6:.0f} MB to train on in all: at 15,000 bytes/s "
        f"(two CPU cores) {total / 15000 / 3600:.1f} hours, at 1,000,000 (H100) "
        f"{total / 1e6 / 60:.0f} minutes, and validation"
    )
    return count


def main() -> None:
    configure(globals())
    if quick == full:
        raise UserError("choose one of --quick and --full")
    names = [a.strip() for a in arms.split(";") if a.strip()] or list(SCALES[scale])
    for name in names:
        if name not in SCALES[scale]:
            raise UserError(f"arm {name!r} is not one of {'; '.join(SCALES[scale])}")
    data = Mixture.open(dataset)
    data.check(max(SCALES[scale][a][2] for a in names), 257)
    runtime = setup(device, dtype, False)
    print(runtime.summary)
    count = plan(names, data)
    rows = compare(names, count, data, runtime)
    if not rows:
        raise UserError(f"nothing has been measured into {out} with these settings yet")
    text = table(rows, COLUMNS)
    print(f"\n{text}\n")
    folder = Path(out)
    write_whole(folder / "bytes.txt", text + "\n")
    draw(rows, folder / "bytes.png")
    write_json(folder / "bytes.json", {**provenance(runtime.device), "steps": count, "rows": rows})


if __name__ == "__main__":
    run(main)
