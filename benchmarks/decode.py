"""Decoding speed: tokens per second, the memory's limit, and nanoGPT's generate on the same work.

    python benchmarks/decode.py                          # only ours
    python benchmarks/decode.py --peer=../nanoGPT        # side by side
    python benchmarks/decode.py --sizes=char --repeats=5 --out=results
    python benchmarks/decode.py --sizes=124M --prompt=100 --tokens=300
    python benchmarks/decode.py --out_dir=out-quickstart --most=4,8     # the gain of guessing ahead

A one-token step reads every weight of the linear layers, and the keys and values of all rows, once.
So no step is faster than reading these bytes at the measured bandwidth; "share" is how much of that
limit is reached. Repeats alternate between all contestants, in one process on one machine. If a
call is interrupted, its last model is measured again; results of earlier models are kept.

- "tokens/s" counts all tokens of an answer and the time of its prefill; nanoGPT's generate is
  compared by it. "decode/s" counts all tokens but the first, all rows together.
- "drafted": the model with int8 weights guesses 8 tokens, which a step checks; for such steps no
  limit is given. Weights are random; this changes only the time of drafted answers, where the
  number of right guesses depends on the text. So every repeat has other prompts.
- "cold" is the time to the first token of a row's first answer, with everything that is built for
  it; "longest wait" is the longest time between two steps after that token. A row with n = 0 has
  only warmed up.

With --out_dir a run's model writes one text at a time, with and without tokens guessed from the
text so far. Prompts are pieces of the run's validation data, and the ways take turns on each. "per
step" is how many tokens a step gave. In float32 the texts must be equal, which is checked.
"""

import itertools
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import torch

from benchmarks.harness import Peer, Results, known, seconds_of, spread
from bonsai.data.dataset import open_dataset
from bonsai.engine import Engine, SamplingParams
from bonsai.engine.cpu.linear import call, products
from bonsai.engine.cpu.pages import LargePages
from bonsai.engine.cuda.steps import AT_ONCE
from bonsai.models.loading import load_model
from bonsai.models.table import build_model
from bonsai.system.devices import DTYPES, cpu_computes_bfloat16
from bonsai.system.errors import UserError, run
from bonsai.system.runtime import Runtime, setup, setup_inference
from configurator import Config, configure, refuse_idle, resolve_path

# -----------------------------------------------------------------------------
peer = ""  # folder of a nanoGPT checkout to compare with [path]
sizes = "124M,char"  # models, from SIZES below [list]
kinds = "auto"  # from KINDS below, with ; between; auto: those that this machine supports
batches = "auto"  # answers at once; auto: 1,16 on a CPU, 1,64 on a GPU [list of int >= 1]
prompt = 0  # tokens of each prompt; 0: depends on the size [>= 0]
repeats = 3  # the table has their median [>= 1]
device = "auto"  # cpu, cuda, cuda:1, mps; auto: the first of cuda, mps, cpu that is there
seed = 1337  # of weights, prompts and draws [>= 0]
out = ""  # folder for decode or lookup .json and .txt; rows in it are not measured again [path]
force = False  # measure them again
# guessing ahead
out_dir = ""  # the run whose model writes; empty: the models above are measured [path]
most = "4,8"  # the most tokens to guess ahead [list of int >= 1]
temperatures = "0,0.8"  # 0: the likeliest token [list of float >= 0]
prompts = 4  # pieces of the validation data [>= 1]
tokens = 0  # of each answer; 0: depends on the size; with --out_dir half the context [>= 0]
dtype = "auto"  # auto: as in serve.py [auto | float32 | bfloat16 | float16]
quantize = ""  # int8: weights in 8 bits [int8]
# -----------------------------------------------------------------------------

# name: settings of the model; tokens of a prompt, of an answer, of the prompt for "first token"
SIZES = {
    "124M": (dict(vocab_size=50304), 200, 100, 1000),
    "char": (
        dict(n_layer=6, n_head=6, n_embd=384, block_size=256, vocab_size=65, bias=False),
        *(56, 200, 250),
    ),
    "toy": (dict(n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=65), 8, 12, 50),
}

# name -> (dtype, other settings of Engine)
KINDS = {
    "float32": ("float32", {}),
    "float32, drafted": ("float32", {"draft": 8}),
    "bfloat16": ("bfloat16", {}),
    "int8": ("bfloat16", {"quantize": "int8"}),
    "int8, float32": ("float32", {"quantize": "int8"}),  # for CPUs that do not compute in bfloat16
    "bfloat16, graphs": ("bfloat16", {"capture": True}),
    "bfloat16, graphs in order": ("bfloat16", {"capture": True, "overlap": False}),
    "int8, graphs": ("bfloat16", {"quantize": "int8", "capture": True}),
    "bfloat16 compiled": ("bfloat16", {"compile": True}),
    "int8 compiled": ("bfloat16", {"quantize": "int8", "compile": True}),
}

