"""Decoding speed: tokens per second, the memory's limit, and nanoGPT's generate on the same work.

    python benchmarks/decode.py                          # ours alone
    python benchmarks/decode.py --peer=../nanoGPT        # side by side
    python benchmarks/decode.py --sizes=char --repeats=5 --out=results

A one-token step reads every weight of the linear layers and the keys and values of all rows once:
no step is faster than these bytes at the measured read bandwidth. The table has the share of that
limit. "tokens/s" is of whole answers, prefill included (what nanoGPT's generate is compared on);
"decode/s" of all tokens but the first, all rows together. "drafted": the model's weights in int8
guess 8 tokens, which a step checks; such steps have no limit here. Weights are random, which
changes no timing but the drafted one; how much of a guess is right depends on the text, so every
repeat has prompts of its own. Repeats alternate between all contestants, in one process on one
machine.
"""

import statistics
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import torch

from benchmarks.harness import load_peer, peer_commit
from bonsai.engine import Engine, SamplingParams
from bonsai.engine.cpu.linear import call, products
from bonsai.engine.cpu.pages import LargePages
from bonsai.files.access import write_whole
from bonsai.files.jsonfile import write_json
from bonsai.models.table import build_model
from bonsai.system.errors import UserError, run
from bonsai.system.provenance import header, provenance
from bonsai.system.runtime import DTYPES, Runtime, cpu_computes_bfloat16, setup
from bonsai.system.tables import spread, table
from configurator import configure, resolve_path

# -----------------------------------------------------------------------------
peer = ""  # folder of a nanoGPT checkout to compare with [path]
sizes = "124M,char"  # models, from SIZES below [list]
kinds = "auto"  # of KINDS below, with ; between; auto: those that this machine computes in
batches = "auto"  # answers at once; auto: 1,16 on a CPU, 1,64 on a GPU [list of int >= 1]
repeats = 3  # of which the table has the median [>= 1]
device = "auto"  # cpu, cuda, cuda:1, mps; auto: the first of cuda, mps, cpu that is there
seed = 1337  # of weights and prompts [>= 0]
out = ""  # folder for decode.json and decode.txt [path]
# -----------------------------------------------------------------------------


@dataclass
class Size:
    model: dict  # settings, without dropout
    prompt: int  # tokens of the prompts
    tokens: int  # new ones
    long: int  # tokens of the prompt whose first answer is timed


SIZES = {
    "124M": Size(dict(vocab_size=50304), 200, 100, 1000),
    "char": Size(
        dict(n_layer=6, n_head=6, n_embd=384, block_size=256, vocab_size=65, bias=False),
        *(56, 200, 250),
    ),
    "toy": Size(dict(n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=65), 8, 12, 50),
}

# name -> (dtype, other settings of Engine)
KINDS = {
    "float32": ("float32", {}),
    "float32, drafted": ("float32", {"draft": 8}),
    "bfloat16": ("bfloat16", {}),
    "int8": ("bfloat16", {"quantize": "int8"}),
    "int8, float32": ("float32", {"quantize": "int8"}),  # for CPUs that do not compute in bfloat16
    "bfloat16 compiled": ("bfloat16", {"compile": True}),
    "int8 compiled": ("bfloat16", {"quantize": "int8", "compile": True}),
}

COLUMNS = [
    ("model", "size", ""),
    ("weights", "kind", ""),
    ("batch", "batch", "d"),
    ("tokens/s", "rate", ",.1f"),
    ("decode/s", "decode_rate", ",.1f"),
    ("spread", "spread", ".1%"),
    ("limit/s", "limit", ",.0f"),
    ("share", "share", ".1%"),
    ("to peer", "ratio", ".2f"),
    ("to batch 1", "batching", ".2f"),
    ("first token, ms", "first_ms", ",.0f"),
    ("kernels/step", "kernels", "d"),
    ("n", "n", "d"),
]


