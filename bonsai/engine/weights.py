"""A model's weights as the engine reads them: in the dtype it computes in, or as int8."""

import copy

import torch

from bonsai.errors import UserError

QUANTIZE = {"": "the weights as they are", "int8": "int8 weights with a scale per output channel"}


def prepare(
    model: torch.nn.Module, dtype: torch.dtype | None = None, quantize: str = ""
) -> torch.nn.Module:
    """The model in eval mode, as it is or a copy with converted weights.

    dtype: None leaves the weights' own. quantize: a key of QUANTIZE. Raises UserError.
    """
    if quantize not in QUANTIZE:
        raise UserError(f"quantize={quantize} is not one of {', '.join(filter(None, QUANTIZE))}")
    weight = next(model.parameters())
    if dtype in (None, weight.dtype) and not quantize:
        return model.eval()
    return copy.deepcopy(model).to(dtype or weight.dtype).eval()
