"""Inside a model that reads a prompt: its attention, and the next token predicted by each layer.

The model's own (fused) computation never stores attention weights, so they are computed again here
from the output of each block's c_attn. The predictions are the "logit lens" (nostalgebraist 2020):
the final norm and the head are applied to the residual stream after each layer, as if it were the
last.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch.nn import functional as F

from bonsai.models.edits import difference
from bonsai.system.errors import UserError
from model import GPT, CausalSelfAttention, rotate

LONGEST = 128  # tokens of a prompt that are inspected, the last ones
TOP = 10  # how many of the likeliest next tokens each layer has


def attention_weights(
    attention: CausalSelfAttention, qkv: torch.Tensor, rotation=None
) -> torch.Tensor:
    """Attention weights (B, nh, T, T) from qkv (B, T, (nh + 2 nkv) hs), the output of c_attn.

    rotation: the block's argument: rope_angles of the positions, or None.
    """
    B, T, _ = qkv.shape
    nh, nkv, hs = attention.nh, attention.nkv, attention.hs
    q, k, _ = qkv.float().split([nh * hs, nkv * hs, nkv * hs], dim=2)
    q = q.view(B, T, nh, hs).transpose(1, 2)  # (B, nh, T, hs)
    k = k.view(B, T, nkv, hs).transpose(1, 2)  # (B, nkv, T, hs)
    if attention.qk_norm:
        normed = F.rms_norm if attention.rms else F.layer_norm
        q, k = normed(q, (hs,)), normed(k, (hs,))
    if rotation is not None:
        q, k = rotate(q, rotation), rotate(k, rotation)
    k = k.repeat_interleave(nh // nkv, dim=1)  # heads of a group share their keys
    scores = q @ k.transpose(2, 3) * attention.scale  # (B, nh, T, T)
    seen = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
    if attention.window:  # a local layer
        seen = seen.triu(1 - attention.window)
    return F.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1)


@torch.no_grad()
def look(model: torch.nn.Module, ids: Sequence[int]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Attention of each layer, (nh, T, T) each, and the logits of the last position after the
    embedding and after each layer, (L + 1, V).

    Raises UserError for an architecture other than the GPT, and for a GPT whose code was edited.
    """
    if not isinstance(model, GPT):
        raise UserError(
            f"{type(model).__name__} models cannot be inspected, only GPTs with attention can"
        )
    if found := difference(model):
        raise UserError(f"{found}: what would be shown here is not what its attention computes")
    residuals: list[torch.Tensor] = []  # of the last position, (1, 1, C) each
    rotations: list = []  # the `rotation` of each block's attention
    products: list[torch.Tensor] = []  # the outputs of c_attn, (1, T, ...) each

    def after_layer(module, args, output) -> None:
        residuals.append(output[:, [-1]])

    def before_attention(module, args) -> None:
        rotations.append(args[1])

    def after_product(module, args, output) -> None:
        products.append(output)

    with ExitStack() as hooks:
        blocks = list(model.transformer.h)
        hooks.callback(model.transformer.drop.register_forward_hook(after_layer).remove)
        for block in blocks:
            hooks.callback(block.register_forward_hook(after_layer).remove)
            hooks.callback(block.attn.register_forward_pre_hook(before_attention).remove)
            hooks.callback(block.attn.c_attn.register_forward_hook(after_product).remove)
        model(torch.tensor([list(ids)], device=next(model.parameters()).device))
    attention = [
        attention_weights(block.attn, qkv, rotation)[0]
        for block, qkv, rotation in zip(blocks, products, rotations)
    ]
    lens = [model.head(model.transformer.ln_f(x))[0, 0] for x in residuals]
    return attention, torch.stack(lens)


def rounded(numbers: torch.Tensor) -> list:
    """Numbers as Python floats with four decimals; rounded in float64, so that no more are
    printed."""
    return torch.round(numbers.double().cpu(), decimals=4).tolist()


def inspect_prompt(
    model: torch.nn.Module, ids: Sequence[int], vocab_limit: int
) -> tuple[list[list[list[list[float]]]], list[list[tuple[int, float]]]]:
    """The results of `look` as plain values: attention as [layer][head][t][...t], and for each
    layer a list of (token, probability)."""
    attention, logits = look(model, ids)
    maps = [
        [[row[: t + 1] for t, row in enumerate(head)] for head in rounded(layer)]
        for layer in attention
    ]
    probs = F.softmax(logits[:, :vocab_limit], dim=-1)
    top = probs.topk(min(TOP, probs.size(1)))
    layers = [list(zip(i, p)) for i, p in zip(top.indices.tolist(), rounded(top.values))]
    return maps, layers
