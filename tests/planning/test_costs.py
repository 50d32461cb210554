"""The GPT family by name, and what a model would cost without being made."""

import subprocess
import sys

import pytest
import torch
from helpers.gpt_parameters import by_formula
from helpers.programs import ROOT, assert_one_line_error, environment, run_program

from bonsai.models.table import build_model
from bonsai.planning.costs import cache_bytes, describe_size, describe_time, meta_model
from bonsai.planning.presets import PRESETS
from model import GPT, GPTConfig


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
