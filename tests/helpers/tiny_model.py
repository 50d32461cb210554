"""Tiny models whose choices depend on all of their context."""

import math

import torch

from bonsai.engine import SamplingParams, generate
from model import GPT, GPTConfig

BLOCK, VOCAB = 16, 31


def tiny(seed=0, **fields) -> GPT:
    """A small model with weights large enough that its choices depend on the whole context."""
    torch.manual_seed(seed)
    shape = dict(block_size=BLOCK, vocab_size=VOCAB, n_layer=2, n_head=4, n_embd=32)
    model = GPT(GPTConfig(**{**shape, **fields})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5 if p.dim() >= 2 else 1).add_(0.1 * torch.randn_like(p))
    return model


def texts(model, prompt, params=None, n=1, **options) -> list[list[int | None]]:
    """The n rows that generate yields, each as a list. SamplingParams by keywords."""
    names = SamplingParams.__dataclass_fields__
    params = params or SamplingParams(**{k: options.pop(k) for k in [*options] if k in names})
    return [list(row) for row in zip(*generate(model, prompt, params, n, **options))]


VARIANTS = {
    "classic": {},
    "no bias": dict(bias=False),
    "rmsnorm, swiglu": dict(norm="rmsnorm", activation="swiglu", bias=False),
    "no gain, relu2, qk_norm": dict(
        norm="rmsnorm", norm_gain=False, activation="relu2", qk_norm=True, logit_softcap=15.0
    ),
    "grouped queries": dict(n_kv_head=2, tie_head=False),
    "one key head, wide heads": dict(n_kv_head=1, head_size=16, qk_norm=True, attention_scale=0.1),
    "post norm, relu": dict(norm_placement="post", norm_embedding=True, activation="relu"),
    "windows": dict(attention_window=5, window_pattern="DL"),
    "values, lambdas, windows of all layers": dict(
        value_embeddings=True, residual_lambdas=True, attention_window=3, n_kv_head=2
    ),
    "bigrams": dict(bigram_embeddings=2, attention_window=4, window_pattern="LD"),
}


def reference_probs(logits: list[float], temperature, top_k, top_p, limit) -> list[float]:
    """The distribution in plain Python, following the definitions."""
    logits = [x / temperature for x in logits[:limit]]
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    keep = order[: top_k or len(order)]
    weights = {i: math.exp(logits[i] - logits[order[0]]) for i in keep}
    total = sum(weights.values())
    nucleus, mass = [], 0.0
    for i in keep:
        if mass >= top_p:
            break
        nucleus.append(i)
        mass += weights[i] / total
    share = sum(weights[i] for i in nucleus)
    return [weights[i] / share if i in nucleus else 0.0 for i in range(len(logits))]
