"""What happens inside a model as it reads a prompt: attention, and the next token by layer.

The weights of attention never exist in the model's own (fused) computation, so they are computed
again here from what each block's c_attn gave, with the block's own fields. After "logit lens"
(nostalgebraist 2020), the final norm and the head are applied to the residual stream after each
layer: what the model would say if it ended there.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch.nn import functional as F

from bonsai.system.errors import UserError
from model import GPT, CausalSelfAttention, rotate

LONGEST = 128  # tokens of a prompt that are looked at, its last ones
TOP = 10  # likeliest next tokens by layer


def attention_weights(
    attention: CausalSelfAttention, qkv: torch.Tensor, rotation=None
) -> torch.Tensor:
    """What each position attends to: qkv (B, T, (nh + 2 nkv) hs), c_attn's output -> (B, nh, T, T).

    rotation: as the block got it, rope_angles of the positions or None.
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
    k = k.repeat_interleave(nh // nkv, dim=1)  # each group of queries has its keys
    scores = q @ k.transpose(2, 3) * attention.scale  # (B, nh, T, T)
    seen = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
    if attention.window:  # a local layer
        seen = seen.triu(1 - attention.window)
    return F.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1)


@torch.no_grad()
def look(model: torch.nn.Module, ids: Sequence[int]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Attention of each layer, (nh, T, T) each, and the logits of the last position after the
    embedding and after each layer, (L + 1, V).

    Raises UserError for an architecture other than the GPT.
    """
    if not isinstance(model, GPT):
        raise UserError(
            f"{type(model).__name__} models cannot be inspected, only GPTs with attention can"
        )
    residuals: list[torch.Tensor] = []  # of the last position, (1, 1, C) each
    rotations: list = []  # what each block's attention got for its positions
    products: list[torch.Tensor] = []  # c_attn's, (1, T, ...) each

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
    """As Python floats of four decimals, in double precision so that they print as such."""
    return torch.round(numbers.double().cpu(), decimals=4).tolist()


def inspect_prompt(
    model: torch.nn.Module, ids: Sequence[int], vocab_limit: int
) -> tuple[list[list[list[list[float]]]], list[list[tuple[int, float]]]]:
    """As `look`, as plain values: [layer][head][t][...t] and [layer] -> (token, probability)."""
    attention, logits = look(model, ids)
    maps = [
        [[row[: t + 1] for t, row in enumerate(head)] for head in rounded(layer)]
        for layer in attention
    ]
    probs = F.softmax(logits[:, :vocab_limit], dim=-1)
    top = probs.topk(min(TOP, probs.size(1)))
    layers = [list(zip(i, p)) for i, p in zip(top.indices.tolist(), rounded(top.values))]
    return maps, layers
