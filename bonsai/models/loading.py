"""All ways to get a model with weights: a run, a checkpoint, a Hugging Face folder, a name."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn as nn

from bonsai.files.access import exists
from bonsai.files.gguf import is_gguf
from bonsai.files.jsonfile import read_json_object
from bonsai.models.fit import (
    WithoutDraws,
    check_fit,
    take_weights,
    tensors_of,
    without_masks,
)
from bonsai.models.gguf import read_gguf, read_template, read_vocabulary, stops_of
from bonsai.models.hugging_face import CONFIG_BYTES, WEIGHTS, read_model
from bonsai.models.llmc import is_llmc, read_llmc
from bonsai.models.table import MODELS, build_model
from bonsai.runs.names import checkpoints
from bonsai.runs.restore import (
    load_checkpoint,
    newer_weights,
    run_checkpoint,
    runs_there_are,
)
from bonsai.runs.schema import is_whole
from bonsai.system.errors import UserError, short_of_memory
from bonsai.system.paths import resolve_path
from bonsai.tokenizers import Tokenizer, from_dict
from bonsai.tokenizers.chat import ChatTemplate, missing_tokens
from bonsai.tokenizers.hugging_face import read_chat, read_folder

# Fields that a run may change in a model whose weights it loads; the weights fix all others. One
# that adds an adapter of your own belongs here, too.
RUN_FIELDS = ("dropout", "activation_checkpointing", "bfloat16_stream")
HUB = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # names on the Hugging Face hub


@dataclass
class Loaded:
    """A model and where it came from."""

    model: nn.Module
    name: str  # key of MODELS
    tokenizer: dict | None  # Tokenizer.to_dict(); None if the source does not carry one
    config: dict  # settings of the run that trained it
    source: str
    checkpoint: dict | None = None  # without its weights; with the optimizer only for a resume
    newer: str = ""  # a note if the run has newer weights: restore.newer_weights
    tokenizer_note: str = ""  # where a tokenizer was found, or why there is none
    chat_template: dict | None = None  # ChatTemplate.to_dict(); None if the source says nothing
    chat_note: str = ""  # why the source's chat template is not read
    stop_tokens: tuple[int, ...] = ()  # others than the tokenizer's that end a text

    @property
    def chat(self) -> ChatTemplate | None:
        """How conversations are written, if the source says so."""
        state = self.chat_template
        return None if state is None else ChatTemplate.from_dict(state)

    def answer_ends(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The tokens with which an answer ends, that which ends a text first."""
        end = None if self.chat is None else self.chat.end_token(tokenizer)
        ends = dict.fromkeys([tokenizer.eot, end, *self.stop_tokens])
        return tuple(i for i in ends if i is not None)

    @property
    def unknown_tokenizer(self) -> str:
        """A warning for programs that give a data set's tokens to the model, if nothing says that
        they are the model's; '' if something does, and for checkpoints, which need not."""
        if self.tokenizer is not None or not self.tokenizer_note:
            return ""
        return f"nothing says whether the data's tokens are the model's: {self.tokenizer_note}"


def load_model(init_from: str, out_dir: str | Path = "", overrides: dict | None = None) -> Loaded:
    """A model with weights.

    init_from: 'resume' (the newest checkpoint of out_dir), 'best' (the one to sample from), a
    checkpoint file (llm.c's or a GGUF, too) or a run's folder, a Hugging Face folder, or gpt2,
    gpt2-medium, gpt2-large, gpt2-xl. overrides: settings, of which those in RUN_FIELDS are taken.
    Raises UserError.
    """
    overrides = {k: v for k, v in (overrides or {}).items() if k in RUN_FIELDS}
    if init_from in ("resume", "best"):
        return from_run(out_dir, overrides, resume=init_from == "resume")
    path = Path(init_from)
    if exists(path) and not path.is_dir():
        kinds = ((is_llmc, from_llmc), (is_gguf, from_gguf))
        read = next((read for known, read in kinds if known(path)), from_checkpoint)
        return read(path, overrides)
    if path.is_dir() and is_hugging_face(path):
        return from_hugging_face(init_from, overrides)
    if path.is_dir():
        weights = next((name for name in WEIGHTS if exists(path / name)), None)
        if weights and not exists(path / "config.json"):
            raise UserError(f"{path} has {weights}, but no config.json to say of which model")
        return from_run(path, overrides, setting="")
    if init_from in HUB:
        return from_hugging_face(init_from, overrides)
    raise UserError(
        f"there is no checkpoint or folder {init_from}, and no such GPT-2 "
        f"({', '.join(HUB)}): {runs_there_are(path, '')}"
    )


