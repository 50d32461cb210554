"""bonsai/planning/presets.py: published counts, and --preset in train.py."""

import json

import pytest
from helpers.gpt_parameters import by_formula
from helpers.programs import TINY, assert_one_line_error, load, run_program

from bonsai.planning.costs import meta_model, parameters_by_part
from bonsai.planning.presets import FIELDS, PRESETS, find_preset
from bonsai.system.errors import UserError


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_by_formula_and_as_published(name):
    preset = PRESETS[name]
    model = meta_model("gpt", preset.fields)
    count = model.num_params(non_embedding=False)
    assert count == by_formula(preset.fields) == sum(parameters_by_part(model).values())
    if name == "gopher-44m":  # relative positions: keys d x d and two biases a layer, no table
        c = model.config
        count += c.n_layer * (c.n_embd**2 + 2 * c.n_embd) - c.block_size * c.n_embd
    if preset.published:
        assert count == pytest.approx(preset.published, rel=0.02)


def test_the_counts_that_everyone_knows():
    counts = {
        name: meta_model("gpt", PRESETS[name].fields).num_params(non_embedding=False)
        for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
    }
    expected = [124_439_808, 354_823_168, 774_030_080, 1_557_611_200]
    assert list(counts.values()) == expected


def test_training_a_preset(workplace, tmp_path):
    """Its shape, the data's vocabulary; later arguments win."""
    options = [o for o in TINY if not o.startswith(("--n_layer", "--n_head", "--n_embd"))]
    options += ["--dataset=meta", "--max_iters=2", f"--out_dir={tmp_path}"]
    done = run_program(["--preset=gpt-nano", "--n_layer=1", *options], workplace)
    assert done.rc == 0, done
    saved = load(tmp_path / "last.pt")["model_config"]
    assert (saved["n_layer"], saved["n_head"], saved["n_embd"]) == (1, 3, 48)
    assert (saved["vocab_size"], saved["bias"], saved["block_size"]) == (30, True, 16)
    assert "preset gpt-nano" in done.stdout.splitlines()[0]
    assert json.loads((tmp_path / "config.json").read_text())["activation"] == "gelu_tanh"


def test_an_unknown_preset_is_one_line(tmp_path):
    done = run_program(["--preset=gpt5"], tmp_path)
    assert_one_line_error(done, "gpt2-xl", status=(2,))
    shown = run_program(["--help"], tmp_path).stdout
    assert "--preset=openai-gpt|gpt2|" in shown and set(FIELDS) == set(PRESETS)


def test_a_preset_by_its_name():
    assert find_preset("gpt2-xl") is PRESETS["gpt2-xl"]
    with pytest.raises(UserError, match="'GPT2' is not one of openai-gpt, gpt2, "):
        find_preset("GPT2")
    assert all("vocab_size" not in fields for fields in FIELDS.values())  # the data's
