"""How good trained models are: loss, perplexity, bits per byte, and scores on questions.

    python eval.py --out_dir=out-shakespeare-char             # on the data it was trained on
    python eval.py --out_dir=out-a,out-b --dataset=my_text    # two runs side by side
    python eval.py --init_from=gpt2,out/best.pt --dataset=openwebtext --json=results.json
    python eval.py --init_from=gpt2 --choices=hellaswag_val.jsonl
    python eval.py --init_from=gpt2 --tasks=hellaswag,lambada_openai,piqa   # pip install lm_eval
    python eval.py --init_from=gpt2 --core=eval_bundle                      # CORE, of 22 tasks
    torchrun --standalone --nproc_per_node=8 eval.py --out_dir=out

The loss is the mean over all tokens of a split except the first, in windows of block_size that do
not overlap. Bits per byte of text can be compared across tokenizers; perplexity, the exponential of
the loss, cannot. A question is answered with its likeliest ending;
bonsai/evaluation/choices.py measures in three ways which one that is.
"""

if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import math
import sys
from collections.abc import Callable
from functools import partial

import torch

from bonsai.data.dataset import Mixture
from bonsai.engine.text import find_tokenizer
from bonsai.evaluation.choices import Question, multiple_choice, read_questions
from bonsai.evaluation.core import Task, read_bundle
from bonsai.evaluation.core import core as score_bundle
from bonsai.evaluation.loss import bits_per_byte, split_loss
from bonsai.files.atomic import is_stream
from bonsai.files.jsonfile import write_json
from bonsai.files.textfile import check_writable
from bonsai.models.kernels import to_device
from bonsai.models.loading import Loaded, find_source, load_model
from bonsai.planning.memory import memory_errors
from bonsai.system.errors import UserError, run
from bonsai.system.hub import use_cache_if_offline
from bonsai.system.libraries import installed
from bonsai.system.paths import split_paths
from bonsai.system.processes import common_settings, weights_checksum
from bonsai.system.provenance import provenance
from bonsai.system.runtime import Runtime, setup
from bonsai.system.tables import table
from bonsai.tokenizers import Tokenizer
from bonsai.training.forecast import tracked
from configurator import Config, configure, refuse_idle, resolve_path

# -----------------------------------------------------------------------------
# the models
init_from = "resume"  # resume: the run in out_dir; gpt2*; checkpoints or folders: a,b [paths]
out_dir = "out"  # the run to evaluate; a,b: several; ignored if init_from is not resume [paths]
# the data
dataset = ""  # a folder in data/, or a,b: several; default: what the model was trained on [paths]
other_tokenizer = False  # evaluate even if the data's tokenizer is not the model's
split = "val"  # [val | train]
windows = 0  # how many, spread evenly over the split; 0: all [>= 0]
block_size = 0  # tokens in a window; 0: as many as the model can take [>= 0]
choices = ""  # multiple-choice questions: JSON lines in HellaSwag's format [path]
tasks = ""  # tasks of lm-evaluation-harness: hellaswag,piqa,... [list]
tasks_dir = ""  # a folder of your own tasks, as YAML files in the harness's format [path]
core = ""  # the bundle of CORE's 22 tasks: a folder with core.yaml and eval_data/ [path]
limit = 0  # questions of each task, also of CORE's; 0: all [>= 0]
as_chat = False  # with --tasks: questions are messages, in the model's chat template
num_fewshot = -1  # with --tasks: solved questions in front of each; -1: as the task says [>= -1]
batch_size = 12  # windows, or endings, at a time [>= 1]
strided = False  # megabyte: two passes, the better half of each patch; takes twice as long
json = ""  # a file for the results; -: the last line of stdout [path]
# system
device = "auto"  # cpu, cuda, cuda:1, mps; auto: the first of cuda, mps, cpu that is there
dtype = "float32"  # float32 is exact; auto: as in training [auto | float32 | bfloat16 | float16]
compile = False  # torch.compile the model: worth it for long evaluations on a GPU
backend = "auto"  # of torch.distributed; auto: nccl on CUDA [auto | nccl | gloo | mpi | ucc]
# -----------------------------------------------------------------------------

# columns of the tables: the title, the key in a result, how it is formatted
HEAD = (("checkpoint", "checkpoint", ""), ("step", "step", ","))
LOSSES = (
    *HEAD,
    ("params", "parameters", ","),
    ("data set", "dataset", ""),
    ("split", "split", ""),
    ("block", "block_size", ""),
    ("tokens", "tokens", ","),
    ("loss", "loss", ".4f"),
    ("perplexity", "perplexity", ",.2f"),
    ("bits per byte", "bits_per_byte", ".4f"),
)
SCORES = (
    *HEAD,
    ("questions", "questions", ","),
    ("accuracy", "accuracy", ".2%"),
    ("± error", "error", ".2%"),
    ("per token", "accuracy_per_token", ".2%"),
    ("per byte", "accuracy_per_byte", ".2%"),
    ("chance", "chance", ".2%"),
)
CORE = (
    *HEAD,
    ("task", "task", ""),
    ("questions", "questions", ","),
    ("accuracy", "accuracy", ".2%"),
    ("centered", "centered", ".4f"),
)
TASKS = (
    *HEAD,
    ("task", "task", ""),
    ("metric", "metric", ""),
    ("value", "value", ".4f"),
    ("± error", "error", ".4f"),
)


