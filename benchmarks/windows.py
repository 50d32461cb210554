"""What local attention saves: time, memory and scores of dense, alternating and local layers.

    python benchmarks/windows.py
    python benchmarks/windows.py --lengths=1024,4096,16384 --window=256     # on a GPU

One forward and backward pass of a GPT per measurement, the patterns in turn. `kept` is what the
forward pass leaves for the backward pass, counted tensor by tensor, so it means the same on every
device; peak is the GPU's allocator's.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import torch

from benchmarks.harness import Results, in_turn, seconds_of, spread
from bonsai.models.kernels import to_device
from bonsai.planning.memory import GIB
from bonsai.system.errors import UserError, run
from bonsai.system.runtime import Runtime, setup
from configurator import Config, configure
from model import GPT, GPTConfig

lengths = "512,1024,2048"  # tokens of a row [list of int >= 1]
window = 256  # positions that a local layer sees [>= 1]
patterns = "D,DL,L"  # layer by layer, repeated: D dense, L local; DL is GPT-3's [list]
n_layer = 4  # [>= 1]
n_head = 8  # [>= 1]
n_embd = 512  # [>= 1]
repeats = 5  # [>= 1]
device = "auto"
dtype = "auto"  # [auto | float32 | bfloat16 | float16]
out = ""  # folder for windows.json and .txt [path]

COLUMNS = (
    ("T", "T", ",d"), ("pattern", "pattern", ""), ("scores/position", "scores", ",.0f"),
    ("ms", "spread.median", ".1f"), ("of the first", "ratio", ".2f"), ("kept, GiB", "kept", ".3f"),
    ("peak, GiB", "peak", ".2f"),
)  # fmt: skip


def kept_bytes(step) -> int:
    """Bytes of the different tensors that `step`, a forward pass, keeps for the backward pass."""
    seen: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = step()
    loss.backward()
    return sum(seen.values())


def scores_per_position(pattern: str, T: int, window: int) -> float:
    """Scores computed for a position, mean over the layers: T, or the two blocks of a window."""
    local = min(T, 2 * window)
    return sum(T if letter == "D" else local for letter in pattern) / len(pattern)


def measure(c: Config, T: int, runtime: Runtime) -> list[dict]:
    """A row per pattern, measured in turn."""
    names = c.patterns.split(",")
    idx = torch.randint(256, (1, T + 1), device=runtime.device)
    steps, rows, on_gpu = {}, {}, runtime.device.type == "cuda"
    for name in names:
        torch.manual_seed(0)
        shape = {"n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd, "position": "rope"}
        bands = {"attention_window": c.window, "window_pattern": name}
        try:
            config = GPTConfig(block_size=T, vocab_size=256, bias=False, **shape, **bands)
        except ValueError as e:
            raise UserError(e) from None
        model = to_device(GPT(config), runtime.device)

        def step(model=model):
            with runtime.autocast():
                return model(idx[:, :-1], idx[:, 1:])[1]

        steps[name] = step
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        kept = max(0, kept_bytes(step) - weights) / GIB  # and warms up
        rows[name] = {"T": T, "pattern": name, "kept": kept, "ms": []}
        rows[name]["scores"] = scores_per_position(name, T, c.window)
    for _, name in in_turn(names, c.repeats):
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = seconds_of(lambda name=name: steps[name]().backward(), runtime.synchronize)
        rows[name]["ms"].append(1000 * seconds)
        if on_gpu:
            rows[name]["peak"] = torch.cuda.max_memory_allocated() / GIB
    for row in rows.values():
        row["spread"] = spread(row["ms"])
        row["ratio"] = row["spread"]["median"] / rows[names[0]]["spread"]["median"]
    return list(rows.values())


def main(**settings) -> None:
    c = configure(globals(), settings=settings or None)
    runtime = setup(c.device, c.dtype, False)
    print(runtime.summary)
    results = Results("windows", c.out, runtime.device, COLUMNS, again=True, window=c.window)
    for T in map(int, c.lengths.split(",")):
        for row in measure(c, T, runtime):
            results.add(row)
    results.finish()


if __name__ == "__main__":
    run(main)
