"""bonsai/models/fit.py: weights are those of the model that is described, before it is built."""

import functools

import pytest
import torch
from helpers.checkpoints import replaced, tiny

from bonsai.models import hugging_face
from bonsai.models.fit import WithoutDraws, check_fit, take_weights, without_masks
from bonsai.models.loading import load_model
from bonsai.system.errors import UserError
from model import GPT, GPTConfig


def test_no_model_larger_than_its_weights_is_built(tmp_path, monkeypatch):
    """Sizes are compared before there is any memory for them."""
    monkeypatch.setattr("bonsai.models.table.build_model", None)  # would be called for the real one
    _, state = tiny(position="rope")
    for field, value in {
        "n_layer": 2**31, "n_embd": 2**20, "vocab_size": 2**31, "block_size": 2**30,
        "n_head": 2**30, "head_size": 2**30, "n_kv_head": 2**30,
    }.items():  # fmt: skip
        torch.save(replaced(state, ["model_config", field], value), tmp_path / "ckpt.pt")
        with pytest.raises(UserError, match="does not fit the model"):
            load_model("resume", tmp_path)


def test_what_does_not_fit_is_named(tmp_path):
    settings = dict(n_layer=1, n_head=2, n_embd=8, block_size=4, vocab_size=5)
    weights = GPT(GPTConfig(**settings)).state_dict()
    fit = functools.partial(check_fit, GPT, GPTConfig, path=tmp_path / "a.pt")
    fit(settings, weights)
    norm, head = "transformer.ln_f.weight", "lm_head.weight"
    for changed, words in [
        ({k: w for k, w in weights.items() if k != norm}, f"no {norm}"),
        ({**weights, "extra": torch.ones(1)}, "too much: extra"),
        ({**weights, norm: torch.ones(9)}, rf"{norm} is \(9,\), not \(8,\)"),
        ({**weights, norm: torch.ones(8, dtype=torch.int64)}, f"{norm} is of torch.int64"),
        ({**weights, head: weights[head] + 1}, f"wte.weight and {head} should be the same"),
    ]:
        with pytest.raises(UserError, match=f"a.pt does not fit the model it describes: .*{words}"):
            fit(settings, changed)
    with pytest.raises(UserError, match="does not fit the model it describes"):
        fit({**settings, "n_head": 3}, weights)
    assert fit(settings, {k: w.clone() for k, w in weights.items()}) is None  # equal is the same


def test_nothing_is_drawn_for_weights_that_will_be_replaced():
    drawn = torch.get_rng_state()
    with WithoutDraws():
        model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=4, block_size=4, vocab_size=5))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.transformer.ln_f.weight.tolist() == [1] * 4  # what is not drawn is set


def test_a_class_of_others_has_its_zeros(monkeypatch):
    """What it has beside the weights of a GPT no file fills."""

    class Counting(GPT):
        def __init__(self, config):
            super().__init__(config)
            self.register_buffer("seen", torch.zeros(1000), persistent=False)

    fields = dict(n_layer=1, n_head=1, n_embd=4, block_size=4, vocab_size=5)
    weights = GPT(GPTConfig(**fields)).state_dict()
    monkeypatch.setattr(hugging_face, "read_model", lambda source: (fields, weights))
    drawn = torch.get_rng_state()
    torch.use_deterministic_algorithms(True)  # then torch.empty is full of NaN
    try:
        model = hugging_face.pretrained(Counting, "gpt2", {})
    finally:
        torch.use_deterministic_algorithms(False)
    assert not model.seen.any() and torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(w, weights[key]) for key, w in model.state_dict().items())


def test_weights_become_the_models_own_where_they_can():
    """Their memory where it is theirs alone and in the right form, else their numbers."""
    config = GPTConfig(n_layer=1, n_head=2, n_embd=64, block_size=4, vocab_size=16)
    source = GPT(config)
    weights = {key: w.clone() for key, w in source.state_dict().items()}
    wte, head = "transformer.wte.weight", "lm_head.weight"
    fc, proj, ln = (f"transformer.h.0.{name}.weight" for name in ("mlp.c_fc", "mlp.c_proj", "ln_1"))
    weights[head] = weights[wte]  # tied
    weights[fc] = weights[fc].double()
    weights[proj] = weights[proj].T.contiguous().T
    weights["transformer.wpe.weight"] = torch.zeros(9, 64).add_(0.5)[:4]
    weights[ln] = weights["transformer.ln_f.weight"]  # as equal as two norms can be
    with WithoutDraws():
        model = GPT(config)
    attn = model.transformer.h[0].attn.c_attn
    before, block = attn.weight, attn.weight.row_block
    take_weights(model, weights)
    assert attn.weight is before and before.row_block == block and before.requires_grad
    own = model.state_dict()
    assert all(torch.equal(own[key], w.float()) for key, w in weights.items())
    assert model.lm_head.weight is model.transformer.wte.weight
    copied = {key for key, w in weights.items() if own[key].data_ptr() != w.data_ptr()}
    assert {fc, proj, "transformer.wpe.weight"} <= copied and not copied & {wte, head}
    pointers = [p.data_ptr() for p in model.parameters()]
    assert len({*pointers}) == len(pointers)  # a step of one moves no other
    with pytest.raises(AssertionError):
        take_weights(model, {**weights, "more": torch.ones(1)})


def test_masks_of_older_files_are_no_weights():
    names = ["h.0.attn.bias", "h.0.attn.masked_bias", "h.0.attn.c_attn.bias", "h.0.mlp.bias"]
    assert [*without_masks(dict.fromkeys(names))] == names[2:]
