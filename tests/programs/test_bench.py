"""bench.py, with tiny models on the CPU."""

import json
import sys

import pytest
import torch
from helpers.programs import ROOT, assert_one_line_error, losses, run_command, run_program, train

from bonsai.data.batches import Batches, prefetch
from bonsai.data.dataset import Mixture, open_dataset
from bonsai.models.table import build_model
from bonsai.system.runtime import setup
from bonsai.training.settings import StepSettings
from bonsai.training.step import TrainingStep
from bonsai.training.timing import TimedSteps

TINY = ["--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=16", "--batch_size=4"]
TINY += ["--device=cpu", "--dtype=float32", "--warmup=1"]


def bench(*options, cwd, **keywords):
    return run_program([*TINY, *options], cwd, program="bench.py", **keywords)


# ---- bench.py ----


def test_the_numbers_agree_with_one_another(workplace):
    done = bench("--dataset=meta", "--steps=5", "--micro_batches=3", "--json=-", cwd=workplace)
    assert done.rc == 0 and not done.stderr, done
    results = json.loads(done.stdout.splitlines()[-1])
    ms = results["ms_per_step"]
    assert ms["n"] == 5 and 0 < ms["low"] <= ms["median"] <= ms["high"]
    assert results["tokens_per_step"] == 3 * 4 * 16
    assert results["tokens_per_s"] == pytest.approx(3 * 64 / ms["median"] * 1000)
    assert results["mfu"] is None  # no peak is known for a CPU
    assert 0 <= results["waiting_for_data"] <= 1
    assert 2**26 < results["peak_memory_bytes"] < 2**33
    assert 2 < results["loss"] < 5 and results["settings"]["vocab_size"] == 30
    for name in ("command", "commit", "versions", "hardware"):
        assert results[name]
    line = f"time per iteration: {results['ms_mean']:.4f}ms, MFU: n/a"  # nanoGPT's
    assert line in done.stdout.splitlines()
    for k in range(5):
        assert f"\n{k}/5 loss: " in done.stdout


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_optimizers_share_of_a_step(workplace, optimizer):
    options = ["--dataset=meta", "--steps=2", "--json=b.json", f"--optimizer={optimizer}"]
    done = bench(*options, cwd=workplace)
    assert done.rc == 0 and not done.stderr, done
    ms = json.loads((workplace / "b.json").read_text())["ms_optimizer"]
    assert ms["n"] == 2 and 0 < ms["low"] <= ms["median"]
    assert f"optimizer         {ms['median']:.2f} ms of them" in done.stdout


def test_what_a_run_does_beside_the_first_loss(workplace):
    """The second loss and Muon's evened rows are part of what is measured."""
    found = set()
    for more in ([], ["--further_weight=0.5"], ["--neuron_beta=0.9"], ["--cautious_decay=True"]):
        options = ["--dataset=meta", "--steps=3", "--optimizer=muon", "--json=b.json", *more]
        assert bench(*options, "--learning_rate=0.1", cwd=workplace).rc == 0
        found.add(json.loads((workplace / "b.json").read_text())["loss"])
    assert len(found) == 4
    done = bench("--model=megabyte", "--further_weight=0.5", cwd=workplace)
    assert_one_line_error(done, "further_weight is the GPT's alone")


def test_without_data_it_measures_random_tokens_and_profiles(tmp_path):
    options = ["--dataset=nosuch", "--steps=2", "--vocab_size=99", "--profile", "--json=b.json"]
    done = bench(*options, "--out_dir=here", cwd=tmp_path)
    assert done.rc == 0, done
    told = [line for line in done.stdout.splitlines() if "random tokens instead" in line]
    assert len(told) == 1 and "nosuch" in told[0]
    results = json.loads((tmp_path / "b.json").read_text())
    assert results["waiting_for_data"] is None and results["data"] == "random tokens"
    assert results["settings"]["vocab_size"] == 99
    assert "\nshare of time " in done.stdout and "| kernel or operation " in done.stdout
    assert sum(results["shares"].values()) == pytest.approx(1)
    trace = json.loads((tmp_path / "here" / "trace.json").read_text())
    assert trace["traceEvents"]


def test_two_processes_share_the_work(workplace, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = ["--dataset=meta", "--steps=2", f"--json={tmp_path / 'b.json'}"]
    done = run_command([*command, str(ROOT / "bench.py"), *TINY, *options], workplace)
    assert done.rc == 0, done
    results = json.loads((tmp_path / "b.json").read_text())
    assert (results["processes"], results["tokens_per_step"]) == (2, 2 * 4 * 16)
    assert done.stdout.count("time per iteration") == 1


def test_config_files_of_train_are_taken(tmp_path):
    """Model and optimizer of a run; what only train.py knows is left out, a typo is not."""
    config = "config/fast_shakespeare_char_cpu.py"
    options = ["--steps=1", "--json=-", "--real_data=False"]
    done = run_program([config, *TINY, *options], tmp_path, program="bench.py")
    assert done.rc == 0, done
    found = json.loads(done.stdout.splitlines()[-1])["settings"]
    assert (found["optimizer"], found["position"], found["n_embd"]) == ("muon", "rope", 32)
    assert "max_iters" not in found
    (tmp_path / "typo.py").write_text("max_iters = 5\nmax_itres = 5\n")
    done = bench("typo.py", cwd=tmp_path)
    assert_one_line_error(done, "typo.py:2: unknown setting max_itres")


def test_mistakes_end_in_one_line(workplace):
    done = bench("--dataset=meta", "--block_size=99999", cwd=workplace)
    assert_one_line_error(done, "too few for a window of block_size 99999")


# ---- the step that is timed ----


def test_a_step_is_that_of_train_py(workplace, tmp_path):
    """But for accumulation, the schedule and the log."""
    options = ["--gradient_accumulation_steps=1", "--max_iters=4", "--decay_lr=False"]
    done = train(workplace, tmp_path / "run", *options, "--eval_interval=100")
    assert done.rc == 0, done
    fields = dict(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=30, dropout=0.1)
    torch.manual_seed(1337)
    model = build_model("gpt", {**fields, "bias": False})
    data = Mixture([open_dataset(str(workplace / "data" / "meta"))])
    stream = prefetch(Batches(data, 16, 4, 1337), 0, 4)
    settings = StepSettings(learning_rate=3e-3)
    step = TimedSteps(TrainingStep(model, settings, setup("cpu", "float32", False)), stream)
    trained = [step.log(step())[0] for _ in range(4)]
    stream.close()
    assert trained == pytest.approx([loss for _, loss in losses(tmp_path / "run")], abs=1e-5)
