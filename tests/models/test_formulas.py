"""bonsai/models/formulas.py: the formulas are those of model.py, and torch's where it has them."""

import pytest
import torch
from helpers.model_choices import every_choice
from torch.nn import functional as F

from bonsai.models import formulas
from model import ACTIVATIONS, GPT, GPTConfig


@every_choice
def test_logits_and_loss_with_every_choice(fields):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**fields)).double().eval()
    with torch.no_grad():
        for p in model.parameters():  # what starts at 0 would hide what it does
            p.normal_(std=0.3)
    idx, targets = torch.randint(fields["vocab_size"], (2, 2, 12))
    targets[0, 3:6] = -1
    want = model(idx, targets)[0]
    torch.testing.assert_close(formulas.logits(model, idx).float(), want, atol=1e-4, rtol=1e-4)
    model.further = torch.tensor(0.25)
    x = torch.randn(2, 12, fields["n_embd"], dtype=torch.float64)
    want = model.head_loss(model, x, targets)
    torch.testing.assert_close(formulas.head_loss(model, x, targets).float(), want)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x = 3 * torch.randn(50, 20, dtype=torch.float64)
    torch.testing.assert_close(formulas.ACTIVATIONS[name](x), ACTIVATIONS[name](x))
    assert formulas.ACTIVATIONS.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("groups", [1, 2])
def test_attention_is_torchs(groups):
    q = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, 4 // groups, 7, 8, dtype=torch.float64)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.2, enable_gqa=True)
    torch.testing.assert_close(formulas.attention(q, k, v, None, 0, 0.2), want)
    mask = torch.ones(7, 7, dtype=torch.bool).tril().triu(-2)
    want = F.scaled_dot_product_attention(q, k, v, mask, scale=0.2, enable_gqa=True)
    torch.testing.assert_close(formulas.attention(q, k, v, None, 3, 0.2), want)
    torch.testing.assert_close(formulas.attention(q, k, v, mask, 0, 0.2), want)
