"""bonsai/planning/recipe.py: the fast configs are the recipe, but for what they state."""

import ast

import pytest
from helpers.programs import ROOT
from helpers.settings import settings

from bonsai.planning.depth import RECIPE, compute_optimal

SETTINGS = {"block_size": 1024, "batch_size": 16}


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "config").glob("fast_*.py")))
def test_the_fast_configs_are_the_rule_at_12_layers_but_for_what_they_state(name):
    """Every setting of train.py and every field of the model."""
    config = settings("train.py", [str(ROOT / "config" / name)])
    rule = {**config.defaults, **compute_optimal(12, SETTINGS, set())}
    tree = ast.parse((ROOT / "config" / name).read_text(encoding="utf-8"))
    stated = {t.id for node in tree.body if isinstance(node, ast.Assign) for t in node.targets}
    stated.add("lr_decay_iters")  # where it is not given training makes it max_iters
    assert set(RECIPE) - stated and set(RECIPE) <= set(config)
    assert {k: v for k, v in config.items() if k not in stated} == {
        k: v for k, v in rule.items() if k not in stated
    }
    repeated = {k for k in stated & set(RECIPE) if config[k] == RECIPE[k]}
    assert not repeated, "the recipe has these already"
