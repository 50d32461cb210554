"""bonsai/training/optimizers.py: settings reach them, their state comes back, nothing breaks it."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.settings import SETTINGS

from bonsai.models.contract import LanguageModel
from bonsai.runs.restore import crop_moments
from bonsai.runs.schema import check_checkpoint
from bonsai.system.errors import UserError
from bonsai.system.runtime import setup
from bonsai.training.optimizers import (
    OPTIMIZERS,
    build_optimizer,
    clip_gradients,
    load_optimizer_state,
)
from bonsai.training.schedule import learning_rate_at, set_rates
from configurator import Config
from model import GPT, GPTConfig

CPU = setup("cpu", "float32", False)


def test_an_unknown_name_lists_the_known():
    model = tiny()
    with pytest.raises(UserError, match="adamw"):
        build_optimizer(model, replace(SETTINGS, optimizer="sgd"), CPU)


def tiny() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=16))


def backward(model: GPT, seed: int) -> None:
    idx = torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(seed))
    model(idx[:, :-1], idx[:, 1:])[1].backward()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(name):
    model = tiny()
    optimizer = build_optimizer(model, replace(SETTINGS, optimizer=name, learning_rate=1e-2), CPU)
    idx = torch.arange(9).repeat(4, 1)
    losses = []
    for _ in range(20):
        _, loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        clip_gradients(optimizer, 0.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_layers_stay_as_they_are_and_have_no_state(name):
    model = tiny()
    frozen = [model.transformer.wpe, model.transformer.h[0].attn, model.transformer.h[0].ln_1]
    for part in frozen:
        part.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    settings = replace(SETTINGS, optimizer=name, learning_rate=1e-2)
    optimizer = build_optimizer(model, settings, CPU)
    for _ in range(2):
        backward(model, 0)
        clip_gradients(optimizer, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    after = model.state_dict()
    same = {key for key, w in before.items() if torch.equal(w, after[key])}
    still = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert same == still and len(still) >= 4
    state = optimizer.state_dict()
    assert len(state["state"]) == len(list(model.parameters())) - len(still)
    load_optimizer_state(build_optimizer(model, settings, CPU), state)


def test_muon_takes_matrices_alone():
    model = tiny()
    model.transformer.h[0].mlp.experts = torch.nn.Parameter(torch.ones(2, 3, 4))
    with pytest.raises(UserError, match=r"transformer.h.0.mlp.experts has 3 dimensions: let the"):
        build_optimizer(model, replace(SETTINGS, optimizer="muon"), CPU)


def test_a_parameter_in_two_groups_is_an_error():
    class Twice(GPT):
        def param_groups(self):
            groups = super().param_groups()
            return {**groups, "scalars": groups["scalars"] + groups["embeddings"]}

    model = Twice(GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=16))
    with pytest.raises(UserError, match=r"optimizer|more than one parameter group"):
        build_optimizer(model, replace(SETTINGS, optimizer="muon"), CPU)


LION = replace(SETTINGS, optimizer="lion")


@pytest.mark.parametrize("settings", [LION, Config(vars(LION))], ids=["others'", "train.py's"])
def test_a_setting_that_an_optimizer_of_ones_own_lacks_is_named(settings, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "lion", lambda model, c, runtime: c.lion_beta)
    with pytest.raises(UserError, match="optimizer=lion reads a setting lion_beta: give it a line"):
        build_optimizer(tiny(), settings, CPU)
    monkeypatch.setitem(OPTIMIZERS, "lion", lambda model, c, runtime: model.lion)
    with pytest.raises(AttributeError, match="has no attribute 'lion'"):  # a fault of its own
        build_optimizer(tiny(), settings, CPU)


def test_settings_reach_adamw():
    optimizer = build_optimizer(tiny(), replace(SETTINGS, adam_eps=1e-5, beta2=0.99), CPU)
    for group in optimizer.param_groups:
        assert (group["eps"], group["betas"], group["lr"]) == (1e-5, (0.9, 0.99), 6e-4)


def test_a_model_whose_adamw_is_its_own():
    """Its configure_optimizers may be one that knows nothing of the class to make."""

    class Frozen(GPT):
        def configure_optimizers(self, weight_decay, learning_rate, betas, device_type, eps=1e-8):
            return torch.optim.AdamW([self.lm_head.weight], learning_rate, betas, eps, fused=True)

    torch.manual_seed(0)
    model = Frozen(GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=16))
    with pytest.raises(UserError, match=r"^transformer.wpe.weight is in 0 groups of the optimizer"):
        build_optimizer(model, SETTINGS, CPU)
    model.requires_grad_(False).lm_head.requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(model, SETTINGS, CPU)
    backward(model, 0)
    optimizer.step()
    moved = {k for k, w in model.state_dict().items() if not torch.equal(w, before[k])}
    assert moved == {"lm_head.weight", "transformer.wte.weight"}  # which are one


def test_a_state_of_steps_that_were_not_fused_loads_and_goes_on():
    """As nanoGPT saves it on a CPU: the steps that follow are those of the other kind."""
    plain, ours = tiny(), tiny()
    params = [p for p in plain.parameters() if p.dim() >= 2]
    others = [p for p in plain.parameters() if p.dim() < 2]
    groups = [dict(params=params, weight_decay=0.1), dict(params=others, weight_decay=0.0)]
    theirs = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    for seed in range(3):
        backward(plain, seed)
        theirs.step()
        theirs.zero_grad()
    ours.load_state_dict(plain.state_dict())
    optimizer = build_optimizer(ours, replace(SETTINGS, learning_rate=1e-3), CPU)
    load_optimizer_state(optimizer, copy.deepcopy(theirs.state_dict()))
    assert all(g["fused"] for g in optimizer.param_groups)
    for seed in range(3, 6):
        for model, o in ((plain, theirs), (ours, optimizer)):
            backward(model, seed)
            o.step()
            o.zero_grad()
    for a, b in zip(plain.parameters(), ours.parameters()):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    # and back: what was loaded saves in the same layout
    saved = optimizer.state_dict()
    assert {int(s["step"]) for s in saved["state"].values()} == {6}
    assert saved["param_groups"][0]["params"] == theirs.state_dict()["param_groups"][0]["params"]


def test_a_step_without_a_finite_gradient_changes_nothing():
    """What train.py does with found_inf: weights, moments and step counters stay, bit for bit."""
    model = tiny()
    optimizer = build_optimizer(model, SETTINGS, CPU)
    backward(model, 0)
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    optimizer.zero_grad()

    def everything():
        state = [v.clone() for s in optimizer.state.values() for v in s.values()]
        return [p.detach().clone() for p in model.parameters()] + state

    before = everything()
    backward(model, 1)
    for p in model.parameters():
        p.grad.fill_(math.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, everything()))
    optimizer.zero_grad()
    backward(model, 1)
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    assert not all(torch.equal(a, b) for a, b in zip(before, everything()))
    assert {int(s["step"]) for s in optimizer.state.values()} == {2}


def test_all_rates_follow_one_schedule():
    """Each group keeps its share of learning_rate; the momentum rises from 0.85."""
    settings = replace(SETTINGS, optimizer="muon")
    optimizer = build_optimizer(tiny(), settings, CPU)
    for step in (0, 50, 550, 1000):
        lr = learning_rate_at(step, settings)
        set_rates(optimizer, lr, step, settings)
        by_kind = {(g["kind"], len(g["params"])): g for g in optimizer.param_groups}
        embeddings, matrices = by_kind["adamw", 2], by_kind["muon", 4]
        assert embeddings["lr"] == pytest.approx(10 * lr)
        assert matrices["lr"] == lr
        assert matrices["momentum"] == pytest.approx(min(0.95, 0.85 + 0.01 * step))


def test_a_rate_of_0_changes_nothing():
    for name in OPTIMIZERS:
        model = tiny()
        rates = dict(learning_rate=0.0, min_lr=0.0, embedding_lr=0.0, head_lr=0.0, scalar_lr=0.0)
        settings = replace(SETTINGS, optimizer=name, **rates)
        optimizer = build_optimizer(model, settings, CPU)
        before = [p.detach().clone() for p in model.parameters()]
        for step in range(3):
            set_rates(optimizer, learning_rate_at(step, settings), step, settings)
            backward(model, step)
            clip_gradients(optimizer, 1.0)
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def with_tables() -> GPT:
    torch.manual_seed(0)
    sizes = dict(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=16)
    model = GPT(GPTConfig(**sizes, value_embeddings=True, bigram_embeddings=2))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model


def test_of_muons_embeddings_tables_alone_decay():
    """By table_decay times the rate, whatever the gradient; all else is as without."""
    settings = replace(SETTINGS, optimizer="muon", embedding_lr=0.1, grad_clip=0.0)
    plain, decayed, before = with_tables(), with_tables(), dict(with_tables().named_parameters())
    for model, decay in ((plain, 0.0), (decayed, 0.5)):
        optimizer = build_optimizer(model, replace(settings, table_decay=decay), CPU)
        backward(model, 0)
        clip_gradients(optimizer, 0.0)
        optimizer.step()
    tables = []
    for (name, a), b in zip(plain.named_parameters(), decayed.parameters()):
        if name.startswith(("values.", "bigrams.")):
            tables.append(name)
            torch.testing.assert_close(b, a - 0.1 * 0.5 * before[name])
        else:
            assert torch.equal(a, b), name
    assert tables == ["values.0.weight", "bigrams.weight"]


def test_a_state_from_before_tables_could_decay_goes_on():
    """They were in the group of the embeddings, and stood where they stand now."""
    settings = replace(SETTINGS, optimizer="muon", table_decay=0.1)
    whole, parts = with_tables(), with_tables()
    one, two = (build_optimizer(model, settings, CPU) for model in (whole, parts))

    def step(model, optimizer, seed):
        backward(model, seed)
        clip_gradients(optimizer, 0.0)
        optimizer.step()
        optimizer.zero_grad()

    step(whole, one, 0)
    state = copy.deepcopy(one.state_dict())
    first, tables = state["param_groups"][:2]
    assert len(tables["params"]) == 2
    first["params"] += state["param_groups"].pop(1)["params"]
    parts.load_state_dict(whole.state_dict())
    load_optimizer_state(two, state)
    for model, optimizer in ((whole, one), (parts, two)):
        step(model, optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters()))


def test_the_other_optimizers_state_is_refused():
    model = tiny()
    other = build_optimizer(tiny(), SETTINGS, CPU)
    muon = build_optimizer(model, replace(SETTINGS, optimizer="muon"), CPU)
    backward(model, 0)
    muon.clip_gradients(0.0)
    muon.step()
    for optimizer, state in ((other, muon.state_dict()), (muon, other.state_dict())):
        with pytest.raises(UserError, match="other optimizer"):
            load_optimizer_state(optimizer, state)


WRONG = [3, math.inf, torch.tensor(1.0), torch.zeros(0), torch.zeros(5), torch.zeros(2, 3, 4)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_that_is_not_of_this_model_is_one_line(name):
    """As a checkpoint of a stranger's may hold; or it does no harm, and the run goes on."""
    settings = replace(SETTINGS, optimizer=name, neuron_beta=0.9)
    model = tiny()
    optimizer = build_optimizer(model, settings, CPU)
    backward(model, 0)
    clip_gradients(optimizer, 1.0)
    optimizer.step()
    good, refused = optimizer.state_dict(), set()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, entry in good["state"].items():
        for key in entry:
            for wrong in WRONG:
                state = {"optimizer": copy.deepcopy(good)}
                state["optimizer"]["state"][i][key] = wrong
                try:
                    check_checkpoint(state, Path("it"))
                    crop_moments(state["optimizer"], parameters)
                    load_optimizer_state(optimizer, state["optimizer"])
                except UserError as e:
                    assert "\n" not in str(e)
                    refused.add(key)
                else:
                    clip_gradients(optimizer, 1.0)
                    optimizer.step()
        load_optimizer_state(optimizer, copy.deepcopy(good))
    assert refused >= {key for entry in good["state"].values() for key in entry} - {"step"}


def test_muon_wants_matrices():
    class Bigrams(LanguageModel):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(7, 7)

    with pytest.raises(UserError, match="of which this model has none: use adamw"):
        build_optimizer(Bigrams(), replace(SETTINGS, optimizer="muon"), CPU)
    build_optimizer(Bigrams(), SETTINGS, CPU)
