"""How fast this machine trains a model, how much of it that uses, and where the time goes.

    python bench.py                                              # GPT-2 (124M), as on a GPU
    python bench.py --n_layer=6 --n_head=6 --n_embd=384 --block_size=256 --batch_size=16
    python bench.py --profile                                    # also where a step's time goes
    python bench.py config/fast_gpt2.py                          # the model of a run
    python bench.py --size=gpt3-13b --gpu=H100 --gpus=64         # what a model would cost
    torchrun --standalone --nproc_per_node=8 bench.py            # eight GPUs together

Each step is a step of train.py: its micro-batches, forward and backward, clipping, update. After
every step the program waits for the device. Without prepared data the batches are random tokens.
benchmarks/train.py compares with other projects.
"""

if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bonsai.data.batches import Batches, prefetch
from bonsai.data.dataset import Mixture
from bonsai.files.jsonfile import write_json
from bonsai.files.textfile import check_writable
from bonsai.models.table import CONFIGS, build_model
from bonsai.planning.costs import describe_size, meta_model
from bonsai.planning.memory import GIB, LOWER, describe_memory, memory_errors
from bonsai.planning.presets import FIELDS, find_preset
from bonsai.planning.published import beside_published
from bonsai.system.compiler import loading_compiler
from bonsai.system.devices import device_name, memory_in_use, peak_flops
from bonsai.system.errors import UserError, run
from bonsai.system.processes import common_settings
from bonsai.system.provenance import provenance
from bonsai.system.runtime import Runtime, setup
from bonsai.system.stopwatch import Stopwatch
from bonsai.system.tables import spread
from bonsai.training import breakdown
from bonsai.training.schedule import check_further, set_further
from bonsai.training.settings import StepSettings
from bonsai.training.step import TrainingStep
from bonsai.training.timing import TimedSteps, synthetic, time_steps
from configurator import Config, configure, model_fields, refuse_idle

# -----------------------------------------------------------------------------
# what is measured
steps = 20  # steps that count [>= 1]
warmup = 10  # steps before them that do not [>= 0]
profile = False  # profile 1 to 3 further steps: shares, longest kernels, and a trace in out_dir
out_dir = "out-bench"  # where the trace goes [path]
json = ""  # a file for the results; -: the last line of stdout [path]
# instead: what a model of the GPT family (bonsai/planning/presets.py) would cost; nothing is run
size = ""  # name of the model, such as gpt2-xl; fields that are set change it
gpu = "H100"  # the GPU on which it would be trained
gpus = 1  # how many of them [>= 1]
mfu = 0.4  # share of their peak FLOP/s that is reached [> 0, <= 1]
tokens = 0.0  # how many tokens to train on; 0: 20 per parameter [>= 0]
# data
real_data = True  # False: random tokens, the same in every step
dataset = "openwebtext"  # a folder in data/ [paths]
batch_size = 12  # rows of a micro-batch, per process [>= 1]
micro_batches = 1  # of a step; train.py has gradient_accumulation_steps of them together [>= 1]
seed = 1337  # of the weights and batches [>= 0]
# model
model = "gpt"  # the architecture; its fields are settings too
bias = False  # biases in the linear layers and norms (GPT-2: True)
# optimizer; see bonsai/training/optimizers.py
optimizer = "adamw"  # or muon: this changes the time of a step, the numbers below do not
learning_rate = StepSettings.learning_rate  # without a schedule [>= 0]
weight_decay = StepSettings.weight_decay  # on tensors of two or more dimensions [>= 0]
beta1 = StepSettings.beta1  # decay of AdamW's mean of the gradients [>= 0, < 1]
beta2 = StepSettings.beta2  # decay of AdamW's mean of the squared gradients [>= 0, < 1]
adam_eps = StepSettings.adam_eps  # added to the root of the mean square [>= 0]
grad_clip = StepSettings.grad_clip  # largest norm of the gradient; 0.0: no clipping [>= 0]
neuron_beta = StepSettings.neuron_beta  # muon: NorMuon's decay; 0.0: off [>= 0, < 1]
cautious_decay = StepSettings.cautious_decay  # muon: decay only where the update shrinks, too
further_weight = StepSettings.further_weight  # weight of a loss on the token after next [>= 0]
# system
device = "auto"  # cpu, cuda, cuda:1, mps; auto: the first of cuda, mps, cpu that is there
dtype = "auto"  # auto: bfloat16 where hardware computes in it [auto | float32 | bfloat16 | float16]
compile: bool | str = "auto"  # torch.compile; auto: on CUDA [auto | on | off]
backend = "auto"  # of torch.distributed; auto: nccl on CUDA [auto | nccl | gloo | mpi | ucc]
# -----------------------------------------------------------------------------

OF_A_MEASUREMENT = (
    "steps warmup profile out_dir json real_data dataset micro_batches seed device dtype compile "
    "backend"
)
TRACE = "trace.json"
PROFILED = 3  # micro-batches to profile, or one step if it has more: traces take long to write


