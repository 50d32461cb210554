"""Attention and predictions by layer agree with what the model computes."""

import itertools
from dataclasses import fields

import pytest
import torch

from bonsai.serving.page.inside import attention_weights, inspect_prompt, look
from bonsai.system.errors import UserError
from model import GPT, GPTConfig, rope_angles

VARIANTS = {
    "gpt2": {},
    "rope": {"position": "rope"},
    "grouped": {"n_head": 4, "n_kv_head": 2, "position": "rope", "bias": False},
    "qk_norm": {"qk_norm": True, "position": "none"},
    "scale": {"attention_scale": 1.0, "position": "sinusoidal", "head_size": 24},
    "modern": {
        "norm": "rmsnorm", "activation": "swiglu", "qk_norm": True, "position": "rope",
        "n_head": 4, "n_kv_head": 1, "tie_head": False, "logit_softcap": 15.0,
    },
    "gpt1": {"norm_placement": "post", "norm_embedding": True},
    "local": {"attention_window": 4, "window_pattern": "LD", "position": "rope"},
    "lambdas": {"residual_lambdas": True},
}  # fmt: skip
FIELDS = {f.name for f in fields(GPTConfig)}
VARIANTS = {name: v for name, v in VARIANTS.items() if set(v) <= FIELDS}


def make(choices: dict) -> GPT:
    torch.manual_seed(0)
    small = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 24, "vocab_size": 40}
    model = GPT(GPTConfig(**{**small, **choices})).eval()
    for p in model.parameters():  # so that attention is far from even
        torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize("choices", VARIANTS.values(), ids=VARIANTS)
def test_the_weights_reproduce_the_blocks_output(choices):
    """The weights that are shown, times the values, are what the attention of each block gives."""
    model = make(choices)
    ids = torch.arange(11) * 3
    seen = []
    for block in model.transformer.h:
        block.attn.register_forward_hook(lambda m, args, out: seen.append((m, out)))
        block.attn.c_attn.register_forward_hook(lambda m, args, out: seen.append((m, out)))
    with torch.no_grad():
        model(ids[None])
    rotation = None
    if model.config.position == "rope":
        rotation = rope_angles(torch.arange(11), model.config.head_dim, model.config.rope_base)
    assert len(seen) == 4
    for (_, qkv), (attention, output) in zip(seen[::2], seen[1::2]):
        weights = attention_weights(attention, qkv, rotation)  # (1, nh, T, T)
        nkv, hs = attention.nkv, attention.hs
        v = qkv[0, :, -nkv * hs :].view(11, nkv, hs).transpose(0, 1)  # (nkv, T, hs)
        v = v.repeat_interleave(attention.nh // nkv, dim=0)
        y = (weights[0] @ v).transpose(0, 1).reshape(11, -1)
        with torch.no_grad():
            torch.testing.assert_close(attention.c_proj(y), output[0], rtol=1e-4, atol=1e-4)
        assert weights.std() > 0.05


@pytest.mark.parametrize("choices", VARIANTS.values(), ids=VARIANTS)
def test_the_last_layer_is_the_models_answer(choices):
    model = make(choices)
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    attention, logits = look(model, ids)
    assert [tuple(a.shape) for a in attention] == [(model.config.n_head, 8, 8)] * 2
    assert logits.shape == (3, 40)
    with torch.no_grad():
        torch.testing.assert_close(logits[-1], model(torch.tensor([ids]))[0][0, 0])
    for a in attention:  # each row looks back only
        assert torch.equal(a, a.tril())
        torch.testing.assert_close(a.sum(-1), torch.ones(a.shape[:2]))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_plain_values():
    maps, layers = inspect_prompt(make({}), [1, 2, 3], vocab_limit=30)
    assert [[len(row) for row in head] for head in maps[0]] == [[1, 2, 3]] * 2
    assert all(len(repr(x)) <= 6 for layer in maps for head in layer for row in head for x in row)
    assert len(layers) == 3 and all(len(layer) == 10 for layer in layers)
    assert all(token < 30 for layer in layers for token, _ in layer)
    assert all(p1 >= p2 for layer in layers for (_, p1), (_, p2) in itertools.pairwise(layer))


def test_other_architectures_are_refused():
    with pytest.raises(UserError, match="cannot be inspected"):
        look(torch.nn.Linear(2, 2), [1])
