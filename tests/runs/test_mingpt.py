"""bonsai/runs/mingpt.py: tensors by their names, and nothing that says what they are."""

import json

import pytest
import torch
from helpers.errors import one_line
from helpers.programs import differences

from bonsai.models.loading import load_model
from bonsai.runs.mingpt import HEADS
from bonsai.system.errors import UserError
from model import GPT, GPTConfig

T, V = 12, 50


def save(folder, layers=2, heads=5, channels=40, **changed) -> GPT:
    """model.pt, as torch.save(model.state_dict()) of minGPT's module writes it. changed: tensors;
    None is left out."""
    torch.manual_seed(0)
    sizes = dict(n_layer=layers, n_head=heads, n_embd=channels, activation="gelu_tanh")
    model = GPT(GPTConfig(T, V, tie_head=False, **sizes)).eval()
    weights = dict(model.state_dict())
    mask = torch.tril(torch.ones(T, T)).view(1, 1, T, T)
    weights |= {f"transformer.h.{i}.attn.bias": mask.clone() for i in range(layers)}
    weights |= {name.replace("__", "."): w for name, w in changed.items()}
    torch.save({k: w for k, w in weights.items() if w is not None}, folder / "model.pt")
    return model


def config(folder, **model) -> None:
    (folder / "config.json").write_text(json.dumps({"system": {"seed": 1}, "model": model}))


@pytest.mark.parametrize("layers, channels, heads", [(3, 48, 3), (4, 128, 4)])
def test_a_model_type_is_known_by_its_sizes(tmp_path, layers, channels, heads):
    model = save(tmp_path, layers, heads, channels)
    loaded = load_model(str(tmp_path / "model.pt"))
    assert differences(loaded.model.state_dict(), model.state_dict()) == []
    idx = torch.randint(V, (2, T))
    assert torch.equal(loaded.model.eval()(idx)[0], model(idx)[0])
    assert loaded.model.lm_head.weight is not loaded.model.transformer.wte.weight
    config(tmp_path, model_type="gpt-x", n_head=None)  # as it is written where a type was given
    assert load_model(str(tmp_path / "model.pt")).model.config == model.config


def test_the_table_has_heads_that_divide():
    assert all(channels % heads == 0 for (_, channels), heads in HEADS.items())


def test_the_heads_of_other_sizes_stand_beside_them(tmp_path):
    model = save(tmp_path)
    config(tmp_path, n_layer=2, n_head=5, n_embd=40)
    loaded = load_model(str(tmp_path / "model.pt"))
    assert loaded.model.config == model.config
    config(tmp_path, n_head=4)  # a config counts more than a table
    assert load_model(str(tmp_path / "model.pt")).model.config.n_head == 4


@pytest.mark.parametrize("beside", [None, {}, {"n_head": "5"}, {"n_head": 0}])
def test_without_heads_it_is_one_line(tmp_path, beside):
    save(tmp_path)
    if beside is not None:
        config(tmp_path, **beside)
    with pytest.raises(UserError, match=r"minGPT's, 2 layers of 40 channels.*config.json") as e:
        load_model(str(tmp_path / "model.pt"))
    one_line(e)


DAMAGED = {
    "a tensor is missing": ({"transformer__h.1.ln_1.bias": None}, "no transformer.h.1.ln_1.bias"),
    "one too many": ({"more": torch.zeros(1)}, "too much: more"),
    "no table": ({"transformer__wte.weight": torch.zeros(3)}, "not a checkpoint of a training run"),
    "no positions": ({"transformer__wpe.weight": torch.tensor(1.0)}, "transformer.wpe.weight is"),
    "another shape": ({"transformer__ln_f.bias": torch.zeros(3)}, "transformer.ln_f.bias is (3,)"),
    "no mask": ({"transformer__h.1.attn.bias": None}, "does not fit"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_damaged_is_one_line(tmp_path, case):
    changed, said = DAMAGED[case]
    save(tmp_path, **changed)
    config(tmp_path, n_head=5)
    with pytest.raises(UserError) as e:
        load_model(str(tmp_path / "model.pt"))
    assert said in one_line(e)


def test_nanogpts_weights_alone_are_not_taken_for_it(tmp_path):
    """Their head is the embedding, and their GELU may be either."""
    shared = torch.zeros(V, 40)
    save(tmp_path, **{"transformer__wte.weight": shared, "lm_head__weight": shared})
    with pytest.raises(UserError, match="not a checkpoint of a training run"):
        load_model(str(tmp_path / "model.pt"))
