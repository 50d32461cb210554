"""A small GPT with each choice of model.py, alone or with what it needs."""

import pytest

from model import CHOICES

SIZES = dict(n_layer=3, n_head=4, n_embd=64, block_size=16, vocab_size=90)
CHANGED = {
    **{f"{name}={v}": {name: v} for name, values in CHOICES.items() for v in values},
    "no bias": dict(bias=False),
    "grouped heads": dict(n_kv_head=2),
    "one head": dict(n_head=1, head_size=32),
    "qk_norm": dict(qk_norm=True),
    "qk_norm, rms": dict(qk_norm=True, norm="rmsnorm", norm_gain=False),
    "window": dict(attention_window=4, window_pattern="DL"),
    "scale": dict(attention_scale=0.3),
    "untied, cap, zero": dict(tie_head=False, logit_softcap=15.0, zero_init=True),
    "norm after the embedding": dict(norm_embedding=True),
    "lambdas": dict(residual_lambdas=True),
    "values": dict(value_embeddings=True, position="rope"),
    "bigrams": dict(bigram_embeddings=3),
}

every_choice = pytest.mark.parametrize(
    "fields", [SIZES | fields for fields in CHANGED.values()], ids=CHANGED
)