COLUMNS = (
    ("model", "size", ""), ("weights", "kind", ""), ("batch", "batch", "d"),
    ("tokens/s", "rates.median", ",.1f"), ("decode/s", "decode_rates.median", ",.1f"),
    ("spread", "rates.spread", ".1%"), ("limit/s", "limit", ",.0f"), ("share", "share", ".1%"),
    ("to peer", "ratio", ".2f"), ("to batch 1", "batching", ".2f"),
    ("first token, ms", "first_ms", ",.0f"), ("cold, s", "cold", ".2f"),
    ("longest wait, s", "wait", ".3f"), ("kernels/step", "kernels", "d"),
    ("n", "rates.n", "d"),
)  # fmt: skip
LOOKUP_COLUMNS = (
    ("temperature", "temperature", "g"), ("lookup", "lookup", "d"), ("tokens/s", "rate", ",.0f"),
    ("per step", "per_step", ".2f"), ("to plain", "gain.median", ".2f"),
    ("at worst", "gain.low", ".2f"), ("n", "gain.n", "d"),
)  # fmt: skip


def answer(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> dict:
    """The tokens of all answers; the seconds of everything, and to the first token of the first
    prompt; after it the number of steps and of tokens, their rate, and the longest time between two
    steps."""
    begin = time.perf_counter()
    requests = [engine.submit(prompt, params)[0] for prompt in prompts]
    while engine.busy and not requests[0].tokens:  # the prefills, and the first queued steps if any
        engine.step()
    begun = sum(len(request.tokens) for request in requests)
    first = time.perf_counter() - begin
    ends = [time.perf_counter()]
    while engine.busy:
        engine.step()
        ends.append(time.perf_counter())
    total, steps = ends[-1] - begin, len(ends) - 1
    wait = max((b - a for a, b in itertools.pairwise(ends)), default=0.0)
    written = [request.tokens for request in requests]
    later = sum(map(len, written)) - begun
    rate = later / (total - first) if steps else None
    times = {"seconds": total, "first": first, "decode_rate": rate, "wait": wait}
    return {**times, "steps": steps, "later": later, "tokens": written}


# ---- models with random weights, beside the memory's limit and a peer ----


def read_bandwidth(runtime: Runtime) -> float:
    """The memory's bandwidth in bytes per second: the best of sums and products over 1 GiB.

    On a CPU the engine's own product is one of these, and the memory has large pages, as in it.
    """
    matrix = torch.ones((2**16, 2**12), device=runtime.device)
    vector = torch.ones(2**12, device=runtime.device)
    reads = [lambda: matrix.sum(), lambda: matrix @ vector]
    if runtime.device.type == "cpu":
        matrix = LargePages().copy(matrix)
        if product := products().get(torch.float32):
            reads.append(lambda: call(product, vector, matrix, None, None))
    return matrix.nbytes / min(seconds_of(r, runtime.synchronize) for _ in range(5) for r in reads)


def bytes_per_step(model, kind: str, batch: int, length: float) -> float:
    """The bytes that a one-token step has to read: linear layers, keys and values."""
    dtype, settings = KINDS[kind]
    width = 4 if dtype == "float32" else 2
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    weights = sum(m.weight.numel() for m in linears) * (1 if "quantize" in settings else width)
    c = model.config
    return weights + batch * 2 * c.n_layer * c.kv_heads * c.head_dim * length * width


def kernels_per_step(engine: Engine, prompt: list[int]) -> int | None:
    """How many GPU kernels a one-token step runs, including those of a replayed graph."""
    if engine.device.type != "cuda":
        return None
    (request,) = engine.submit(prompt, SamplingParams(max_new_tokens=64, temperature=0))
    for _ in range(3):
        engine.step()
    torch.cuda.synchronize()
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        engine.step()
        torch.cuda.synchronize()
    steps = len(engine.flight.tokens) if engine.flight else 1  # queued ones
    engine.cancel(request)
    engine.step()
    events = profile.events()
    return sum(e.device_type == torch.autograd.DeviceType.CUDA for e in events) // steps


def peer_model(peer: Peer, model, runtime: Runtime) -> torch.nn.Module:
    """The peer's GPT with our model's weights."""
    keys = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout")
    theirs = peer.model({k: getattr(model.config, k) for k in keys})
    theirs.load_state_dict(model.state_dict())
    return theirs.to(runtime.device).eval()


def peer_seconds(theirs, prompt: list[int], params: SamplingParams, runtime: Runtime) -> float:
    idx = torch.tensor([prompt], device=runtime.device)
    arguments = (idx, params.max_new_tokens, params.temperature, params.top_k)
    with runtime.autocast():  # as in its sample.py
        return seconds_of(lambda: theirs.generate(*arguments), runtime.synchronize)


@torch.no_grad()
def measure(c: Config, name: str, peer: Peer | None, runtime: Runtime, results: Results) -> None:
    """Measure the rows of the table for one model; they are written after every measurement."""
    settings, prompt_length, count, long_length = SIZES[name]
    torch.manual_seed(c.seed)
    model = build_model("gpt", settings).to(runtime.device).eval()
    prompt_length, count = c.prompt or prompt_length, c.tokens or count
    kinds = pick_kinds(c, runtime)
    # The rate is that of the tokens after those of the first step, or of the first queued steps
    least = AT_ONCE + 1 if any("capture" in KINDS[kind][1] for kind in kinds) else 2
    if count < least or prompt_length + count > model.config.block_size:
        raise UserError(
            f"{name}: an answer has {least} tokens or more (--tokens), and with its prompt "
            f"(--prompt) at most {model.config.block_size}"
        )
    params = SamplingParams(count, 0.8, 200, seed=c.seed)
    auto = "1,16" if runtime.device.type == "cpu" else "1,64"
    counts = [int(b) for b in (auto if c.batches == "auto" else c.batches).split(",")]
    vocab = model.config.vocab_size
    prompts = torch.randint(vocab, (c.repeats + max(counts), prompt_length)).tolist()
    long = torch.randint(vocab, (long_length,)).tolist()
    engines = {}
    for kind in kinds:
        dtype, settings = KINDS[kind]
        engines[kind] = Engine(model, max(counts), dtype=DTYPES[dtype], **settings)
    keys = [(k, n) for k, e in engines.items() for n in (counts if not e.draft else [1])]
    fewest = dict(reversed(keys))  # the first number of answers of each kind
    theirs = peer_model(peer, model, runtime) if peer else None
    others = [row for row in results.rows if row["size"] != name]
    length = prompt_length + count / 2
    rows = {key: {"size": name, "kind": key[0], "batch": key[1], "wait": 0.0} for key in keys}
    answers, first, peer_times, bandwidth = {}, {}, [], []

    def note(key: tuple[str, int], found: dict, repeat: int) -> None:
        kind, batch = key
        row, before = rows[key], answers.get(key, [])
        if not repeat:
            row["cold"] = found["first"]  # with everything that is built for the first answer
        answers[key] = given = [*before, found] if repeat > 1 else [found]  # the first warms up
        row["wait"] = max(row["wait"], found["wait"])
        row["rates"] = spread([batch * count / r["seconds"] for r in given])
        row["rates"]["n"] = repeat
        row["decode_rates"] = decode = spread([r["decode_rate"] for r in given])
        alone = rows[kind, fewest[kind]].get("decode_rates", decode)
        row["batching"] = decode["median"] / alone["median"]
        row["bandwidth"] = spread(bandwidth)
        if not engines[kind].draft:
            row["limit"] = batch * max(bandwidth) / bytes_per_step(model, kind, batch, length)
            row["share"] = decode["median"] / row["limit"]

    def write() -> None:
        results.put([*others, *(row for row in rows.values() if "rates" in row)])

    for repeat in range(c.repeats + 1):
        bandwidth.append(read_bandwidth(runtime))
        for key in keys:
            kind, batch = key
            engine = engines[kind]
            note(key, answer(engine, prompts[repeat : repeat + batch], params), repeat)
            if batch == fewest[kind]:
                alone = answer(engine, [long], SamplingParams(1, 0))["first"]
                first[kind] = [*first.get(kind, []), alone] if repeat > 1 else [alone]
                rows[key]["first_ms"] = 1e3 * statistics.median(first[kind])
            write()
        if theirs and not repeat:
            peer_seconds(theirs, prompts[0], SamplingParams(2, 0.8, 200), runtime)
        elif theirs:
            peer_times.append(
                peer_seconds(theirs, prompts[repeat], SamplingParams(count, 0.8, 200), runtime)
            )
            for key in (key for key in keys if key[1] == 1):
                pairs = zip(peer_times, answers[key])
                rows[key]["ratio"] = statistics.median(p / r["seconds"] for p, r in pairs)
            kind = f"nanoGPT's generate, {runtime.dtype}"
            rates = spread([count / s for s in peer_times])
            rows["peer"] = {"size": name, "kind": kind, "batch": 1, "rates": rates}
            write()
    for kind, engine in engines.items():
        rows[kind, fewest[kind]]["kernels"] = kernels_per_step(engine, prompts[0])
    for row in rows.values():
        row["whole"] = True
    write()
    speed = spread(bandwidth)
    print(f"{name}: reads {speed['high'] / 1e9:.1f} GB/s, at worst {speed['low'] / 1e9:.1f}")
    print(f"{name}: prompts of {prompt_length} tokens, answers of {count}")
    print(f"{name}: first token of a prompt of {long_length} tokens", flush=True)


def pick_kinds(c: Config, runtime: Runtime) -> list[str]:
    """The kinds of weights to measure."""
    if c.kinds != "auto":
        known("kinds", c.kinds.split(";"), KINDS, "; ")
        return c.kinds.split(";")
    if runtime.device.type == "cuda":
        return ["bfloat16", "bfloat16, graphs", "int8, graphs", "bfloat16 compiled"]
    half = cpu_computes_bfloat16()
    plain = ["float32", "float32, drafted"]
    return [*plain, "bfloat16", "int8"] if half else [*plain, "int8, float32"]


def compare(c: Config) -> None:
    known("sizes", c.sizes.split(","), SIZES)
    peer = Peer(resolve_path(c.peer)) if c.peer else None
    # the dtype of nanoGPT's sample.py: bfloat16 autocast on GPUs, float32 on CPUs
    runtime = setup(c.device)
    if runtime.device.type == "cpu":
        runtime = setup(c.device, "float32")
    pick_kinds(c, runtime)  # raises an error for an unknown one before anything is measured
    about = {"threads": torch.get_num_threads(), "peer_commit": peer.commit if peer else None}
    about |= {name: c[name] for name in ("kinds", "batches", "prompt", "tokens", "repeats", "seed")}
    results = Results("decode", c.out, runtime.device, COLUMNS, again=c.force, **about)
    for name in c.sizes.split(","):
        if results.find({"size": name, "whole": True}):
            print(f"{name}: measured before, in {results.folder}")
            continue
        print(f"{name}: {c.repeats} repeats ...", flush=True)
        measure(c, name, peer, runtime, results)
    results.finish()


# ---- the model of a run, with and without guesses ----


def guess(c: Config) -> None:
    runtime = setup_inference(c.device, c.dtype, False, c.quantize)
    loaded = load_model("best", str(resolve_path(c.out_dir)), {"dropout": 0.0})
    model = loaded.model.to(runtime.device)
    context = model.config.block_size
    count = c.tokens or context // 2
    if not 1 < count < context:
        raise UserError(f"tokens={c.tokens} must be between 2 and {context - 1}")
    val = open_dataset(loaded.checkpoint["config"]["dataset"]).split("val")
    length = context - count
    begins = [i * (len(val) - length) // c.prompts for i in range(c.prompts)]
    texts = [val.read(b, length).tolist() for b in begins]
    about = {"dtype": runtime.dtype, "model": loaded.source, "step": loaded.checkpoint["iter_num"]}
    settings = ("quantize", "most", "prompts", "tokens", "repeats", "seed")
    about |= {name: c[name] for name in settings}
    results = Results("lookup", c.out, runtime.device, LOOKUP_COLUMNS, again=c.force, **about)
    ways, weights = [0, *(int(n) for n in c.most.split(","))], DTYPES[runtime.dtype]
    engines = {n: Engine(model, 1, dtype=weights, quantize=c.quantize, lookup=n) for n in ways}
    exact = runtime.dtype == "float32" and not c.quantize
    for temperature in map(float, c.temperatures.split(",")):
        if results.find({"temperature": temperature}):
            print(f"temperature {temperature:g}: measured before, in {results.folder}")
            continue
        params = SamplingParams(count, temperature, seed=c.seed)
        answers = {n: [] for n in ways}
        for repeat, text in [(r, text) for r in range(c.repeats + 1) for text in texts]:
            given = {n: answer(engine, [text], params) for n, engine in engines.items()}
            for n, result in given.items():
                answers[n] += [result] if repeat else []  # the first warms up
                if exact and result["tokens"] != given[0]["tokens"]:
                    print(f"lookup={n} wrote another text at temperature {temperature}")
        rows = list(results.rows)
        for n, of_one in answers.items():
            pairs = zip(of_one, answers[0])
            gains = [a["decode_rate"] / plain["decode_rate"] for a, plain in pairs]
            row = {"rate": statistics.median(a["decode_rate"] for a in of_one)}
            row["per_step"] = sum(a["later"] for a in of_one) / sum(a["steps"] for a in of_one)
            row["gain"] = spread(gains)
            rows.append({"temperature": temperature, "lookup": n, **row})
        results.put(rows)
    results.finish()


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    refuse_idle(
        c,
        (c.out_dir, "peer sizes kinds batches prompt", "with --out_dir"),
        (not c.out_dir, "most temperatures prompts dtype quantize", "without --out_dir"),
    )
    (guess if c.out_dir else compare)(c)


if __name__ == "__main__":
    run(main)
