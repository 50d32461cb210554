"""The table of architectures.

An architecture is one file and one line in MODELS: its class and its dataclass of settings.
bonsai/models/contract.py says what a model must have, and has defaults for the rest.
"""

from contextlib import nullcontext
from dataclasses import asdict, fields

import torch
import torch.nn as nn
from torch.overrides import TorchFunctionMode

from bonsai.models.megabyte import Megabyte, MegabyteConfig
from bonsai.models.spacebyte import Spacebyte, SpacebyteConfig
from bonsai.system.errors import UserError
from model import CLASSIC_KEYS, GPT, GPTConfig

MODELS = {
    "gpt": (GPT, GPTConfig),
    "megabyte": (Megabyte, MegabyteConfig),
    "spacebyte": (Spacebyte, SpacebyteConfig),
}
CONFIGS = {name: config for name, (_, config) in MODELS.items()}


class ZerosOn(TorchFunctionMode):
    """Within this context torch.zeros makes weights (with requires_grad) on a device: the tables of
    the fast GPT-2, 1.9 GB, need not be filled in the host's memory and copied. Random numbers still
    come from the CPU, so that they are the same on every device. Other zeros stay there, too, as a
    model may go on to compute with them."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.zeros and kwargs.get("requires_grad"):
            kwargs = {"device": self.device} | kwargs
        return func(*args, **kwargs)


def build_model(name: str, settings: dict, device: torch.device | None = None) -> nn.Module:
    """A new model from settings, of which its fields are used; UserError if they clash.

    device: to which the caller will move the model; some of its tensors may be there already.
    """
    if name not in MODELS:
        raise UserError(f"model={name} is not one of {', '.join(MODELS)}")
    make, make_config = MODELS[name]
    try:
        known = {f.name for f in fields(make_config)}
        config = make_config(**{k: v for k, v in settings.items() if k in known})
        with ZerosOn(device) if device else nullcontext():
            return make(config)
    except ValueError as e:
        raise UserError(e) from None


def describe_model(model: nn.Module, name: str) -> dict:
    """The keys of a checkpoint that say which model it holds."""
    settings = asdict(model.config)
    return {
        "model_args": {k: settings[k] for k in CLASSIC_KEYS if k in settings},
        "model_config": settings,
        "model_name": name,
    }
