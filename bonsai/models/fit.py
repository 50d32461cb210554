"""Checks that weights fit the model that a file describes, before it is built, and puts them in."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bonsai.runs.schema import check_fields
from bonsai.system.errors import UserError

MOST_POSITIONS = 2**20  # the longest context if no tensor has its length
SHARED_LAYERS = 256  # the most layers if there are fewer tensors, as layers can share some
DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.zero_)
DRAWS += (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, nn.init.xavier_uniform_)


class WithoutDraws(TorchFunctionMode):
    """Within this context a model is built without initial weights, random or zero, because others
    will take their place: drawing them takes longer than reading a file, and memory that is never
    written is not used.

    Only weights are left out, as files hold these: parameters, and zeros that are made with
    requires_grad. Other tensors of a model, such as a mask, may be in no file.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in DRAWS:
            tensor = args[0] if args else kwargs["tensor"]
            if isinstance(tensor, nn.Parameter):
                return tensor
        if func is torch.zeros and kwargs.get("requires_grad"):
            func = torch.empty
        return func(*args, **kwargs)


def take_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Give a model on the CPU its weights, which have exactly the names of its state_dict.

    If a tensor has the model's dtype and layout, and its storage for itself, the model takes it as
    it is: a copy would take as long as reading the file, and the memory of a second model. The
    caller must not change such tensors afterwards.
    """
    own, taken = model.state_dict(keep_vars=True), set()
    assert own.keys() == weights.keys(), own.keys() ^ weights.keys()
    for key, p in own.items():
        w = weights[key].detach()
        alone = w.untyped_storage().nbytes() == p.nbytes and w.data_ptr() not in taken
        alike = (w.dtype, w.device, w.shape, w.stride()) == (p.dtype, p.device, p.shape, p.stride())
        if alike and alone and w.data_ptr() % 64 == 0:
            p.data = w
            taken.add(w.data_ptr())
        elif w.data_ptr() != p.data_ptr():  # else it is tied, and was taken by its other name
            p.data.copy_(w)


def without_masks(weights: dict) -> dict:
    """The weights without causal masks, which older implementations of GPT-2 kept among them."""
    masks = (".attn.bias", ".attn.masked_bias")
    return {key: w for key, w in weights.items() if not key.endswith(masks)}


def check_fit(make: Callable, make_config: type, settings: dict, weights: dict, path: Path) -> None:
    """Raise UserError unless the weights are those of the model that the settings describe.

    To compare, the model is built without memory (tensors_of), and only if it does not have many
    more layers than there are tensors. So a file cannot ask for more memory than its own weights
    take.
    """
    check_fields(make_config, settings, path)
    described = f"{path} does not fit the model it describes"
    for key, value in settings.items():
        if key.endswith("_layer") and value > max(len(weights), SHARED_LAYERS):
            raise UserError(f"{described}: {key}={value}, but it has {len(weights)} tensors")
    limit = max(MOST_POSITIONS, *(max(w.shape, default=0) for w in weights.values()))
    if settings.get("block_size", 0) > limit:
        raise UserError(f"{described}: block_size={settings['block_size']} is above {limit}")
    try:
        wanted = tensors_of(make, make_config, settings)
    except ValueError as e:
        raise UserError(f"{described}: {e}") from None
    except (RuntimeError, TypeError, OverflowError, ZeroDivisionError):
        raise UserError(f"{described}: a tensor would be too large") from None
    for key in [*wanted, *weights]:
        if key not in weights or key not in wanted:
            raise UserError(f"{described}: {'no ' if key in wanted else 'too much: '}{key}")
        if weights[key].shape != wanted[key].shape:
            shapes = [tuple(w[key].shape) for w in (weights, wanted)]
            raise UserError(f"{described}: {key} is {shapes[0]}, not {shapes[1]}")
        is_of, should = weights[key].dtype, wanted[key].dtype
        if is_of != should and not (is_of.is_floating_point and should.is_floating_point):
            raise UserError(f"{described}: {key} is of {is_of}, not {should}")
    first = {}  # each tensor's first name; a tied head has the embedding's tensor
    for key, tensor in wanted.items():
        a, b = weights[first.setdefault(id(tensor), key)], weights[key]
        if a.data_ptr() != b.data_ptr() and not torch.equal(a, b):
            raise UserError(f"{described}: {first[id(tensor)]} and {key} should be the same")


def tensors_of(make: Callable, make_config: type, settings: dict) -> dict[str, torch.Tensor]:
    """The state_dict of the model that the settings describe, for names, shapes and dtypes alone:
    on torch's meta device. A class that looks at numbers when it is built cannot be built there; it
    is built on the CPU, where memory that is never written is not used either."""

    def build(device: str) -> dict[str, torch.Tensor]:
        with torch.device(device), WithoutDraws():
            return make(make_config(**settings)).state_dict(keep_vars=True)

    try:
        return build("meta")
    except (RuntimeError, TypeError) as e:
        if "meta" not in str(e):  # a word of all of torch's errors about this device
            raise
    return build("cpu")