def sources(c: Config) -> list[str]:
    """What load_model takes for each of the models."""
    sources = []
    for name in split_paths(c.init_from):
        for folder in split_paths(c.out_dir) if name == "resume" else ["out"]:
            sources.append(find_source(name, folder))
    if not sources:
        raise UserError("nothing to evaluate: give --out_dir or --init_from")
    return sources


def check_data(c: Config, loaded: Loaded, data: Mixture, block: int) -> None:
    """Raise UserError if the data are not what the model reads."""
    data.check_tokenizer(loaded.tokenizer, loaded.source, insist=c.other_tokenizer)
    if not 0 < block <= loaded.model.config.block_size:
        raise UserError(
            f"block_size={block} is not between 1 and the {loaded.model.config.block_size} tokens "
            f"that {loaded.source} can take"
        )
    data.check(block, loaded.model.config.vocab_size, [c.split])


def evaluate(c: Config, loaded: Loaded, model, spec: str, runtime: Runtime) -> list[dict]:
    """Losses of one model on the data sets of a spec: a row for each, and for their mixture."""
    block = c.block_size or loaded.model.config.block_size
    data = Mixture.open(spec)
    check_data(c, loaded, data, block)
    runtime.check_agreement(lambda: {"data": data.samples()})
    for note in filter(None, (loaded.unknown_tokenizer, data.without_bytes(c.split))):
        if runtime.master:
            print(note, file=sys.stderr, flush=True)
    rows = []
    for part in data.parts:
        text = part.split(c.split)
        track = progress(runtime, f"{loaded.source} on {part.name}")
        loss, tokens = split_loss(model, text, runtime, block, c.batch_size, c.windows, track)
        rows.append(result(c, part.name, block, tokens, loss, text.bytes_per_token))
    if ":" in spec and len(rows) > 1:  # by weight: what its training reported
        loss = sum(part.weight * row["loss"] for part, row in zip(data.parts, rows))
        tokens, per_token = sum(row["tokens"] for row in rows), data.bytes_per_token(c.split)
        rows.append(result(c, spec, block, tokens, loss, per_token))
    return rows


def result(
    c: Config, name: str, block: int, tokens: int, loss: float, bytes_per_token: float | None
) -> dict:
    """A row of the table of losses, without what is said of the model."""
    return {
        "dataset": name,
        "split": c.split,
        "block_size": block,
        "tokens": tokens,
        "loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "bits_per_byte": bits_per_byte(loss, bytes_per_token),
    }


def progress(runtime: Runtime, what: str):
    """Shows how far it is, on stderr: stdout is for the results."""
    say = partial(print, file=sys.stderr, flush=True)
    return partial(tracked, label=what, say=say, on=runtime.master)


def in_common(c: Config, model) -> dict:
    """What all processes have in common that share the work on a model."""
    return {"settings": common_settings(c), "weights": weights_checksum(model)}


def evaluate_all(
    c: Config,
    questions: list[Question],
    bundle: list[Task],
    runtime: Runtime,
    keep: Callable[[dict], object] | None = None,
) -> dict[str, list[dict]]:
    """Every model on every data set, on the questions, and on tasks. keep: is given the results so
    far before each further model."""
    results = {"losses": [], "choices": [], "core": [], "tasks": []}
    for number, source in enumerate(sources(c)):
        if number and keep:  # hours of work, and another model may fail
            keep(results)
        loaded = load_model(source)
        if loaded.newer and runtime.master:
            print(loaded.newer, file=sys.stderr, flush=True)
        runtime.check_agreement(partial(in_common, c, loaded.model))
        steps = (loaded.checkpoint or {}).get("iter_num")
        raw_model = to_device(loaded.model, runtime.device)
        if c.strided and loaded.name != "megabyte":
            raise UserError(f"{loaded.source} is a {loaded.name}: only megabyte has --strided")
        if c.strided:
            raw_model.strided = True
        model = torch.compile(raw_model) if runtime.compile else raw_model
        size = raw_model.num_params(non_embedding=False)
        head = {"checkpoint": loaded.source, "step": steps, "parameters": size}
        asked = bool(questions or bundle or c.tasks)
        tokenizer = find_tokenizer(loaded)[0] if asked else None
        spec = c.dataset or ("" if asked else loaded.config.get("dataset", ""))
        if spec:
            rows = evaluate(c, loaded, model, spec, runtime)
            results["losses"] += [{**head, **row} for row in rows]
        elif not asked:
            raise UserError(f"{loaded.source} does not say what it was trained on: set --dataset")
        if questions:
            track = progress(runtime, f"{loaded.source} on {c.choices}")
            scores = multiple_choice(raw_model, tokenizer, questions, runtime, c.batch_size, track)
            results["choices"].append({**head, "file": c.choices, **scores})
        if bundle:
            rows = score_bundle(
                raw_model,
                tokenizer,
                bundle,
                runtime,
                c.batch_size,
                lambda task, source=loaded.source: progress(runtime, f"{source} on {task}"),
            )
            results["core"] += [{**head, **row} for row in rows]
        if c.tasks:
            rows = task_rows(c, loaded, tokenizer, runtime)
            results["tasks"] += [{**head, **row} for row in rows]
    return results


