"""What the faster code and the formats of other programs compute, in plain torch.

These are the formulas of model.py as it was when kernels.py, head_loss.py, engine/cpu, engine/cuda
and export.py were written. edits.py compares what model.py computes now with them; nothing else
uses them. Names and shapes are those of model.py.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from model import GPT, Block, CausalSelfAttention

ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "relu": lambda x: x.clamp(min=0),
    "relu2": lambda x: x.clamp(min=0) ** 2,
    "swiglu": lambda x: F.silu(x[..., : x.size(-1) // 2]) * x[..., x.size(-1) // 2 :],
}


def attention(q, k, v, mask, window: int, scale: float) -> torch.Tensor:
    """model.attention without dropout: q (B, nh, T, hs), k and v (B, nkv, S, hs) -> like q."""
    k, v = (x.repeat_interleave(q.size(1) // k.size(1), dim=1) for x in (k, v))
    T, S = q.size(2), k.size(2)
    back = torch.arange(S - T, S)[:, None] - torch.arange(S)
    seen = (back >= 0) & (back < (window or S)) if mask is None else mask
    scores = (scale * q @ k.transpose(2, 3)).masked_fill(~seen, -math.inf)
    return scores.softmax(-1) @ v


def normed(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A Norm of x (..., C); x itself where model.py has an nn.Identity."""
    if isinstance(norm, nn.Identity):
        return x
    if norm.rms:
        return F.rms_norm(x, x.shape[-1:], norm.weight, 1e-5)
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, 1e-5)


def linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, layer.weight, layer.bias)


def attended(a: CausalSelfAttention, x: torch.Tensor, rotation, values) -> torch.Tensor:
    """CausalSelfAttention without a cache, of x (B, T, C); arguments as there."""
    B, T, _ = x.shape
    qkv = linear(a.c_attn, x).view(B, T, -1, a.hs).transpose(1, 2)  # (B, nh + 2 nkv, T, hs)
    q, k, v = qkv.split((a.nh, a.nkv, a.nkv), dim=1)
    if values is not None:
        gate = 3 * torch.sigmoid(linear(a.gate, x[..., : a.gate.in_features]))  # (B, T, nkv)
        v = v + (gate[..., None] * values.view(B, T, a.nkv, a.hs)).transpose(1, 2)
    if a.qk_norm:
        q, k = ((F.rms_norm if a.rms else F.layer_norm)(x, (a.hs,)) for x in (q, k))
    if rotation is not None:
        cos, sin = rotation
        q, k = (x * cos + torch.cat(x.chunk(2, -1)[::-1], -1) * sin for x in (q, k))
    y = attention(q, k, v, None, a.window, a.scale)
    return linear(a.c_proj, y.transpose(1, 2).reshape(B, T, -1))


def block(b: Block, x: torch.Tensor, rotation=None, values=None) -> torch.Tensor:
    """A Block without a cache, of x (B, T, C)."""

    def mlp(x):
        return linear(b.mlp.c_proj, ACTIVATIONS[b.mlp.activation](linear(b.mlp.c_fc, x)))

    if b.post:
        x = normed(b.ln_1, x + attended(b.attn, x, rotation, values))
        return normed(b.ln_2, x + mlp(x))
    x = x + attended(b.attn, normed(b.ln_1, x), rotation, values)
    return x + mlp(normed(b.ln_2, x))


def logits(model: GPT, idx: torch.Tensor) -> torch.Tensor:
    """A GPT's logits (B, T, V) of idx (B, T)."""
    c, parts, T = model.config, model.transformer, idx.size(1)
    x, pos = parts.wte.weight[idx], torch.arange(T, dtype=torch.float64)[:, None]
    rotation = values = None
    if c.bigram_embeddings:
        before = F.pad(idx[:, :-1], (1, 0))
        x = x + model.bigrams.weight[(27191 * before ^ 36313 * idx) % len(model.bigrams.weight)]
    if c.position == "learned":
        x = x + parts.wpe.weight[:T]
    elif c.position == "sinusoidal":
        angle = pos / 10000 ** (torch.arange(0, c.n_embd, 2) / c.n_embd)
        x = x + torch.stack((angle.sin(), angle.cos()), -1).flatten(1)[:, : c.n_embd]
    elif c.position == "rope":
        angle = pos * c.rope_base ** (-torch.arange(0, c.head_dim, 2) / c.head_dim)
        rotation = angle.cos().repeat(1, 2), torch.cat((-angle.sin(), angle.sin()), -1)
    if c.norm_embedding:
        x = normed(parts.ln_e, x)
    first = x
    for i, b in enumerate(parts.h):
        if c.residual_lambdas:
            x = model.residual_lambdas[i] * x + model.x0_lambdas[i] * first
        if c.value_embeddings:
            values = model.values[str(i)].weight[idx] if c.has_value_embedding(i) else None
        x = block(b, x, rotation, values)
    y = linear(model.lm_head, normed(parts.ln_f, x))
    return c.logit_softcap * torch.tanh(y / c.logit_softcap) if c.logit_softcap else y


def head_loss(model: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of a model's head, of x (B, T, C), with the second loss."""
    cap, y = model.config.logit_softcap, F.linear(x, model.lm_head.weight)
    logprobs = torch.log_softmax(cap * torch.tanh(y / cap) if cap else y, -1)

    def total(targets):
        of_targets = logprobs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        return -of_targets.masked_fill(targets < 0, 0.0).sum()

    count, second = (targets >= 0).sum(), model.further * total(targets[:, 1:])
    return (total(targets) + second - second.detach()) / count