def say(line: str, runtime: Runtime) -> None:
    if runtime.master:
        print(line, flush=True)


def open_data(c: Config, runtime: Runtime) -> Mixture | None:
    """The data set; None for random tokens, with the reason printed."""
    if not c.real_data:
        return None
    try:
        return Mixture.open(c.dataset)
    except UserError as e:
        of = f", of a vocabulary of {c.vocab_size:,} (vocab_size)"
        of = "" if "vocab_size" in c.given else of
        say(f"{e}; measuring with random tokens instead{of}", runtime)
        return None


def micro_batches_of(
    data: Mixture | None, T: int, vocab_size: int, c: Config, runtime: Runtime
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """x, y (batch_size, T) for ever: from a data set, or random tokens if there is none."""
    if data is None:
        return synthetic(vocab_size, c.batch_size, T, runtime.device)
    data.check(T, vocab_size, ["train"])
    world, pin = runtime.world_size, runtime.device.type == "cuda"
    batches = Batches(data, T, c.batch_size * c.micro_batches * world, c.seed)
    return prefetch(batches, 0, c.batch_size, runtime.rank, world, pin)


def time_updates(step: TimedSteps, count: int, runtime: Runtime) -> list[float]:
    """Milliseconds of the update in each of `count` steps. These steps as a whole are slower than
    others, because the program waits for the device before the update."""
    milliseconds = []
    for _ in range(count):
        step.backward()
        runtime.synchronize()
        begin = time.perf_counter()
        step.training.update()
        runtime.synchronize()
        milliseconds.append(1000 * (time.perf_counter() - begin))
    return milliseconds


def measure(c: Config, runtime: Runtime, watch: Stopwatch) -> tuple[TimedSteps, dict]:
    """Train some steps; returns the TimedSteps, to make more, and the results."""
    watch.lap("device")
    check_further(c)
    data = open_data(c, runtime)
    if data is not None and "vocab_size" not in c.given:
        c["vocab_size"] = data.model_vocab_size
    watch.lap("data")
    torch.manual_seed(c.seed)
    with loading_compiler(runtime.compile):
        model = build_model(c.model, c, runtime.device).to(runtime.device)
        watch.lap("model")
    watch.lap("imports")  # the wait for the thread that imports torch.compile
    T, vocab_size = model.config.block_size, model.config.vocab_size
    runtime.check_agreement(
        lambda: {"settings": common_settings(c), "number format": runtime.dtype}
    )
    say(f"number of parameters: {model.num_params() / 1e6:.2f}M", runtime)
    say(runtime.summary, runtime)
    say(describe_memory(model, c.batch_size, T, runtime), runtime)
    stream = micro_batches_of(data, T, vocab_size, c, runtime)
    settings = StepSettings(**model_fields(c, StepSettings))
    training = TrainingStep(model, settings, runtime, accumulates=c.micro_batches > 1)
    set_further(training.model, 0, settings)
    step = TimedSteps(training, stream, c.micro_batches)
    watch.lap("model")

    first = "compile and first step" if runtime.compile else "first step"
    if c.warmup:
        say(f"{c.warmup} steps to warm up{', compiling' if runtime.compile else ''}", runtime)
        time_steps(step, 1, runtime.synchronize)
        watch.lap(first)
        time_steps(step, c.warmup - 1, runtime.synchronize)
    seconds, losses, step.waited = [], [], 0.0
    for k in range(c.steps):
        runtime.synchronize()
        begin = time.perf_counter()
        losses.append(step.log(step())[0])
        runtime.synchronize()
        seconds.append(time.perf_counter() - begin)
        if first not in watch.laps:  # nothing was warmed up
            watch.lap(first)
        say(f"{k}/{c.steps} loss: {losses[-1]:.4f}, time {1000 * seconds[-1]:.2f}ms", runtime)
    waited = step.waited / sum(seconds)
    updates = time_updates(step, min(c.steps, 5), runtime)
    tokens = c.batch_size * c.micro_batches * T * runtime.world_size  # of a step
    ms = spread([1000 * s for s in seconds])
    rate = tokens / ms["median"] * 1000
    peak = peak_flops(runtime.device, runtime.dtype)
    flops = model.flops_per_token(T)
    return step, {
        "tokens_per_s": rate,
        "ms_per_step": ms,
        "ms_optimizer": spread(updates),
        "ms_mean": 1000 * sum(seconds) / c.steps,
        "mfu": rate * flops / peak / runtime.world_size if peak else None,
        "flops_per_token": flops,
        "peak_memory_bytes": memory_in_use(runtime.device),
        "waiting_for_data": waited if data else None,
        "seconds_to_start": watch.laps,
        "loss": losses[-1],
        "tokens_per_step": tokens,
        "parameters": model.num_params(),
        "processes": runtime.world_size,
        "dtype": runtime.dtype,
        "compile": runtime.compile,
        "data": c.dataset if data else "random tokens",
        "settings": dict(c),
    }


def profile_steps(step: TimedSteps, path: Path, runtime: Runtime) -> dict:
    """Print where the time of some steps goes and write a trace of them. Returns, for the results,
    the shares and what takes longest."""
    count = max(1, PROFILED // step.micro_batches)
    recorded = breakdown.record(step, count, runtime)
    rows = breakdown.timed(recorded.events(), runtime.device.type == "cuda")
    if runtime.master:
        print(f"\n{breakdown.describe(rows, count)}\n", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        breakdown.write_trace(recorded, path)
        steps = "a step" if count == 1 else f"{count} steps"
        print(f"a trace of {steps} is in {path}: open it in https://ui.perfetto.dev")
    return {"shares": breakdown.shares(rows), "longest": breakdown.longest(rows, count)}


def describe(results: dict, runtime: Runtime, watch: Stopwatch) -> str:
    """The results, a line each; nanoGPT's line last."""
    ms, mfu = results["ms_per_step"], "n/a"
    update = results["ms_optimizer"]["median"]
    use = f"n/a (the peak of {device_name(runtime.device)} in {runtime.dtype} is not known)"
    if results["mfu"] is not None:
        mfu = f"{100 * results['mfu']:.2f}%"
        use = f"{mfu} of {device_name(runtime.device)} in {runtime.dtype}"
    kind = "of the process" if runtime.device.type == "cpu" else "on the device"
    peak, memory = results["peak_memory_bytes"], "n/a (this system does not say)"
    if peak is not None:
        memory = f"{peak / GIB:.2f} GiB {kind}"
    data = "n/a (random tokens)"
    if results["waiting_for_data"] is not None:
        data = f"{100 * results['waiting_for_data']:.1f}% of the time"
    lines = [
        f"tokens/s          {results['tokens_per_s']:,.0f}",
        f"ms/step           {ms['median']:.2f} (median of {ms['n']}; "
        f"{ms['low']:.2f} to {ms['high']:.2f})",
        f"optimizer         {update:.2f} ms of them, {100 * update / ms['median']:.1f}%",
        f"MFU               {use}",
        f"peak memory       {memory}",
        f"waiting for data  {data}",
        f"loss              {results['loss']:.4f} in the last step",
        f"first step after  {watch}",
        f"time per iteration: {results['ms_mean']:.4f}ms, MFU: {mfu}",
    ]
    return "\n".join(lines)


def size_of(c: Config) -> str:
    """What the model named by `size` would cost; fields that were given change it."""
    preset = find_preset(c.size)
    given = {k: c[k] for k in c.given}
    model = meta_model(c.model, {**preset.fields, **given})
    published = f"published as {preset.published / 1e6:,.0f}M" if preset.published else ""
    notes = "; ".join(filter(None, (published, preset.note)))
    cost = describe_size(model, c.batch_size, c.gpu, c.gpus, c.mfu, c.tokens)
    return f"{c.size}{f' ({notes})' if notes else ''}\n\n{cost}"


def is_gpt2(c: Config) -> bool:
    """Whether the model has the size for which others have published measurements."""
    return c.model == "gpt" and (c.n_layer, c.n_embd, c.block_size) == (12, 768, 1024)


def main(**settings) -> None:
    watch = Stopwatch(since_the_command=not settings)
    c = configure(globals(), models=CONFIGS, presets=FIELDS, settings=settings, files_of="train.py")
    refuse_idle(
        c,
        (not c.size, "gpu gpus mfu tokens", "without --size"),
        (c.size, OF_A_MEASUREMENT, "with --size: nothing is run"),
        (not c.real_data, "dataset", "with --real_data=False"),
    )
    if c.size:
        print(size_of(c))
        return
    if c.json:
        check_writable(c.json, "the results")
    if c.profile:
        check_writable(Path(c.out_dir) / TRACE, "the trace")

    def too_large() -> str:
        return f" with batches of {c.batch_size} x {c.block_size} tokens: {LOWER}"

    watch.lap("imports")
    runtime = setup(c.device, c.dtype, c.compile, c.backend)

    def keep(results: dict) -> None:
        if c.json and runtime.master:
            write_json(c.json, {**provenance(runtime.device), **results})

    with runtime, memory_errors(too_large):
        step, results = measure(c, runtime, watch)
        say(describe(results, runtime, watch), runtime)
        if runtime.device.type == "cuda" and is_gpt2(c):
            rate = results["tokens_per_s"] / runtime.world_size
            say(f"\n{beside_published(rate, device_name(runtime.device))}", runtime)
        if c.profile:  # last, as a trace takes a while
            if c.json != "-":
                keep(results)
            results |= profile_steps(step, Path(c.out_dir) / TRACE, runtime)
    keep(results)


if __name__ == "__main__":
    run(main)