def read_bandwidth(runtime: Runtime) -> float:
    """Bytes per second that reading takes: the best of sums over, and products with, 1 GiB.

    On a CPU the engine's own product is among them, and the memory is in large pages, as its is.
    """
    matrix = torch.ones((2**16, 2**12), device=runtime.device)
    vector = torch.ones(2**12, device=runtime.device)
    reads = [lambda: matrix.sum(), lambda: matrix @ vector]
    if runtime.device.type == "cpu":
        matrix = LargePages().copy(matrix)
        if own := products().get(torch.float32):
            reads.append(lambda: call(own, vector, matrix, None, None))
    best = float("inf")
    for _ in range(5):
        for read in reads:
            runtime.synchronize()
            begin = time.perf_counter()
            read()
            runtime.synchronize()
            best = min(best, time.perf_counter() - begin)
    return matrix.nbytes / best


def bytes_per_step(model, kind: str, batch: int, length: float) -> float:
    """What a one-token step has to read: linear layers, final norm, keys and values."""
    dtype, settings = KINDS[kind]
    width = 4 if dtype == "float32" else 2
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    weights = sum(m.weight.numel() for m in linears) * (1 if "quantize" in settings else width)
    c = model.config
    return weights + batch * 2 * c.n_layer * c.kv_heads * c.head_dim * length * width


