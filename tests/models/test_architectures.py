"""bonsai/models/architectures.py: what has no place is named; what is folded computes the same."""

from dataclasses import fields

import pytest
import torch
from helpers.tiny_model import tiny

from bonsai.models.architectures import (
    ANY,
    FREE,
    PLACES,
    class_for,
    exported,
    from_rotary,
    misfits,
    plain,
    to_rotary,
    turned,
    widened,
)
from bonsai.system.errors import UserError
from model import GPTConfig

LLAMA = dict(norm="rmsnorm", position="rope", activation="swiglu", bias=False)
ROTARY = GPTConfig(n_layer=2, n_head=4, n_embd=16, n_kv_head=2, **LLAMA)


def test_the_names_are_fields():
    names = {f.name for f in fields(GPTConfig)}
    assert names >= FREE and all(set(places) <= names for places in PLACES.values())
    assert not any(FREE & set(places) for places in PLACES.values())


@pytest.mark.parametrize("name", PLACES)
def test_a_field_at_a_value_of_its_own_is_named_unless_it_has_a_place(name):
    """Whatever is added to GPTConfig: it is refused until somebody says where it goes."""
    others = dict(
        norm="rmsnorm", norm_placement="post", position="sinusoidal", activation="swiglu",
        head_size=8, n_kv_head=2, attention_scale=0.3, logit_softcap=3.0, attention_window=4,
        bigram_embeddings=1,
    )  # fmt: skip
    own = {k: v[0] for k, v in PLACES[name].items() if v is not ANY}
    config = GPTConfig(n_layer=2, n_head=4, n_embd=16, **own)
    assert not misfits(config, PLACES[name]) and class_for(config, "it") == name
    for f in fields(GPTConfig):
        value = others.get(f.name, not f.default if isinstance(f.default, bool) else None)
        places = PLACES[name].get(f.name, ())
        if value is None or f.name in FREE or places is ANY or value in places:
            continue
        changed = GPTConfig(**{**vars(config), f.name: value})
        assert f"{f.name}={value}" in ", ".join(misfits(changed, PLACES[name])), f.name


def test_the_nearest_class_is_the_one_that_is_named():
    with pytest.raises(UserError, match=r"LlamaForCausalLM, has no place for logit_softcap=3\.0;"):
        class_for(GPTConfig(**LLAMA, logit_softcap=3.0), "it")
    with pytest.raises(UserError, match="n_embd=10 with n_head=4"):
        class_for(GPTConfig(**LLAMA, n_embd=10, n_head=4, head_size=2), "it")


def test_the_same_model_with_fewer_fields():
    config = GPTConfig(n_kv_head=12, head_size=64, attention_scale=0.125, attention_window=1024)
    assert plain(config) == GPTConfig()
    other = GPTConfig(n_kv_head=4, head_size=32, attention_scale=0.1, attention_window=1023)
    assert plain(other) == other


@pytest.mark.parametrize("llama", [True, False])
def test_names_there_and_back_are_bit_equal(llama):
    fields = LLAMA
    if not llama:
        fields = dict(norm="rmsnorm", norm_gain=False, norm_embedding=True, position="rope")
        fields |= dict(bias=False)
    model = tiny(n_head=4, n_embd=16, n_kv_head=2, tie_head=False, **fields)
    weights = model.state_dict()
    theirs = to_rotary(weights, model.config, llama)
    assert not set(theirs) & (set(weights) - {"lm_head.weight"})
    back = from_rotary(theirs, model.config, llama)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[k], w) for k, w in weights.items())


def test_the_other_rotation_is_its_own_inverse():
    w = {"model.layers.0.self_attn.q_proj.weight": torch.randn(16, 16), "a": torch.randn(2)}
    once = turned(w, ROTARY, 8.0)
    name = next(iter(w))
    assert torch.equal(once[name][:2], 8 * w[name][:2])
    assert torch.equal(once[name][2:4], -8 * w[name][2:4])
    assert torch.equal(turned(once, ROTARY, 1 / 8)[name], w[name]) and once["a"] is w["a"]


def test_channels_that_are_zero_add_nothing():
    model = tiny(**LLAMA, tie_head=False)
    settings, theirs = exported(model.config, model.state_dict(), "it")
    assert settings["intermediate_size"] == 128
    inner = 80
    narrow = dict(theirs)
    for name, w in theirs.items():
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            narrow[name] = w[:inner]
        elif name.endswith("down_proj.weight"):
            narrow[name] = w[:, :inner]
    wide = widened(narrow, model.config, inner, "it")
    for name, w in wide.items():
        assert w.shape == theirs[name].shape
        assert torch.equal(w[tuple(slice(n) for n in narrow[name].shape)], narrow[name])
        assert w.count_nonzero() == narrow[name].count_nonzero()
    for name in ("gate_proj.weight", "up_proj.bias", "down_proj.weight"):
        for w in (torch.zeros(3, 3), torch.zeros(3), torch.tensor(1.0)):
            with pytest.raises(UserError, match=f"it: mlp.{name} is .* but intermediate_size=80"):
                widened({f"mlp.{name}": w}, model.config, inner, "it")


def test_weights_that_do_not_fit_are_left_to_be_named():
    q, k, v = (f"model.layers.0.self_attn.{n}_proj.weight" for n in "qkv")
    odd = {q: torch.zeros(4, 3), k: torch.zeros(4, 2), v: torch.zeros(4, 3)}
    assert from_rotary(odd, ROTARY, True).keys() == {"transformer.h.0.attn.c_attn.weight"}
    assert from_rotary({q: odd[q]}, ROTARY, True).keys() == {q}
    for shape in ((0, 16), (16, 0), (0, 0)):
        assert turned({q: torch.zeros(shape)}, ROTARY, 1.2)[q].shape == shape
    numbers = {name: torch.tensor(1.0) for name in odd}
    assert from_rotary(numbers, ROTARY, True).keys() == {"transformer.h.0.attn.c_attn.weight"}