def find_source(init_from: str, out_dir: str | Path) -> str:
    """What the settings init_from and out_dir mean to a program that uses a model, for load_model:
    'resume' is the run in out_dir, at its last evaluation. (train.py, which goes on, takes the
    newest.) Raises UserError where there is no such run."""
    if init_from != "resume":
        return str(resolve_path(init_from))
    folder = resolve_path(out_dir)
    if not exists(folder) or (folder.is_dir() and not is_hugging_face(folder)):
        run_checkpoint(folder)  # says which runs there are
    return str(folder)


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder holds a model of Hugging Face's, and not a run of ours, which has its
    settings in a config.json too. Their trainer's folders have an optimizer.pt."""
    if not exists(folder / "config.json") or checkpoints(folder):
        return False
    return "model_type" in read_json_object(folder / "config.json", CONFIG_BYTES)


def from_run(
    folder: str | Path, overrides: dict, resume: bool = False, setting: str = "out_dir"
) -> Loaded:
    """The model of a run: its newest checkpoint, to resume, or the one to sample from. setting:
    like run_checkpoint's."""
    path = run_checkpoint(folder, newest=resume, setting=setting)
    loaded = from_checkpoint(path, overrides, resume)
    if not resume:
        loaded.newer = newer_weights(path)
    return loaded


def from_checkpoint(path: Path, overrides: dict, optimizer: bool = False) -> Loaded:
    """A checkpoint file of ours or nanoGPT's. optimizer: also load its state, to resume."""
    checkpoint = load_checkpoint(path, optimizer)
    # nanoGPT's checkpoints have only its seven fields; the rest are GPT-2's defaults
    model_fields = dict(checkpoint.get("model_config") or checkpoint["model_args"])
    name = checkpoint.get("model_name", "gpt")
    weights = without_masks(checkpoint["model"]) if name == "gpt" else checkpoint["model"]
    if name not in MODELS:
        other = ": translate.py in projects/translate/ uses it" if name == "seq2seq" else ""
        known = ", ".join(MODELS)
        raise UserError(f"{path} holds a model={name!r}, which is not one of {known}{other}")
    check_fit(*MODELS[name], model_fields, weights, path)
    known = {f.name for f in fields(MODELS[name][1])}  # not every model has dropout
    overrides = {k: v for k, v in overrides.items() if k in known}
    model = with_weights(name, model_fields, weights, str(path), overrides)
    del checkpoint["model"]  # the model has them: what it has copied is not kept twice
    config = checkpoint.get("config", {})
    loaded = Loaded(model, name, checkpoint.get("tokenizer"), config, str(path), checkpoint)
    loaded.chat_template = checkpoint.get("chat_template")
    return loaded


def with_weights(
    name: str, settings: dict, weights: dict, source: str, overrides: dict
) -> nn.Module:
    """A model from settings and weights that fit together; source: for messages. Parts that it only
    has by `overrides`, such as adapters, start as in a new model, the same in each process."""
    changed = settings | overrides
    try:
        with WithoutDraws():
            model = build_model(name, changed)
        if more := model.state_dict().keys() - weights.keys():
            assert tensors_of(*MODELS[name], settings).keys() == weights.keys()
            with torch.random.fork_rng([]):
                torch.manual_seed(0)
                new = build_model(name, changed).state_dict()
            weights = weights | {key: new[key] for key in more}
        take_weights(model, weights)
    except (RuntimeError, MemoryError) as e:
        if not short_of_memory(e):
            raise
        size = sum(w.nbytes for w in weights.values()) / 2**20
        raise UserError(
            f"the memory does not suffice for the model of {source} ({size:,.0f} MiB of weights): "
            "free some, or raise its limit (ulimit -v)"
        ) from None
    return model


