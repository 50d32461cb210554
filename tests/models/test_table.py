"""bonsai/models/table.py: a model by its name, and back to what a checkpoint says of it."""

from dataclasses import fields

import pytest
import torch
from helpers.byte_models import MEGABYTE, SPACEBYTE

from bonsai.models.megabyte import Megabyte, MegabyteConfig
from bonsai.models.spacebyte import Spacebyte, SpacebyteConfig
from bonsai.models.table import CONFIGS, MODELS, build_model, describe_model
from bonsai.system.errors import UserError
from model import CLASSIC_KEYS, GPT, TABLES, GPTConfig

GPT_SHAPE = dict(n_layer=1, n_head=2, n_embd=8, block_size=6, vocab_size=9)
TABLE = {
    "gpt": (GPT, GPTConfig, {**GPT_SHAPE, "position": "rope"}),
    "megabyte": (Megabyte, MegabyteConfig, MEGABYTE),
    "spacebyte": (Spacebyte, SpacebyteConfig, SPACEBYTE),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_table_of_models_makes_it(name):
    """Settings that are no fields of it are a run's."""
    kind, make_config, shape = TABLE[name]
    assert MODELS[name] == (kind, make_config) and CONFIGS[name] is make_config
    model = build_model(name, {**shape, "learning_rate": 1e-3})
    assert type(model) is kind
    assert all(getattr(model.config, field) == value for field, value in shape.items())


@pytest.mark.parametrize("name", MODELS)
def test_what_is_said_of_a_model_makes_it_again(name):
    model = build_model(name, TABLE[name][2])
    said = describe_model(model, name)
    assert said["model_name"] == name
    assert set(said["model_config"]) == {f.name for f in fields(CONFIGS[name])}
    assert build_model(name, said["model_config"]).config == model.config
    known = [key for key in CLASSIC_KEYS if key in said["model_config"]]
    assert said["model_args"] == {key: said["model_config"][key] for key in known}


@pytest.mark.parametrize("name", MODELS)
def test_on_another_device_the_random_numbers_are_the_same(name):
    shape, built = TABLE[name][2], []
    if name == "gpt":
        shape = {**shape, "value_embeddings": True, "bigram_embeddings": 2, "bias": True}
    for device in (None, torch.device("meta")):
        torch.manual_seed(0)
        built.append(build_model(name, shape, device))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    build_model(name, shape)
    assert torch.equal(torch.rand(1), drawn)
    here, there = (dict(model.named_parameters()) for model in built)
    assert here.keys() == there.keys()
    for key, p in there.items():
        assert not here[key].any() if p.is_meta else torch.equal(p, here[key]), key
    tables = [p for key, p in there.items() if key.startswith(TABLES)]
    assert all(p.is_meta for p in tables) and len(tables) == (2 if name == "gpt" else 0)


def test_what_cannot_be_built_is_one_line():
    with pytest.raises(UserError, match="model=lstm is not one of gpt, megabyte, spacebyte"):
        build_model("lstm", {})
    with pytest.raises(UserError, match="n_head=3"):
        build_model("gpt", {**GPT_SHAPE, "n_head": 3})
