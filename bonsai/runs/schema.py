"""The kind and the range of each field of a checkpoint, checked before any is used.

An undamaged file may still hold a word where a number belongs: written by another program, changed
by hand, or made to do harm. Keys that are not listed here are ignored: other programs may add
their own.
"""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from bonsai.system.errors import UserError

MOST_STEPS = 10**10
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum", "momentum_buffer")


def is_tensor(value: Any) -> bool:
    """A torch.Tensor, or a TensorInFile, which has not been read yet."""
    return hasattr(value, "shape") and hasattr(value, "stride")


def is_whole(value: Any, least: int = 0, most: int = MOST_STEPS) -> bool:
    return type(value) is int and least <= value <= most


def is_number(value: Any, least: float = -math.inf) -> bool:
    """Also an infinity, for the best loss of a run that had no evaluation; not NaN."""
    return type(value) in (int, float) and value >= least and (value == math.inf or value < 1e300)


def is_dict(value: Any, kind: type = str) -> bool:
    return isinstance(value, dict) and all(type(key) is kind for key in value)


def is_plain(value: Any) -> bool:
    """Whether there is no tensor in it, at any depth."""
    inner = value.values() if isinstance(value, dict) else value
    return not is_tensor(value) and (
        not isinstance(value, dict | list | tuple) or all(map(is_plain, inner))
    )


def is_one(value: Any) -> bool:
    """A tensor of one number."""
    return is_tensor(value) and math.prod(value.shape) == 1


def is_scalars(value: Any) -> bool:
    return is_dict(value) and all(isinstance(v, int | float | str | None) for v in value.values())


def is_optimizer_state(value: Any) -> bool:
    """Whether it has the form of torch.optim.Optimizer.state_dict()."""
    if not is_dict(value) or not is_dict(state := value.get("state"), int):
        return False
    groups = value.get("param_groups")
    return (
        isinstance(groups, list)
        and all(is_dict(g) and isinstance(g.get("params"), list) for g in groups)
        and all(type(i) is int for g in groups for i in g["params"])
        and all(is_dict(entry) for entry in state.values())
        and all(
            is_tensor(v) or (is_number(v) and k not in MOMENTS)
            for entry in state.values()
            for k, v in entry.items()
        )
        and all(
            is_one(entry["step"]) or is_number(entry["step"], 0)
            for entry in state.values()
            if "step" in entry
        )
    )


def is_progress(value: Any) -> bool:
    return (
        is_dict(value)
        and is_whole(value.get("evaluated", -1), -1)
        and is_whole(value.get("bad_evals", 0))
        and is_whole(value.get("tokens", 0), most=2**63)
        and is_number(seconds := value.get("seconds", 0.0), 0)
        and seconds < math.inf
        and is_number(value.get("best_val_loss", math.inf))
    )


def is_scaler(value: Any) -> bool:
    """Whether it is the state of a torch.amp.GradScaler; empty if that was off."""
    keys = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
    return is_dict(value) and (
        not value or all(is_number(value.get(key), 0) and value[key] < math.inf for key in keys)
    )


WEIGHTS = (
    lambda v: is_dict(v) and v and all(map(is_tensor, v.values())),
    "tensors by their names",
)
SETTINGS = (is_scalars, "numbers and words by their names")
RULES = {
    "model": WEIGHTS,
    "model_args": SETTINGS,
    "model_config": SETTINGS,
    "model_name": (lambda v: isinstance(v, str), "a name"),
    "optimizer": (is_optimizer_state, "the state of an optimizer"),
    "iter_num": (is_whole, f"a number of steps from 0 to {MOST_STEPS:,}"),
    "best_val_loss": (
        lambda v: is_one(v) if is_tensor(v) else is_number(v) or v != v,  # NaN: it diverged
        "a number",
    ),
    "config": (
        lambda v: is_dict(v) and is_plain(v) and isinstance(v.get("dataset", ""), str),
        "settings by their names",
    ),
    "tokenizer": (
        lambda v: v is None or (is_dict(v) and isinstance(v.get("type"), str)),
        "a description of a tokenizer",
    ),
    "chat_template": (lambda v: v is None or is_dict(v), "a chat template"),
    "scaler": (is_scaler, "the state of a GradScaler"),
    "progress": (is_progress, "numbers by their names"),
    "data": (is_scalars, "checksums by their names"),
    "wandb_id": (lambda v: v is None or isinstance(v, str), "a name"),
    "versions": (is_dict, "versions by their names"),
    "format": (is_whole, "a whole number"),
}


def check_checkpoint(checkpoint: dict, path: Path) -> None:
    """Raise UserError, which names the field, for a value of the wrong kind or out of range."""
    for key, (good, words) in RULES.items():
        if key in checkpoint and not good(checkpoint[key]):
            raise UserError(
                f"{path} is no usable checkpoint: its {key} is {brief(checkpoint[key])}, where "
                f"{words} should be"
            )


def check_fields(make_config: type, settings: dict, path: Path) -> None:
    """Raise UserError for settings that the dataclass does not have, or of the wrong kind."""
    hints = get_type_hints(make_config)
    known = {f.name: hints[f.name] for f in fields(make_config)}
    for key, value in settings.items():
        if key not in known:
            raise UserError(
                f"{path} describes a model with {key}={brief(value)}, which this version does not "
                "know: it would compute something else"
            )
        allowed = known[key]
        good = isinstance(value, allowed)
        if type(value) is int and allowed is float:
            good = True
        if type(value) is bool and allowed in (int, float):
            good = False
        if value != value or (type(value) is int and abs(value) > 2**31):  # NaN; not a size
            good = False
        if not good:
            raise UserError(
                f"{path} describes a model with {key}={brief(value)}, where "
                f"{getattr(allowed, '__name__', allowed)} should be"
            )


def brief(value: Any) -> str:
    if isinstance(value, dict | list | tuple):
        return f"a {type(value).__name__} of other things"
    if is_tensor(value):
        return f"a tensor of shape {tuple(value.shape)}"
    return repr(value)[:60]