def from_hugging_face(source: str, overrides: dict) -> Loaded:
    """The model of a Hugging Face folder, or from the hub; see read_model."""
    settings, weights = read_model(source)
    model = with_weights("gpt", settings, weights, source, overrides)
    size = model.config.vocab_size
    tokenizer, note = hugging_face_tokenizer(source, size)
    loaded = Loaded(model, "gpt", tokenizer, {}, source, tokenizer_note=note)
    if source not in HUB:
        take_template(loaded, lambda: read_chat(Path(source)))
        loaded.stop_tokens = generation_ends(Path(source), size)
    return loaded


def from_llmc(path: Path, overrides: dict) -> Loaded:
    """The model of an llm.c file, whose tokenizer is GPT-2's."""
    settings, weights = read_llmc(path)
    check_fit(*MODELS["gpt"], settings, weights, path)
    model = with_weights("gpt", settings, weights, str(path), overrides)
    return Loaded(model, "gpt", {"type": "gpt2"}, {}, str(path), tokenizer_note="GPT-2's")


def from_gguf(path: Path, overrides: dict) -> Loaded:
    """The model of a GGUF file; without a tokenizer if the one in the file cannot be read."""
    settings, weights, values = read_gguf(path)
    model = with_weights("gpt", settings, weights, str(path), overrides)
    try:
        tokenizer, note = read_vocabulary(values, settings["vocab_size"], str(path)), str(path)
    except UserError as e:  # weights can be trained further and evaluated without
        tokenizer, note = None, str(e)
    loaded = Loaded(model, "gpt", tokenizer, {}, str(path), tokenizer_note=note)
    take_template(loaded, lambda: read_template(values))
    loaded.stop_tokens = stops_of(values, settings["vocab_size"])
    return loaded


def take_template(loaded: Loaded, read: Callable[[], ChatTemplate | None]) -> None:
    """Give a model the chat template that `read` finds, or a note why it cannot be used: a model
    can do all but chat without."""
    if loaded.tokenizer is None:
        return
    try:
        template = read()
        missing = template and missing_tokens(template, from_dict(loaded.tokenizer))
        if missing:
            raise UserError(f"it has {missing[0]}, which is no special token of the tokenizer")
    except UserError as e:
        loaded.chat_note = f"the chat template of {loaded.source} is not supported: {e}"
    else:
        loaded.chat_template = template and template.to_dict()


def generation_ends(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """The tokens at which transformers' generate would stop with this folder."""
    names = ("generation_config.json", "config.json")
    path = folder / next(name for name in names if exists(folder / name))
    ends = read_json_object(path, CONFIG_BYTES).get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    return tuple(i for i in ends if is_whole(i, 0, vocab_size - 1))


def hugging_face_tokenizer(source: str, vocab_size: int) -> tuple[dict | None, str]:
    """Tokenizer.to_dict() and where it was found; or None and why there is none, because weights
    can be trained further and evaluated without a tokenizer."""
    if source in HUB:
        return {"type": "gpt2"}, "GPT-2's"
    try:
        tokenizer = read_folder(Path(source), vocab_size)
    except UserError as e:
        return None, str(e)
    if tokenizer is None and vocab_size in (50257, 50304):
        return {"type": "gpt2"}, f"GPT-2's, as {source} has none"
    if tokenizer is None:
        files = "tokenizer.json, or vocab.json and merges.txt"
        return None, f"{source} has no tokenizer of its {vocab_size} tokens: it needs {files}"
    return tokenizer, source
