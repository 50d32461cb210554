"""The GPT family by name, and what a model would cost without being made."""

import json
import subprocess
import sys

import pytest
import torch
from helpers.programs import ROOT, TINY, assert_one_line_error, environment, load, run_program

from bonsai.models.table import build_model
from bonsai.planning.costs import (
    cache_bytes,
    describe_size,
    describe_time,
    meta_model,
    parameters_by_part,
)
from bonsai.planning.presets import FIELDS, PRESETS
from model import GPT, GPTConfig


def by_formula(f: dict) -> int:
    """Parameters of a GPT with biases, from its shape: 12 L d^2 and the rest."""
    L, d, V, T = f["n_layer"], f["n_embd"], f["vocab_size"], f["block_size"]
    attention = 4 * d * d + 4 * d
    mlp = 8 * d * d + 5 * d
    final_norm = 0 if f.get("norm_placement") == "post" else 2 * d
    return V * d + T * d + L * (attention + mlp + 4 * d) + final_norm


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


def test_a_meta_model_is_the_model():
    fields = {**PRESETS["gpt-nano"].fields, "vocab_size": 99, "norm_embedding": True}
    real, shape = GPT(GPTConfig(**fields)), meta_model("gpt", fields)
    assert all(p.is_meta for p in shape.parameters())
    assert [p.shape for p in real.parameters()] == [p.shape for p in shape.parameters()]
    assert shape.flops_per_token() == real.flops_per_token()
    assert torch.empty(0).device.type == "cpu"  # nothing of it stays after


def test_cache_bytes_are_those_of_a_cache():
    model = build_model("gpt", {**PRESETS["gpt-nano"].fields, "vocab_size": 9, "n_kv_head": 1})
    cache = model.new_cache(1, 77, dtype=torch.bfloat16)
    assert cache_bytes(model, 77) == cache.k.nbytes + cache.v.nbytes


def test_local_attention_costs_what_it_sees():
    """Every second layer of GPT-3 sees 256 of 2,048 positions."""
    fields = PRESETS["gpt3-small"].fields
    local = meta_model("gpt", fields)
    dense = meta_model("gpt", {**fields, "attention_window": 0})
    saved = 12 * 6 * 768 * (2048 - 256)
    assert dense.flops_per_token() - local.flops_per_token() == saved
    assert f"local attention     saves {saved:.3e} of the" in describe_size(local, 1)
    assert "local attention" not in describe_size(dense, 1)


def test_describe_time():
    assert describe_time(30) == "30 s"
    assert describe_time(60) == "1.0 minutes"
    assert describe_time(5 * 3600) == "5.0 hours"
    assert describe_time(10 * 365.25 * 86400) == "10.0 years"


# ---- bench.py --size ----


def size(tmp_path, *options):
    return run_program(options, tmp_path, program="bench.py")


def test_175b_in_little_memory(tmp_path):
    """nanoGPT's notebooks in one page; of the 700 GB of weights nothing is allocated."""
    code = "import psutil, runpy, sys; sys.argv[1:] = ['--size=gpt3-175b', '--gpus=1024']\n"
    code += f"try: runpy.run_path({str(ROOT / 'bench.py')!r}, run_name='__main__')\n"
    code += "except SystemExit as e: assert not e.code\n"
    code += "print(psutil.Process().memory_info().rss)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 1e9
    assert f"{by_formula(PRESETS['gpt3-175b'].fields):,}" in done.stdout
    assert "1024 x H100" in done.stdout and "20 per parameter" in done.stdout


def test_nanogpts_estimate(tmp_path):
    """Its notebook: 124M on 300B tokens, 8 A100 at 30%: 3.46 days by 6 N D, attention on top."""
    options = ["--size=gpt2", "--gpu=A100", "--gpus=8", "--mfu=0.3", "--tokens=300e9"]
    done = size(tmp_path, *options)
    assert done.rc == 0 and "4.0 days on 8 x A100" in done.stdout, done
    assert "124,439,808" in done.stdout and "8.552e+08 to train" in done.stdout


def test_fields_that_are_given_change_a_size(tmp_path):
    done = size(tmp_path, "--size=gpt2", "--n_layer=6", "--block_size=2048")
    layers, positions = 6 * 7_087_872, 1024 * 768
    assert f"{124_439_808 - layers + positions:,}" in done.stdout, done


@pytest.mark.parametrize(
    "options, hint",
    [
        (["--size=gpt5"], "gpt3-175b"),
        (["--size=gpt2", "--gpu=abacus"], "abacus"),
        (["--size=gpt2", "--mfu=40"], "mfu"),
        (["--size=gpt2", "--n_head=7"], "not divisible"),
    ],
)
def test_mistakes_are_one_line(tmp_path, options, hint):
    assert_one_line_error(size(tmp_path, *options), hint)


# ---- --preset ----


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
