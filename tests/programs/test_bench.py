"""bench.py, with tiny models on the CPU."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from helpers.programs import (
    assert_one_line_error,
    losses,
    run_as_several,
    run_program,
    train,
)

import bench as bench_program
from bonsai.data.batches import Batches, prefetch
from bonsai.data.dataset import Mixture, open_dataset
from bonsai.models.table import build_model
from bonsai.system.runtime import setup
from bonsai.training import breakdown
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
    assert len(told) == 1 and "nosuch" in told[0] and "vocab_size" not in told[0]
    results = json.loads((tmp_path / "b.json").read_text())
    assert results["waiting_for_data"] is None and results["data"] == "random tokens"
    assert results["settings"]["vocab_size"] == 99
    assert "\nshare of time " in done.stdout and "| kernel or operation " in done.stdout
    assert sum(results["shares"].values()) == pytest.approx(1)
    trace = json.loads((tmp_path / "here" / "trace.json").read_text())
    assert trace["traceEvents"]
    # a config's vocabulary is that of its data: the speed of another one is said to be so
    small = ["--dataset=nosuch", "--steps=1", "--warmup=0", "--batch_size=1"]
    assert "of a vocabulary of 50,304 (vocab_size)" in bench(*small, cwd=tmp_path).stdout


def test_what_was_measured_is_kept_where_the_profile_is_cut(tmp_path, monkeypatch):
    def cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_program, "profile_steps", cut)
    settings = dict(n_layer=1, n_head=2, n_embd=32, block_size=16, batch_size=4, vocab_size=99)
    settings |= dict(device="cpu", dtype="float32", warmup=1, steps=1, real_data=False)
    with pytest.raises(KeyboardInterrupt):
        bench_program.main(
            **settings, profile=True, out_dir=str(tmp_path), json=str(tmp_path / "b.json")
        )
    kept = json.loads((tmp_path / "b.json").read_text())
    assert kept["tokens_per_s"] > 0 and "shares" not in kept


def test_two_processes_share_the_work(workplace, tmp_path):
    options = ["--dataset=meta", "--steps=2", f"--json={tmp_path / 'b.json'}"]
    done = run_as_several([*TINY, *options], workplace, "bench.py")
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


def test_mistakes_end_in_one_line(workplace, tmp_path):
    done = bench("--dataset=meta", "--block_size=99999", cwd=workplace)
    assert_one_line_error(done, "too few for a window of block_size 99999")
    (tmp_path / "file").touch()
    for wrong, said in (
        ("--micro_batches=0", "micro_batches=0 must be at least 1"),
        ("--micro_batches=1.5", "--micro_batches expects int"),
        ("--profile=perhaps", "--profile expects bool"),
        ("--json=file/b.json", "cannot write the results to file/b.json"),
        ("--profile --out_dir=file", "cannot write the trace to file/trace.json"),
    ):
        done = bench(*wrong.split(), cwd=tmp_path)
        assert_one_line_error(done, said)
        assert "to warm up" not in done.stdout  # nothing was measured before it was said


@pytest.mark.parametrize("name", ["gpt", "megabyte", "spacebyte"])
def test_a_profile_of_any_model(tmp_path, name):
    """Of several micro-batches and rows that are no power of two; the parts are all of it."""
    local = [] if name == "gpt" else ["--local_layer=2", "--local_head=2", "--local_embd=16"]
    options = [f"--model={name}", *local, "--steps=2", "--real_data=False", "--vocab_size=257"]
    options += ["--profile", "--json=b.json", "--out_dir=here"]
    done = bench(*options, "--batch_size=3", "--micro_batches=5", "--warmup=0", cwd=tmp_path)
    assert done.rc == 0, done
    results = json.loads((tmp_path / "b.json").read_text())
    assert [*results["seconds_to_start"]] == ["imports", "device", "data", "model", "first step"]
    assert results["tokens_per_step"] == 3 * 5 * 16 and results["settings"]["model"] == name
    shares = results["shares"]
    assert set(shares) == {*breakdown.PARTS, breakdown.REST} and all(shares.values())
    assert sum(shares.values()) == pytest.approx(1)
    rows = [row["name"] for row in results["longest"]]
    assert 0 < len(rows) <= 15 and all(f"| {name[:61]}" in done.stdout for name in rows)
    assert results["longest"][0]["share"] == max(row["share"] for row in results["longest"])
    line = next(x for x in done.stdout.splitlines() if x.startswith("share of time"))
    said = dict(re.findall(r"([a-z][a-z ]*) ([\d.]+)%", line.removeprefix("share of time")))
    assert {part: float(share) / 100 for part, share in said.items()} == {
        part: pytest.approx(share, abs=6e-4) for part, share in shares.items()
    }


def test_only_gpt_2s_rate_stands_beside_what_others_published():
    shape = dict(model="gpt", n_layer=12, n_embd=768, block_size=1024)
    assert bench_program.is_gpt2(SimpleNamespace(**shape))
    for key, value in (("model", "megabyte"), ("n_layer", 6), ("n_embd", 384), ("block_size", 64)):
        assert not bench_program.is_gpt2(SimpleNamespace(**{**shape, key: value}))


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