def task_rows(c: Config, loaded: Loaded, tokenizer: Tokenizer, runtime: Runtime) -> list[dict]:
    """A row for each metric of each task."""
    from bonsai.engine.lm_eval_harness import Chat, run_tasks

    chat = None
    if c.as_chat and loaded.chat is None:
        raise UserError(loaded.chat_note or f"{loaded.source} has no chat template for --as_chat")
    if c.as_chat:
        chat = Chat(loaded.chat, loaded.answer_ends(tokenizer))
    results = run_tasks(
        loaded.model,
        tokenizer,
        runtime,
        [name for name in map(str.strip, c.tasks.split(",")) if name],
        str(resolve_path(c.tasks_dir)) if c.tasks_dir else "",
        c.batch_size,
        c.limit,
        c.num_fewshot if c.num_fewshot >= 0 else None,
        chat,
    )
    rows = []
    for task, metrics in results.items():
        for key, value in metrics.items():  # "acc,none", and its error "acc_stderr,none"
            name, _, how = key.partition(",")
            if not isinstance(value, float) or name.endswith("_stderr"):
                continue
            error = metrics.get(f"{name}_stderr,{how}")
            error = error if isinstance(error, float) else None
            name = name if how in ("", "none") else f"{name}, {how}"
            rows.append({"task": task, "metric": name, "value": value, "error": error})
    return rows


def check_tasks(c: Config, runtime: Runtime) -> None:
    """Raise UserError where the harness cannot be had, before a model is loaded. Where the hub does
    not answer, the harness looks into its cache alone."""
    if runtime.world_size > 1:
        raise UserError("--tasks run in one process: start it without torchrun")
    if c.tasks_dir and not resolve_path(c.tasks_dir).is_dir():
        raise UserError(f"tasks_dir={c.tasks_dir} is no folder")
    if not installed("lm_eval"):
        raise UserError("--tasks needs lm-evaluation-harness: pip install lm_eval")
    use_cache_if_offline()


def check_effects(c: Config) -> None:
    """Raise UserError for a setting of questions where none of those are asked."""
    if c.tasks_dir and not c.tasks:
        raise UserError("--tasks_dir is where tasks are looked for: name some by --tasks")
    if c.as_chat and not c.tasks:
        raise UserError("--as_chat is of --tasks alone")
    if c.num_fewshot >= 0 and not c.tasks:
        raise UserError("--num_fewshot is of --tasks alone: CORE's bundle says how many")
    if c.limit and not (c.tasks or c.core):
        raise UserError("--limit is of --tasks and --core alone; of a data set: --windows")
    no_data = not c.dataset and (c.choices or c.core or c.tasks)
    refuse_idle(c, (no_data, "split windows block_size other_tokenizer", "without --dataset"))


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    check_effects(c)
    questions = read_questions(resolve_path(c.choices)) if c.choices else []
    bundle = read_bundle(resolve_path(c.core), c.limit) if c.core else []
    if c.json:
        check_writable(c.json, "the results", [c.choices, *split_paths(c.init_from)])

    def too_large() -> str:
        return f": lower batch_size (now {c.batch_size})"

    runtime = setup(c.device, c.dtype, c.compile, c.backend)
    with runtime, memory_errors(too_large):
        if c.tasks:
            check_tasks(c, runtime)
        if runtime.master:
            print(runtime.summary, flush=True)

        def keep(results: dict) -> None:
            about = {**provenance(runtime.device), "dtype": runtime.dtype}
            write_json(c.json, {**about, **results})

        to_file = c.json not in ("", "-") and not is_stream(c.json) and runtime.master
        results = evaluate_all(c, questions, bundle, runtime, keep if to_file else None)
        if not runtime.master:
            return
        tables = {"losses": LOSSES, "choices": SCORES, "core": CORE, "tasks": TASKS}
        for key, columns in tables.items():
            if results[key]:
                print(f"\n{table(results[key], columns)}")
        if c.json:
            keep(results)


if __name__ == "__main__":
    run(main)
