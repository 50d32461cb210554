"""bonsai/engine/cuda/layers.py: what kernels are compared with is what model.py computes."""

import pytest
import torch
from torch import nn

from bonsai.engine.cuda import layers
from bonsai.engine.cuda.layers import LAYER, RMS, Heads, NormLayer, Product
from model import ACTIVATIONS, causal_mask
from model import attention as plain


@pytest.mark.parametrize("activation", layers.FOLLOWS)
@torch.no_grad()
def test_a_product(activation):
    torch.manual_seed(0)
    linear, norm, x = nn.Linear(12, 20), nn.LayerNorm(12), torch.randn(3, 1, 12)
    want = linear(norm(x))
    want = ACTIVATIONS[activation](want) if activation else want
    residual = torch.randn_like(want)
    layer = Product(
        linear.weight, None, linear.bias, LAYER, norm.weight, norm.bias, 1e-5, activation
    )
    torch.testing.assert_close(layers.product(x, layer, residual), want + residual)
    scale = torch.rand(20)
    eighth = layer._replace(weight=(linear.weight / scale[:, None]), scale=scale)
    torch.testing.assert_close(layers.product(x, eighth), want, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_sum_and_its_norm():
    torch.manual_seed(0)
    linear, norm, x = nn.Linear(12, 20), nn.LayerNorm(20), torch.randn(3, 1, 12)
    stream, layer = torch.randn(3, 1, 20), Product(linear.weight, None, linear.bias)
    want = stream + linear(x)
    found = layers.add_and_norm(
        x, layer, stream, NormLayer(LAYER, norm.weight, norm.bias, norm.eps)
    )
    torch.testing.assert_close(found, (want, norm(want)))
    torch.testing.assert_close(layers.add_and_norm(x, layer, stream)[0], want)
    assert layers.add_and_norm(x, layer, stream)[1] is None


@pytest.mark.parametrize("window", [0, 4])
def test_steps_of_attention_are_attention(window):
    """Token by token into a cache, as all at once."""
    torch.manual_seed(0)
    B, T, nh, nkv, hs = 2, 9, 4, 2, 8
    qkv = torch.randn(B, T, (nh + 2 * nkv) * hs)
    qk, v = qkv.view(B, T, -1, hs).transpose(1, 2).split((nh + nkv, nkv), dim=1)
    q, k = layers.normed(qk, RMS, eps=1e-5).split((nh, nkv), dim=1)
    want = plain(q, k, v, causal_mask(T, T, window, "cpu"), 0, 0.4, 0.0).transpose(1, 2).flatten(2)
    cache, heads = torch.zeros(2, B, nkv, T, hs), Heads(nh, nkv, hs, 0.4, window, RMS, 1e-5)
    steps = [layers.attend_step(qkv[:, [t]], *cache, torch.full((B,), t), heads) for t in range(T)]
    torch.testing.assert_close(torch.cat(steps, dim=1), want)
    torch.testing.assert_close(cache, torch.stack((k, v)))
