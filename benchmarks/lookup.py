"""What guessing ahead brings: tokens per second of one text at a time, with and without.

    python benchmarks/lookup.py --out_dir=out-quickstart --most=4,8
    python benchmarks/lookup.py --out_dir=out-shakespeare-char --quantize=int8 --repeats=5

Prompts are pieces of the run's validation data; the ways take turns on each. "per step" is how many
tokens a step gave; in float32 the texts are the same, which is checked.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line


from bonsai.data.dataset import open_dataset
from bonsai.engine import Engine, SamplingParams
from bonsai.files.jsonfile import write_json
from bonsai.models.loading import load_model
from bonsai.system.errors import UserError, run
from bonsai.system.provenance import header, provenance
from bonsai.system.runtime import DTYPES, setup_inference
from bonsai.system.tables import table
from configurator import configure, resolve_path

# -----------------------------------------------------------------------------
out_dir = "out"  # the run whose model writes [path]
most = "4,8"  # tokens to guess ahead, at most [list of int >= 1]
temperatures = "0,0.8"  # 0: the likeliest token [list of float >= 0]
prompts = 4  # pieces of the validation data [>= 1]
tokens = 0  # of each answer; 0: half the context, after a prompt of the other half [>= 0]
repeats = 3  # of which the table has the median [>= 1]
device = "auto"  # cpu, cuda, cuda:1, mps; auto: the first of cuda, mps, cpu that is there
dtype = "auto"  # auto: as serve.py [auto | float32 | bfloat16 | float16]
quantize = ""  # int8: weights in 8 bits [int8]
seed = 1337  # of the draws [>= 0]
out = ""  # folder for lookup.json [path]
# -----------------------------------------------------------------------------


def answer(engine: Engine, prompt: list[int], params: SamplingParams) -> tuple[float, int, list]:
    """Seconds after the prefill, steps, tokens."""
    (request,) = engine.submit(prompt, params)
    engine.step()
    begin, steps = time.perf_counter(), 0
    while engine.busy:
        engine.step()
        steps += 1
    return time.perf_counter() - begin, steps, request.tokens


def main() -> None:
    configure(globals())
    runtime = setup_inference(device, dtype, False, quantize)
    loaded = load_model("best", str(resolve_path(out_dir)), {"dropout": 0.0})
    model = loaded.model.to(runtime.device)
    context = model.config.block_size
    count = tokens or context // 2
    if not 1 < count < context:
        raise UserError(f"tokens={tokens} must be between 2 and {context - 1}")
    val = open_dataset(loaded.checkpoint["config"]["dataset"]).split("val")
    length = context - count
    begins = [i * (len(val) - length) // prompts for i in range(prompts)]
    texts = [val.read(b, length).tolist() for b in begins]
    print("\n".join(header(runtime.device)), flush=True)
    ways = [0, *(int(n) for n in most.split(","))]
    engines = {
        n: Engine(model, 1, dtype=DTYPES[runtime.dtype], quantize=quantize, lookup=n) for n in ways
    }
    rows = []
    for temperature in map(float, temperatures.split(",")):
        params = SamplingParams(count, temperature, seed=seed)
        found = {n: [] for n in ways}
        for repeat in range(repeats + 1):  # the first warms up
            for text in texts:
                results = {n: answer(engine, text, params) for n, engine in engines.items()}
                for n, result in results.items():
                    if repeat:
                        found[n].append(result)
                    if result[2] != results[0][2] and runtime.dtype == "float32" and not quantize:
                        print(f"lookup={n} wrote another text, temperature {temperature}")
        for n in ways:
            rates = [(len(written) - 1) / seconds for seconds, _, written in found[n]]
            gains = [plain[0] / result[0] for plain, result in zip(found[0], found[n])]
            steps = sum(result[1] for result in found[n])
            rows.append(
                {
                    "temperature": temperature,
                    "lookup": n,
                    "rate": statistics.median(rates),
                    "per_step": sum(len(r[2]) - 1 for r in found[n]) / steps,
                    "gain": statistics.median(gains),
                    "least": min(gains),
                    "n": len(gains),
                }
            )
    columns = [
        ("temperature", "temperature", "g"),
        ("lookup", "lookup", "d"),
        ("tokens/s", "rate", ",.0f"),
        ("per step", "per_step", ".2f"),
        ("to plain", "gain", ".2f"),
        ("at worst", "least", ".2f"),
        ("n", "n", "d"),
    ]
    print(table(rows, columns))
    if out:
        about = {**provenance(runtime.device), "dtype": runtime.dtype, "quantize": quantize}
        write_json(Path(out) / "lookup.json", {**about, "rows": rows})


if __name__ == "__main__":
    run(main)
