"""bonsai/planning/depth.py, and --depth in train.py."""

import json
import subprocess
import sys
from itertools import pairwise

import pytest
from helpers.programs import ROOT

from bonsai.models.table import build_model
from bonsai.planning.depth import RECIPE, compute_optimal, matrix_parameters

SETTINGS = {"block_size": 1024, "batch_size": 16}


def test_the_rule_is_the_fast_gpt2_at_12_layers():
    run = compute_optimal(12, SETTINGS, set())
    assert (run["n_embd"], run["n_head"], run["learning_rate"]) == (768, 6, 0.025)
    assert run["gradient_accumulation_steps"] * 16 * 1024 == 2**19
    assert run["max_iters"] * 2**19 == pytest.approx(20 * 12 * 12 * 768**2, rel=1e-3)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 12, 20])
def test_the_formula_counts_the_models_matrices(depth):
    run = compute_optimal(depth, SETTINGS, set())
    fields = {k: v for k, v in run.items() if k in ("n_layer", "n_head", "n_embd", *RECIPE)}
    model = build_model("gpt", {**fields, "vocab_size": 65, "block_size": 8})
    assert sum(p.numel() for p in model.param_groups()["matrices"]) == matrix_parameters(depth)


def test_a_deeper_run_is_larger_in_everything():
    runs = [compute_optimal(depth, SETTINGS, set()) for depth in (4, 8, 12, 20)]
    for small, large in pairwise(runs):
        for name in ("n_embd", "gradient_accumulation_steps", "max_iters", "learning_rate"):
            assert small[name] < large[name], name


def test_what_is_given_stays_and_the_rest_fits_it():
    given = {**SETTINGS, "gradient_accumulation_steps": 8, "learning_rate": 1.0, "n_embd": 256}
    run = compute_optimal(12, given, {"gradient_accumulation_steps", "learning_rate", "n_embd"})
    assert not {"gradient_accumulation_steps", "learning_rate", "n_embd"} & set(run)
    free = compute_optimal(12, SETTINGS, set())
    assert run["max_iters"] == pytest.approx(4 * free["max_iters"], rel=1e-3)
    assert run["embedding_lr"] == pytest.approx(free["embedding_lr"] * (1 / 4 * 3) ** 0.5)
    assert run["n_head"] == 4


def test_tables_remember_the_same_share_of_every_run():
    """1 / (rate x decay) steps."""
    runs = [compute_optimal(depth, SETTINGS, set()) for depth in (2, 4, 12, 20)]
    shares = [1 / (r["embedding_lr"] * r["table_decay"] * r["max_iters"]) for r in runs]
    assert shares == pytest.approx([0.22] * 4, abs=0.01)


@pytest.mark.parametrize("world", [2, 3, 8])
def test_the_batch_divides_among_processes(world):
    run = compute_optimal(6, SETTINGS, set(), world)
    assert run["gradient_accumulation_steps"] % world == 0


def test_the_dial_in_training(workplace, tmp_path):
    """Resolved after all arguments: what is given wins, wherever it stands."""
    out = tmp_path / "run"
    words = ["--max_iters=2", "--depth=2", "--n_embd=64", "--dataset=meta", "--block_size=16"]
    words += ["--batch_size=4", "--eval_iters=2", "--device=cpu", "--dtype=float32"]
    words += ["--gradient_accumulation_steps=1", f"--out_dir={out}"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=workplace,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    config = json.loads((out / "config.json").read_text())
    assert (config["n_layer"], config["n_embd"], config["n_head"]) == (2, 64, 1)
    assert (config["max_iters"], config["lr_decay_iters"]) == (2, 2)
    assert (config["optimizer"], config["position"]) == ("muon", "rope")
    assert (config["rope_base"], config["attention_scale"]) == (1024.0, 0.12)
