"""Folders of Hugging Face's that carry the code of their model: model.py as it is, edited or not.

With modeling_bonsai.py, which stands beside this file, transformers makes a model of it, if its
user allows that (trust_remote_code). Nothing in such a folder is executed here: it is read if its
model.py is, but for comments, the one that runs here, and so computes the same.
"""

import ast
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import model as model_py
from bonsai import ROOT
from bonsai.files.access import read_bytes
from bonsai.models.architectures import Weights
from bonsai.models.edits import plain
from bonsai.system.errors import UserError
from model import GPT, GPTConfig

MODEL_TYPE = "bonsai_gpt"  # these names are modeling_bonsai.py's
CLASSES = {"AutoConfig": "BonsaiConfig", "AutoModelForCausalLM": "BonsaiForCausalLM"}
PREFIX = "gpt."  # of all names of weights
WRAPPER = Path(__file__).with_name("modeling_bonsai.py")
MODEL = Path(model_py.__file__)
CODE_BYTES = 1 << 20  # of a model.py


def exported(model: GPT) -> tuple[dict, Weights]:
    """config.json and the weights of a GPT for such a folder; shared weights are there once."""
    shared = shared_names(model)
    weights = {k: w.detach() for k, w in model.state_dict().items() if k not in shared}
    settings = {
        **asdict(model.config),
        "model_type": MODEL_TYPE,
        "architectures": [CLASSES["AutoModelForCausalLM"]],
        "auto_map": {auto: f"{WRAPPER.stem}.{name}" for auto, name in CLASSES.items()},
    }
    return settings, {PREFIX + name: w.contiguous() for name, w in weights.items()}


def shared_names(model: GPT) -> dict[str, str]:
    """Name in state_dict() -> the first name of the same tensor, where that is another."""
    first = {}
    named = model.state_dict(keep_vars=True).items()
    shared = {name: first.setdefault(id(w), name) for name, w in named}
    return {name: known for name, known in shared.items() if name != known}


def code() -> dict[str, bytes]:
    """The files of code by their names. UserError if model.py imports others of this project:
    transformers loads no file from the Hub before it has found all that the file imports."""
    data = read_bytes(MODEL, CODE_BYTES)
    for name in imported(data):
        if (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file():
            raise UserError(
                f"model.py imports {name}, which is missing where others use it: move what it "
                "needs of that into model.py, or call import_module in a function that only "
                "programs here use; --to=safetensors takes every model"
            )
    return {WRAPPER.name: read_bytes(WRAPPER), MODEL.name: data}


def imported(source: bytes) -> set[str]:
    """First names of the modules that code imports, wherever it does so."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def read_with_code(config: dict, folder: Path, read: Callable[[], Weights]) -> tuple[dict, Weights]:
    """Settings of GPTConfig, and the weights by the names of GPT.state_dict(), but shared ones only
    once. read: returns the weights by their names there. UserError if the folder's model.py is
    another than the one here."""
    path = folder / MODEL.name
    if not same_code(read_bytes(path, CODE_BYTES), read_bytes(MODEL)):
        raise UserError(
            f"{path} is other code than the model.py here, and is never executed: read it, and if "
            "you trust it, put it in the place of model.py, or load the folder by transformers "
            "with trust_remote_code=True"
        )
    settings = {f.name: config[f.name] for f in fields(GPTConfig) if f.name in config}
    return settings, {name.removeprefix(PREFIX): w for name, w in read().items()}


def same_code(one: bytes, other: bytes) -> bool:
    """Whether two sources differ in nothing but comments, docstrings and blanks."""
    try:
        return plain(ast.parse(one)) == plain(ast.parse(other))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # nested deep, to deceive
        return False
