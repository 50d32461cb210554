"""The fast recipes as whole runs: exact resume, several processes, every config, batch ramps."""

import math
import re

import numpy as np
import pytest
from helpers.programs import (
    ROOT,
    TINY,
    differences,
    load,
    losses,
    metrics,
    run_as_several,
    run_program,
    train,
)

from bonsai.data.batches import Batches
from bonsai.data.dataset import Mixture

FAST = ["--optimizer=muon", "--learning_rate=0.02", "--embedding_lr=0.05", "--min_lr=0.0"]
FAST += ["--lr_schedule=trapezoid", "--cooldown=0.6", "--tie_head=False", "--position=rope"]
FAST += ["--norm_embedding=True", "--init=fan_in", "--zero_init=True", "--qk_norm=True"]
FAST += ["--value_embeddings=True", "--residual_lambdas=True", "--attention_window=4"]
FAST += ["--bigram_embeddings=2"]
FAST += ["--window_pattern=LD", "--cautious_decay=True", "--batch_order=epoch"]
FAST += ["--momentum_warmup=10", "--gradient_accumulation_steps=4", "--batch_ramp=12"]
FAST += ["--token_noise=0.05", "--window_ramp=14", "--further_weight=0.5"]
FAST += ["--neuron_beta=0.9"]
FAST += ["--eval_interval=10", "--dropout=0.1"]


def test_10_steps_and_10_more_are_20_steps(workplace, tmp_path):
    """With Muon, a schedule with a cooldown, and ramps that end after the resume."""
    fast = [*FAST, "--table_decay=0.1"]
    whole = train(workplace, tmp_path / "whole", *fast)
    assert whole.rc == 0, whole
    for options in (["--max_iters=10"], ["--init_from=resume"]):
        result = train(workplace, tmp_path / "parts", *fast, *options)
        assert result.rc == 0, result
    a, b = tmp_path / "whole", tmp_path / "parts"
    assert losses(a) == losses(b)
    assert losses(a)[-1][1] < losses(a)[0][1] - 0.3
    one, two = load(a / "last.pt"), load(b / "last.pt")
    assert differences(one["model"], two["model"]) == []
    assert differences(one["optimizer"], two["optimizer"]) == []
    # 6 steps with a quarter of the micro-batches, 6 with a half, 8 with all
    tokens = {r["iter"]: r["tokens"] for r in metrics(a) if "tokens" in r}
    rows = int(next(o for o in TINY if o.startswith("--batch_size")).split("=")[1])
    T = int(next(o for o in TINY if o.startswith("--block_size")).split("=")[1])
    assert tokens[20] == (6 * 1 + 6 * 2 + 8 * 4) * rows * T


def test_two_processes_equal_one(workplace, tmp_path):
    """Each updates its share; what they save, one process goes on with."""
    # a quarter of the window is two tokens: to one that sees itself alone queries and keys have no
    # gradient but rounding's, of which Muon would make an update as large as any
    options = [*FAST, "--dropout=0.0", "--batch_ramp=0", "--log_interval=1", "--attention_window=8"]
    one = train(workplace, tmp_path / "one", *options)
    assert one.rc == 0, one
    words = [*TINY, "--dataset=meta", *options, f"--out_dir={tmp_path / 'two'}", "--max_iters=10"]
    two = run_as_several(words, workplace)
    assert two.rc == 0, two
    more = train(workplace, tmp_path / "two", *options, "--init_from=resume")
    assert more.rc == 0, more
    for (i, a), (j, b) in zip(losses(tmp_path / "one"), losses(tmp_path / "two")):
        assert i == j and a == pytest.approx(b, abs=5e-6), f"step {i}"


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "config").glob("fast_*.py")))
def test_every_fast_config_learns_and_stays_finite(workplace, tmp_path, name):
    """Reduced in size alone, three seeds each."""
    small = ["--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=16", "--batch_size=4"]
    small += ["--gradient_accumulation_steps=1", "--max_iters=60", "--lr_decay_iters=60"]
    small += ["--eval_interval=60", "--eval_iters=4", "--dtype=float32", "--compile=False"]
    small += ["--log_interval=10"]
    for seed in (1, 2, 3):
        out = tmp_path / str(seed)
        words = [str(ROOT / "config" / name), *small, f"--seed={seed}", f"--out_dir={out}"]
        result = run_program([*words, "--dataset=meta", "--device=cpu"], workplace)
        assert result.rc == 0, result
        assert all(math.isfinite(loss) for _, loss in losses(out))
        evals = [r["val_loss"] for r in metrics(out) if "val_loss" in r]
        assert evals[-1] < evals[0] - 0.5, evals


def test_a_ramp_is_a_pure_function_of_the_step(workplace, monkeypatch):
    """Rows add up, and an epoch has each window once although the steps grow."""
    monkeypatch.chdir(workplace)
    data = Mixture.open("meta")
    ramped = Batches(data, 16, 8, 1, "epoch", ramp=7)
    rows = [ramped.rows_at(step) for step in range(10)]
    assert rows == [2, 2, 2, 2, 4, 4, 4, 8, 8, 8]
    assert [ramped.rows_before(step) for step in range(10)] == list(np.cumsum([0, *rows[:-1]]))
    plain = Batches(data, 16, 8, 1, "epoch")
    a = np.concatenate([ramped.starts(step)[1] for step in range(10)])
    b = np.concatenate([plain.starts(step)[1] for step in range(6)])
    assert np.array_equal(a, b[: len(a)])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--batch_ramp=10", "--gradient_accumulation_steps=2"], "use a multiple of 4"),
        (["--depth=-1"], "depth=-1 must be at least 0"),
        (["--attention_window=-1"], "attention_window=-1 must be at least 0"),
        (["--window_pattern=X"], "of the letters D and L"),
        (["--optimizer=muno"], "is not one of adamw, muon"),
    ],
)
def test_mistakes(workplace, tmp_path, options, says):
    result = train(workplace, tmp_path / "run", *options)
    assert result.rc in (1, 2) and says in result.stderr
    assert len(re.findall(r"\n", result.stderr.strip())) == 0