def answer(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> dict:
    """Seconds: of everything, to the first token of the first prompt, of the one-token steps."""
    begin = time.perf_counter()
    for prompt in prompts:
        engine.submit(prompt, params)
    engine.step()  # the prefills
    first = time.perf_counter() - begin
    steps = 0
    while engine.busy:
        engine.step()
        steps += 1
    total = time.perf_counter() - begin
    tokens = len(prompts) * (params.max_new_tokens - 1)
    rate = tokens / (total - first) if steps else None
    return {"seconds": total, "first": first, "decode_rate": rate}


def kernels_per_step(engine: Engine, prompt: list[int]) -> int | None:
    """GPU kernels that run in a one-token step, those of a replayed graph included."""
    if engine.device.type != "cuda":
        return None
    (request,) = engine.submit(prompt, SamplingParams(max_new_tokens=8, temperature=0))
    for _ in range(3):
        engine.step()
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        engine.step()
        torch.cuda.synchronize()
    engine.cancel(request)
    engine.step()
    events = profile.events()
    return sum(e.device_type == torch.autograd.DeviceType.CUDA for e in events)


class PeerAnswers:
    """nanoGPT's generate, from its own checkout."""

    def __init__(self, module, model, runtime: Runtime):
        c = model.config
        keys = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout")
        with redirect_stdout(StringIO()):  # it prints its size
            self.model = module.GPT(module.GPTConfig(**{k: getattr(c, k) for k in keys}))
        self.model.load_state_dict(model.state_dict())
        self.model.to(runtime.device).eval()
        self.runtime = runtime

    @torch.no_grad()
    def __call__(self, prompt: list[int], params: SamplingParams) -> float:
        idx = torch.tensor([prompt], device=self.runtime.device)
        begin = time.perf_counter()
        with self.runtime.autocast():  # as its sample.py
            self.model.generate(idx, params.max_new_tokens, params.temperature, params.top_k)
        self.runtime.synchronize()
        return time.perf_counter() - begin


@torch.no_grad()
def measure(name: str, module, runtime: Runtime) -> tuple[list[dict], dict]:
    """Rows of the table for one model, and what was measured beside them."""
    size, on_cpu = SIZES[name], runtime.device.type == "cpu"
    torch.manual_seed(seed)
    model = build_model("gpt", size.model).to(runtime.device).eval()
    params = SamplingParams(size.tokens, 0.8, 200, seed=seed)
    chosen = pick_kinds(runtime)
    counts = [
        int(b)
        for b in (("1,16" if on_cpu else "1,64") if batches == "auto" else batches).split(",")
    ]
    vocab = model.config.vocab_size
    prompts = torch.randint(vocab, (repeats + max(counts), size.prompt)).tolist()
    long = torch.randint(vocab, (size.long,)).tolist()
    engines = {
        kind: Engine(
            model,
            max(counts),
            dtype=DTYPES[dtype],
            **settings,
        )
        for kind, (dtype, settings) in ((k, KINDS[k]) for k in chosen)
    }
    theirs = PeerAnswers(module, model, runtime) if module else None
    found, first, peer_seconds, bandwidth = {}, {}, [], []
    for repeat in range(repeats + 1):  # the first warms up, and compiles
        keep = repeat > 0
        if keep:
            bandwidth.append(read_bandwidth(runtime))
        for kind, engine in engines.items():
            for batch in counts if not engine.draft else [1]:
                result = answer(engine, prompts[repeat : repeat + batch], params)
                if keep:
                    found.setdefault((kind, batch), []).append(result)
            result = answer(engine, [long], SamplingParams(1, 0))
            if keep:
                first.setdefault(kind, []).append(result["first"])
        if theirs:
            short = SamplingParams(size.tokens if keep else 2, 0.8, 200)
            seconds = theirs(prompts[repeat], short)
            if keep:
                peer_seconds.append(seconds)
    rows, speed = [], max(bandwidth)
    length = size.prompt + size.tokens / 2
    alone: dict[str, float] = {}
    for (kind, batch), results in found.items():
        rates = spread([batch * size.tokens / r["seconds"] for r in results])
        decode = spread([r["decode_rate"] for r in results])
        limit = batch * speed / bytes_per_step(model, kind, batch, length)
        alone.setdefault(kind, decode["median"])
        row = {
            "size": name,
            "kind": kind,
            "batch": batch,
            "rate": rates["median"],
            "rates": rates,
            "decode_rate": decode["median"],
            "decode_rates": decode,
            "spread": (rates["high"] - rates["low"]) / rates["median"],
            "limit": None if engines[kind].draft else limit,
            "share": None if engines[kind].draft else decode["median"] / limit,
            "batching": decode["median"] / alone[kind],
            "n": repeats,
        }
        if batch == counts[0]:
            row["first_ms"] = 1e3 * statistics.median(first[kind])
            row["kernels"] = kernels_per_step(engines[kind], prompts[0])
        if peer_seconds and batch == 1:
            pairs = zip(peer_seconds, results)
            row["ratio"] = statistics.median(p / r["seconds"] for p, r in pairs)
        rows.append(row)
    if peer_seconds:
        rates = spread([size.tokens / s for s in peer_seconds])
        rows.append(
            {
                "size": name,
                "kind": f"nanoGPT's generate, {runtime.dtype}",
                "batch": 1,
                "rate": rates["median"],
                "rates": rates,
                "spread": (rates["high"] - rates["low"]) / rates["median"],
                "n": repeats,
            }
        )
    return rows, {"bandwidth": spread(bandwidth), "first_token_prompt": size.long}


def pick_kinds(runtime: Runtime) -> list[str]:
    """The kinds of weights to measure."""
    if kinds != "auto":
        for kind in kinds.split(";"):
            if kind not in KINDS:
                raise UserError(f"kinds={kind} is not one of {'; '.join(KINDS)}")
        return kinds.split(";")
    if runtime.device.type == "cuda":
        return ["bfloat16", "bfloat16 compiled", "int8 compiled"]
    half = cpu_computes_bfloat16()
    plain = ["float32", "float32, drafted"]
    return [*plain, "bfloat16", "int8"] if half else [*plain, "int8, float32"]


def main() -> None:
    configure(globals())
    for name in sizes.split(","):
        if name not in SIZES:
            raise UserError(f"sizes={name} is not one of {', '.join(SIZES)}")
    module = load_peer(resolve_path(peer)) if peer else None
    # nanoGPT's sample.py: bfloat16 autocast on GPUs, and on CPUs nothing
    runtime = setup(device)
    if runtime.device.type == "cpu":
        runtime = setup(device, "float32")
    print("\n".join(header(runtime.device)), flush=True)
    about = provenance(runtime.device) | {"threads": torch.get_num_threads()}
    about["peer_commit"] = peer_commit(resolve_path(peer)) if peer else None
    rows, notes = [], {}
    for name in sizes.split(","):
        print(f"{name}: {repeats} repeats ...", flush=True)
        more, notes[name] = measure(name, module, runtime)
        rows += more
        speed = notes[name]["bandwidth"]
        print(f"{name}: reads {speed['high'] / 1e9:.1f} GB/s, at worst {speed['low'] / 1e9:.1f}")
        print(f"{name}: first token of a prompt of {SIZES[name].long} tokens", flush=True)
    text = table(rows, COLUMNS)
    print(f"\n{text}")
    if out:
        write_json(Path(out) / "decode.json", {**about, **{"notes": notes, "rows": rows}})
        write_whole(Path(out) / "decode.txt", text + "\n")


if __name__ == "__main__":
    run(main)
