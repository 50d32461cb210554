"""What a prepare script says at its end: what it has made, and what to run next on the machine
where it is read, a training that is done in minutes."""

import ctypes
import importlib.metadata
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bonsai import ROOT
from bonsai.data.meta import open_meta, places
from bonsai.data.writer import FIELDS
from bonsai.files.jsonfile import read_json_object
from bonsai.system.errors import UserError

CPU, GPU, LARGE = "quickstart.py", "train_shakespeare_char.py", "fast_gpt2.py"
CHAT = "finetune_chat.py"  # from GPT-2's weights
CONTEXT = 1024  # of GPT-2, and of a config file that says nothing of it
SMALL_CONTEXT = 256  # of the models of CPU and GPU
# For a small model that train.py has made: at GPT-2's rate it does not learn to end its answers.
SMALL = ("--batch_size=4", "--gradient_accumulation_steps=1", "--learning_rate=5e-4")
GPT2_WIDTH = 768  # channels from which on a model of one's own is not small
PLACEHOLDER = "out-mine"  # the run in data/chat/readme.md
RUNS = 20  # the newest ones, among which a model is looked for
MANY = 500_000_000  # tokens; on more than these a GPU trains the LARGE model


def describe_prepared(
    meta: dict,
    folder: str | Path,
    seconds: float,
    fields: Sequence[str] = FIELDS,
    init_from: str = "",
) -> str:
    """What a prepare script prints at its end: counts, folder, time, and what to run next.

    fields: those of `meta` that are not kept from an older meta.json. init_from: as
    training_command takes it."""
    lines = []
    for name, split in meta["splits"].items():
        n = split["documents"]
        lines.append(
            f"{name} has {split['tokens']:,} tokens "
            f"({split['bytes']:,} bytes of text, {n:,} document{'s' * (n != 1)})"
        )
    tokens = {name: split["tokens"] for name, split in meta["splits"].items()}
    if tokens.get("val", 0) > tokens.get("train", 0) > 0:  # few documents of unequal length
        lines.append(
            "note: val is larger than train: cut large documents (--split_on), or add some"
        )
    files = []
    for split in meta["splits"].values():
        first, *more = split["files"]
        files.append(f"{first} ... {more[-1]}" if more else first)
    size = sum(split["bytes"] for split in meta["splits"].values())
    folder = Path(folder).resolve()
    ours = folder.parent == ROOT / "data"
    lines.append(f"wrote {', '.join(files)} and meta.json to {folder} in {seconds:.1f} s")
    if size > 10e6:
        lines[-1] += f", {size / 1e6 / seconds:.0f} MB of text per second"
    if kept := [key for key in meta if key not in fields]:
        lines.append(f"kept what the old meta.json had besides: {', '.join(kept)}")
    dataset = folder.name if ours else str(folder)
    lines.append(f"next: {training_command(dataset, meta, init_from=init_from)}")
    return "\n".join(lines)


def training_command(dataset: str, meta: dict, gpu: bool | None = None, init_from: str = "") -> str:
    """The command that trains a model on a data set that was just prepared.

    dataset: a name in data/, or a path. meta: of the data set. gpu: None looks for one. init_from:
    the folder of the model that is to learn these conversations. Where the vocabulary of
    conversations is one's own, that is the newest run whose data have it. The config file is one
    for this machine; its windows are shortened where the data are too short for them.
    """
    splits = [split["tokens"] for split in meta["splits"].values()]
    gpu = has_gpu() if gpu is None else gpu
    special = f"train_{dataset}_cpu.py"  # made for these data
    small = special if (ROOT / "config" / special).exists() else CPU
    config = (LARGE if sum(splits) > MANY else GPU) if gpu else small
    of_gpt2 = (meta.get("tokenizer") or {}).get("type") == "gpt2"
    own_model = "chat_template" in meta and not of_gpt2 and not init_from
    if init_from or "chat_template" in meta:
        config = CHAT
    text = (ROOT / "config" / config).read_text(encoding="utf-8")
    words = [f"config/{config}"]
    if f'\ndataset = "{dataset}"\n' not in text:
        words += [f"--dataset={dataset}", f"--out_dir=out-{Path(dataset).name}"]
    if init_from:
        words.append(f"--init_from={init_from}")
    run, its = run_with(meta["tokenizer"]) if own_model else ("", {})
    if own_model:
        words.append(f"--init_from={run or PLACEHOLDER}")
        words += SMALL if its.get("n_embd", 0) < GPT2_WIDTH else ()
    given = re.search(r"^block_size = (\d+)", text, re.M)
    block, row = int(given[1]) if given else CONTEXT, meta.get("row_length")
    longest = (row or min(splits)) - 1
    if (given and block != longest) if row else longest < block:  # else train.py takes it from rows
        words.append(f"--block_size={max(longest, 1)}")
    return command("train.py", words)


def run_with(tokenizer: dict | None) -> tuple[str, dict]:
    """The folder of the newest run of a model for text with this tokenizer, below the working
    directory or the repository, and its settings; ("", {}) if there is none.

    The tokenizer is that of the run's data: to read checkpoints takes too long.
    """
    files = {path.resolve() for base in (Path(), ROOT) for path in base.glob("*/ckpt.pt")}
    for file in sorted(files, key=os.path.getmtime, reverse=True)[:RUNS]:
        with suppress(UserError, OSError):
            its = read_json_object(file.with_name("config.json"))
            data = str(its.get("dataset")).partition(",")[0].partition(":")[0]
            for folder in (*places(data), Path(data)):
                meta, source = open_meta(folder)
                if source and meta.get("tokenizer") == tokenizer and "chat_template" not in meta:
                    return short(file.parent), its
    return "", {}


def context_for(tokenizer: str, folder: str = "") -> int:
    """How many tokens the model for such conversations sees, if nobody says so. tokenizer: its
    type. folder: the Hugging Face folder of the model, whose context may be far longer, and take
    the memory for it; then it is CONTEXT."""
    if not folder:
        return CONTEXT if tokenizer == "gpt2" else SMALL_CONTEXT
    config = read_json_object(Path(folder) / "config.json")
    sizes = (config.get(name) for name in ("n_positions", "max_position_embeddings"))
    return min(next((size for size in sizes if isinstance(size, int)), CONTEXT), CONTEXT)


def command(program: str, arguments: Sequence[str] = ()) -> str:
    """A program of the repository, as a line for the shell that is open."""
    return shlex.join([python(), short(ROOT / program), *arguments])


def python() -> str:
    """`python`, where that is what runs this; else its path."""
    on_path = shutil.which("python")
    if on_path and os.path.dirname(on_path) == os.path.dirname(sys.executable):
        return "python"
    return short(sys.executable)


def short(path: str | os.PathLike) -> str:
    """A path below the working directory without that."""
    path, here = os.path.abspath(path), os.path.join(os.getcwd(), "")
    return path.removeprefix(here)


def has_gpu() -> bool:
    """Whether PyTorch will find an NVIDIA or AMD GPU; without loading it, which takes a second."""
    with suppress(importlib.metadata.PackageNotFoundError):
        if "+cpu" in importlib.metadata.version("torch"):
            return False
    if os.path.exists("/dev/kfd"):
        return True
    for name in ("libcuda.so.1", "nvcuda.dll"):
        with suppress(OSError):
            cuda, count = ctypes.CDLL(name), ctypes.c_int()
            return (
                cuda.cuInit(0) == 0
                and not cuda.cuDeviceGetCount(ctypes.byref(count))
                and (count.value > 0)
            )
    return False
