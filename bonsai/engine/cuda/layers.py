"""The layers of a one-token step: how they are described to the kernels, and in plain torch."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from model import ACTIVATIONS, rotate

HALF = (torch.bfloat16, torch.float16)
LAYER, RMS = 1, 2  # kinds of norm; 0: none
FOLLOWS = ("", "gelu", "gelu_tanh", "relu", "relu2", "swiglu")  # activations after a product


class Product(NamedTuple):
    """A linear layer with the norm before it and the activation after it.

    weight (N, K): int8 with a float32 scale (N), or of the input's dtype without one; bias (N).
    norm: LAYER or RMS, 0 for none, with gain and shift (K) and eps. activation: one of FOLLOWS;
    with swiglu the first N / 2 outputs are the gates of the others.
    """

    weight: torch.Tensor
    scale: torch.Tensor | None
    bias: torch.Tensor | None
    norm: int = 0
    gain: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    eps: float = 1e-5
    activation: str = ""


class NormLayer(NamedTuple):
    """A norm, kind LAYER or RMS, with gain and shift (N)."""

    kind: int
    gain: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    eps: float = 1e-5


class Heads(NamedTuple):
    """An attention's heads, and how queries and keys are normalised. norm: LAYER, RMS or 0, for
    each head, without gain; window: how many positions are seen, 0: all."""

    nh: int
    nkv: int
    hs: int
    scale: float
    window: int
    norm: int
    eps: float


def normed(x: torch.Tensor, kind: int, gain=None, shift=None, eps: float = 1e-5) -> torch.Tensor:
    if kind == LAYER:
        return F.layer_norm(x, x.shape[-1:], gain, shift, eps)
    return F.rms_norm(x, x.shape[-1:], gain, eps) if kind == RMS else x


def product(x: torch.Tensor, layer: Product, residual: torch.Tensor | None = None) -> torch.Tensor:
    """x (..., K) -> the layer's output (..., N) in x's dtype, plus the residual (..., N) if any."""
    y = F.linear(
        normed(x, layer.norm, layer.gain, layer.shift, layer.eps).float(), layer.weight.float()
    )
    y = y if layer.scale is None else y * layer.scale
    y = (y if layer.bias is None else y + layer.bias).to(x.dtype)
    y = ACTIVATIONS[layer.activation](y) if layer.activation else y
    return y if residual is None else y + residual


def add_and_norm(x, layer: Product, residual, norm: NormLayer | None = None):
    """x (..., K) -> the stream (..., N), which is the residual plus the layer's output, and the
    stream's norm, or None if no norm is given."""
    stream = product(x, layer, residual)
    return stream, None if norm is None else normed(stream, *norm)


def attend_step(qkv, k, v, pos, heads: Heads, rotation=None, extra=None) -> torch.Tensor:
    """Causal attention of one more token in each row -> (B, 1, nh hs).

    qkv (B, 1, (nh + 2 nkv) hs). k, v (B, nkv, S, hs): the cache of a layer, with equal strides; the
    new key and value are written to it at pos (B,) int64. rotation: cos and sin of
    model.rope_angles, (B, 1, 1, hs) float32. extra (B, 1, nkv hs): added to the value.
    """
    B, (nh, nkv, hs, scale, window, norm, eps) = len(qkv), heads
    qk, value = qkv.view(B, 1, -1, hs).transpose(1, 2).split((nh + nkv, nkv), dim=1)
    value = value if extra is None else value + extra.view(B, 1, nkv, hs).transpose(1, 2)
    qk = normed(qk, norm, eps=eps)
    qk = qk if rotation is None else rotate(qk, rotation)
    q, key = qk.split((nh, nkv), dim=1)
    at = pos[:, None, None, None]
    k.scatter_(2, at.expand(key.shape), key)
    v.scatter_(2, at.expand(value.shape), value)
    behind = at - torch.arange(k.size(2), device=pos.device)
    seen = (behind >= 0) & (behind < (window or k.size(2)))
    y = F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=nh != nkv)
    return y.transpose(1, 2).flatten(2)
