"""Whether model.py was edited, so that faster code would compute something else.

model.py is there to be edited. But kernels.py, head_loss.py, engine/cpu and engine/cuda compute
what its parts compute without calling them, and the formats of export.py expect its formulas: all
of them would silently ignore an edit. So each asks here first. A part is as it was if the code of
its functions has the fingerprint below; comments, docstrings and blanks do not count. Else the code
of model.py runs as it is, and one line says so.

After a change of model.py that the faster code follows, `python -m bonsai.models.edits` prints the
new fingerprints.
"""

import ast
import functools
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Callable

import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import model as model_py
from bonsai.models import decoder

# of the functions and methods of model.py, and of the decoder of the byte models
FINGERPRINTS = {
    "attention": "323be467",
    "causal_mask": "b41ebdf4",
    "gelu_tanh": "5fb61d8f",
    "relu2": "1af6021d",
    "swiglu": "d0f4bb65",
    "rotate": "ef5f8559",
    "Norm.__init__": "7e450a91",
    "Norm.forward": "760b40a3",
    "CausalSelfAttention.__init__": "79998b0a",
    "CausalSelfAttention.forward": "a3d99a14",
    "MLP.__init__": "f6bc42b9",
    "MLP.forward": "2f1d919f",
    "Block.__init__": "b456d490",
    "Block.forward": "89051548",
    "cross_entropy": "05fe6971",
    "head_loss": "38ac470b",
    "GPT.head": "6c749cd6",
    "sinusoids": "8d669054",
    "rope_angles": "4683f092",
    "rotation_at": "e4e8dea3",
    "bigram_hash": "c54588c4",
    "dtype_of_products": "c789ab46",
    "GPTConfig.head_dim": "56edad85",
    "GPTConfig.kv_heads": "205f3e10",
    "GPTConfig.window": "262cb57b",
    "GPTConfig.has_value_embedding": "9ebdca5d",
    "GPT.__init__": "28c53516",
    "GPT.forward": "fb287ca9",
    "GPT.logits_and_loss": "18c347d4",
    "Decoder.__init__": "5998078e",
    "Decoder.forward": "8b590482",
}

MODEL = tuple(FINGERPRINTS)
ATTENTION = ("attention", "causal_mask")
LOSS = ("cross_entropy", "head_loss", "GPT.head")
ACTIVATIONS = ("gelu_tanh", "relu2", "swiglu")  # those that are not torch's

GATE = 12  # model.py's number of channels for a gate, below which a layer is not packed
KNOWN_ACTIVATIONS = {
    "gelu": F.gelu,
    "relu": F.relu,
    **{name: getattr(model_py, name, None) for name in ACTIVATIONS},
}
KINDS = ("GPT", "Block", "CausalSelfAttention", "MLP", "Norm")
# an edit may have given one another name; then its functions are gone, which is found, too
CLASSES = (decoder.Decoder, *filter(None, (getattr(model_py, kind, None) for kind in KINDS)))


def find(name: str) -> Callable:
    """The function or method of this name, as it is now: someone may have put another in its
    place."""
    first, _, method = name.partition(".")
    found = getattr(model_py, first, None) or getattr(decoder, first)
    found = inspect.getattr_static(found, method) if method else found
    return found.fget if isinstance(found, property) else getattr(found, "__func__", found)


def fingerprint(function: Callable) -> str:
    return hashlib.sha256(repr(plain(tree_of(function))).encode()).hexdigest()[:8]


def tree_of(function: Callable) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def plain(node: object) -> object:
    """A tree of Python's grammar without docstrings, and without what only some versions have."""
    if isinstance(node, list):
        return [plain(part) for part in node if not is_docstring(part)]
    if not isinstance(node, ast.AST):
        return node
    parts = [(name, plain(value)) for name, value in ast.iter_fields(node)]
    return type(node).__name__, [(name, value) for name, value in parts if value not in (None, [])]


def is_docstring(node: object) -> bool:
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
        return False
    return isinstance(node.value.value, str)


@functools.cache
def edited(name: str) -> bool:
    """Whether a function is another than that for which the faster code was written."""
    try:
        return fingerprint(find(name)) != FINGERPRINTS[name]
    except (OSError, TypeError, SyntaxError, AttributeError):  # gone, or made without a file
        return True


def as_written(*names: str) -> bool:
    """Whether none of these functions was edited; else one line says which was."""
    changed = next(filter(edited, names), "")
    if changed:
        say(SLOWER.format(f"{changed} was edited"))
    return not changed


def difference(model: nn.Module) -> str:
    """Why a model is none of those for which the faster code was written: its code, the classes of
    its parts, or hooks. '' if it is one."""
    if changed := next(filter(edited, MODEL), ""):
        return f"{changed} was edited"
    if model_py.GATE != GATE:
        return "GATE was edited"
    for name, part in KNOWN_ACTIVATIONS.items():
        if model_py.ACTIVATIONS.get(name) is not part:
            return f"the activation {name} was edited"
    for name, module in model.named_modules():
        kind, there = type(module), name or "the model"
        torchs = kind.__module__.startswith("torch.nn.modules")
        ours = kind.__module__.startswith("bonsai.models") and not issubclass(kind, CLASSES)
        if kind not in CLASSES and not torchs and not ours:
            return f"{there} is a {kind.__name__}"
        if more := altered(module):
            return f"{there} has {more}"
    return ""


def is_as_written(model: nn.Module) -> bool:
    """Whether there is no `difference`; else one line says which there is."""
    if found := difference(model):
        say(SLOWER.format(found))
    return not found


def altered(module: nn.Module) -> str:
    """What a module does besides, or instead of, what its class says; '' if nothing."""
    if module._forward_hooks or module._forward_pre_hooks:
        return "a hook"
    return "a forward of its own" if "forward" in vars(module) else ""


def is_exactly(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of this class itself, not of a subclass, and not altered."""
    return type(module) is kind and not altered(module)


def can_join(model: nn.Module, owner: nn.Module) -> bool:
    """Whether the blocks `owner.h` are called one after another by code that is known here."""
    if type(owner) is decoder.Decoder:
        return True
    return type(model) is model_py.GPT and owner is model.transformer


SLOWER = "{}: faster code would compute something else, so it runs as it is, slower"


@functools.cache
def say(line: str) -> None:
    """Print a line once, by the first process alone."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    for name in MODEL:
        print(f'    "{name}": "{fingerprint(find(name))}",')
