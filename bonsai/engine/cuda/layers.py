"""What the kernels of a one-token step compute: how it is said to them, and in plain torch."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from model import ACTIVATIONS, rotate

HALF = (torch.bfloat16, torch.float16)
LAYER, RMS = 1, 2  # kinds of norm; 0: none
FOLLOWS = ("", "gelu", "gelu_tanh", "relu", "relu2", "swiglu")  # activations after a product


class Product(NamedTuple):
    """A linear layer with what is before and after it. weight (N, K), int8 with a scale (N) in
    fp32, or as the input without one; bias (N).

    norm: LAYER or RMS, 0 for none, with gain and shift (K) and eps. activation: one of FOLLOWS; of
    swiglu the first N / 2 outputs are the gates of the others.
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
    """Of an attention: its heads, and what is done to queries and keys. norm: LAYER, RMS or 0, of
    each head, without gain; window: positions that are seen, 0 for all."""

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
    """x (..., K) -> the layer's y (..., N) as x, to which the residual (..., N) is added."""
    y = F.linear(
        normed(x, layer.norm, layer.gain, layer.shift, layer.eps).float(), layer.weight.float()
    )
    y = y if layer.scale is None else y * layer.scale
    y = (y if layer.bias is None else y + layer.bias).to(x.dtype)
    y = ACTIVATIONS[layer.activation](y) if layer.activation else y
    return y if residual is None else y + residual


def add_and_norm(x, layer: Product, residual, norm: NormLayer | None = None):
    """x (..., K) -> the stream, which is the residual (..., N) with the layer's y added, and the
    norm of the stream; None without one."""
    stream = product(x, layer, residual)
    return stream, None if norm is None else normed(stream, *norm)


def attend_step(qkv, k, v, pos, heads: Heads, rotation=None, extra=None) -> torch.Tensor:
    """Causal attention of one more token in each row.

    qkv (B, 1, (nh + 2 nkv) hs); k, v (B, nkv, S, hs), the cache of a layer, equal in strides, which
    gets the new key and value at pos (B,) int64; rotation: cos and sin as model.rope_angles,
    (B, 1, 1, hs) fp32; extra (B, 1, nkv hs) is added to the value -> (B, 1, nh hs).
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
