"""The savings of local attention: time, memory and scores of dense, alternating and local layers.

    python benchmarks/windows.py
    python benchmarks/windows.py --lengths=1024,4096,16384 --window=256     # on a GPU

A measurement is one forward and backward pass of a GPT; the patterns take turns. On a GPU the model
is compiled, which makes local attention one kernel. "kept" is the memory that the forward pass
keeps for the backward pass, "peak" the most memory that the GPU's allocator had in use.
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
patterns = "D,DL,L"  # of layers, repeated: D dense, L local; DL is GPT-3's [list]
n_layer = 4  # [>= 1]
n_head = 8  # [>= 1]
n_embd = 512  # [>= 1]
repeats = 5  # [>= 1]
device = "auto"
dtype = "auto"  # [auto | float32 | bfloat16 | float16]
compile: bool | str = "auto"  # torch.compile; auto: on CUDA [auto | on | off]
out = ""  # folder for windows.json and .txt; rows in it are not measured again [path]
force = False  # measure them again

COLUMNS = (
    ("T", "T", ",d"), ("pattern", "pattern", ""), ("scores/position", "scores", ",.0f"),
    ("ms", "spread.median", ".1f"), ("of the first", "ratio", ".2f"), ("kept, GiB", "kept", ".3f"),
    ("peak, GiB", "peak", ".2f"),
)  # fmt: skip


def kept_bytes(step, weights: int) -> int:
    """Bytes that `step`, a forward pass, keeps for the backward pass besides the weights: on a GPU
    by its allocator, else the sizes of the saved tensors."""
    step().backward()  # compiles, and allocates the gradients
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        loss = step()
        kept = torch.cuda.memory_allocated() - before
        loss.backward()
        return kept
    seen: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        step().backward()
    return max(0, sum(seen.values()) - weights)


def scores_per_position(pattern: str, T: int, window: int) -> float:
    """Scores computed for a position, mean over the layers: T, or two blocks of `window`."""
    local = min(T, 2 * window)
    return sum(T if letter == "D" else local for letter in pattern) / len(pattern)


def measure(c: Config, T: int, runtime: Runtime) -> list[dict]:
    """A row per pattern, measured in turn."""
    torch.compiler.reset()  # each length gets graphs of its own, rather than one for all lengths
    names = c.patterns.split(",")
    idx = torch.randint(256, (1, T), device=runtime.device)
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
        net = torch.compile(model) if runtime.compile else model

        def step(net=net):
            with runtime.autocast():
                return net(idx, idx, return_logits=False)[1]

        steps[name] = step
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        rows[name] = {"T": T, "pattern": name, "kept": kept_bytes(step, weights) / GIB, "ms": []}
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
    c = configure(globals(), settings=settings)
    runtime = setup(c.device, c.dtype, c.compile)
    print(runtime.summary)
    about = {name: c[name] for name in ("patterns", "window", "n_layer", "n_head", "n_embd")}
    about |= {"repeats": c.repeats, "dtype": runtime.dtype, "compile": runtime.compile}
    results = Results("windows", c.out, runtime.device, COLUMNS, again=c.force, **about)
    for T in map(int, c.lengths.split(",")):
        if all(results.find({"T": T, "pattern": p}) for p in c.patterns.split(",")):
            print(f"T={T}: measured before, in {results.folder}")
            continue
        results.rows = [row for row in results.rows if row["T"] != T]
        for row in measure(c, T, runtime):
            results.add(row)
    results.finish()


if __name__ == "__main__":
    run(main)
