"""bench.py, bonsai/training/step.py and the scripts of benchmarks/, with tiny models on the CPU."""

import json
import re
import shutil
import sys

import pytest
import torch
from helpers.programs import ROOT, assert_one_line_error, losses, run_command, run_program, train

from bonsai.data.batches import Batches, prefetch
from bonsai.data.dataset import Mixture, open_dataset
from bonsai.models.table import build_model
from bonsai.system.runtime import setup
from bonsai.training.step import OPTIMIZER, TrainingStep, synthetic, time_steps

TINY = ["--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=16", "--batch_size=4"]
TINY += ["--device=cpu", "--dtype=float32", "--warmup=1"]


def bench(*options, cwd, **keywords):
    return run_program([*TINY, *options], cwd, program="bench.py", **keywords)


def script(name: str, *options, cwd, env=None):
    return run_command([sys.executable, str(ROOT / "benchmarks" / name), *options], cwd, env)


# ---- bench.py ----


def test_the_numbers_agree_with_one_another(workplace):
    done = bench("--dataset=meta", "--steps=5", "--json=-", cwd=workplace)
    assert done.rc == 0 and not done.stderr, done
    found = json.loads(done.stdout.splitlines()[-1])
    ms = found["ms_per_step"]
    assert ms["n"] == 5 and 0 < ms["low"] <= ms["median"] <= ms["high"]
    assert found["tokens_per_step"] == 4 * 16
    assert found["tokens_per_s"] == pytest.approx(64 / ms["median"] * 1000)
    assert found["mfu"] is None  # no peak is known for a CPU
    assert 0 <= found["waiting_for_data"] <= 1
    assert 2**26 < found["peak_memory_bytes"] < 2**33
    assert 2 < found["loss"] < 5 and found["settings"]["vocab_size"] == 30
    for name in ("command", "commit", "versions", "hardware"):
        assert found[name]
    line = f"time per iteration: {found['ms_mean']:.4f}ms, MFU: n/a"  # nanoGPT's
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


def test_without_data_it_measures_random_tokens_and_profiles(tmp_path):
    options = ["--dataset=nosuch", "--steps=2", "--vocab_size=99", "--profile", "--json=b.json"]
    done = bench(*options, "--out_dir=here", cwd=tmp_path)
    assert done.rc == 0, done
    told = [line for line in done.stdout.splitlines() if "random tokens instead" in line]
    assert len(told) == 1 and "nosuch" in told[0]
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["waiting_for_data"] is None and found["data"] == "random tokens"
    assert found["settings"]["vocab_size"] == 99
    assert "Self CPU time total" in done.stdout  # the table of operations
    trace = json.loads((tmp_path / "here" / "trace.json").read_text())
    assert trace["traceEvents"]


def test_two_processes_share_the_work(workplace, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = ["--dataset=meta", "--steps=2", f"--json={tmp_path / 'b.json'}"]
    done = run_command([*command, str(ROOT / "bench.py"), *TINY, *options], workplace)
    assert done.rc == 0, done
    found = json.loads((tmp_path / "b.json").read_text())
    assert (found["processes"], found["tokens_per_step"]) == (2, 2 * 4 * 16)
    assert done.stdout.count("time per iteration") == 1


def test_mistakes_end_in_one_line(workplace):
    done = bench("--dataset=meta", "--block_size=99999", cwd=workplace)
    assert_one_line_error(done, "too few for a window of block_size 99999")


# ---- the step that is timed ----


def test_a_step_is_that_of_train_py(workplace, tmp_path):
    """TrainingStep copies train.py's loop; this keeps the two together."""
    options = ["--gradient_accumulation_steps=1", "--max_iters=4", "--decay_lr=False"]
    done = train(workplace, tmp_path / "run", *options, "--eval_interval=100")
    assert done.rc == 0, done
    fields = dict(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=30, dropout=0.1)
    torch.manual_seed(1337)
    model = build_model("gpt", {**fields, "bias": False})
    data = Mixture([open_dataset(str(workplace / "data" / "meta"))])
    stream = prefetch(Batches(data, 16, 4, 1337), 0, 4)
    settings = {**OPTIMIZER, "learning_rate": 3e-3, "seed": 1337}
    step = TrainingStep(model, stream, settings, setup("cpu", "float32", False))
    found = [step.log(step())[0] for _ in range(4)]
    stream.close()
    assert found == pytest.approx([loss for _, loss in losses(tmp_path / "run")], abs=1e-5)


def test_steps_are_timed_from_idle_to_idle():
    calls = []

    class Step:
        def __call__(self):
            calls.append("step")

        def log(self, loss):
            calls.append("log")

    seconds = time_steps(Step(), 5, lambda: calls.append("wait"), log_every=2)
    assert calls == ["wait", "step", "step", "log", "step", "step", "log", "step", "wait"]
    assert 0 < seconds < 1


def test_synthetic_batches_are_in_the_vocabulary():
    x, y = next(synthetic(7, 3, 50, torch.device("cpu")))
    assert x.shape == y.shape == (3, 50) and x.dtype == torch.int64
    assert x.min() >= 0 and set(torch.cat((x, y)).unique().tolist()) == set(range(7))


# ---- benchmarks/ ----

# A stand-in for a nanoGPT checkout, with the interface that the benchmarks use: its model is ours,
# its train.py saves a model that has seen no data.
PEER_MODEL = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("ours", {str(ROOT / "model.py")!r})
ours = importlib.util.module_from_spec(spec)
sys.modules["ours"] = ours
spec.loader.exec_module(ours)
GPTConfig = ours.GPTConfig
class GPT(ours.GPT):
    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        print("the peer's own optimizer")
        return super().configure_optimizers(weight_decay, learning_rate, betas, device_type)
"""
PEER_TRAIN = """
import os, sys, torch
from model import GPT, GPTConfig
exec(open("configurator.py").read())
torch.manual_seed(1337)
assert os.path.exists("data/shakespeare_char/train.bin") and device == "cpu"
args = dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=block_size, vocab_size=30,
            bias=False, dropout=0.0)
os.makedirs(out_dir)
torch.save({"model": GPT(GPTConfig(**args)).state_dict(), "model_args": args, "config": {},
            "iter_num": max_iters, "best_val_loss": torch.tensor(1.0)}, out_dir + "/ckpt.pt")
"""
PEER_CONFIGURATOR = """
for arg in sys.argv[1:]:
    if arg.startswith("--"):
        key, value = arg[2:].split("=")
        globals()[key] = int(value) if value.isdigit() else value
    else:
        assert os.path.exists(arg)
"""


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peer")
    (folder / "model.py").write_text(PEER_MODEL)
    (folder / "train.py").write_text(PEER_TRAIN)
    (folder / "configurator.py").write_text(PEER_CONFIGURATOR)
    (folder / "config").mkdir()
    (folder / "config" / "train_shakespeare_char.py").write_text("")
    return folder


def gpu_sh(*stages, cwd, **env):
    env = {"TOY": "1", "OUT": "results", "PYTHON": sys.executable, **env}
    return run_command(["bash", str(ROOT / "benchmarks" / "gpu.sh"), *stages], cwd, env)


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@needs_bash
def test_gpu_sh_measures_throughput_and_goes_on_where_it_was_cut(tmp_path, peer):
    first = gpu_sh("throughput", cwd=tmp_path, PEER=str(peer))
    assert first.rc == 0, first
    out = tmp_path / "results"
    results = json.loads((out / "throughput.json").read_text())
    rows = results["rows"]
    assert rows[0]["key"]["size"] == "toy" and rows[0]["key"]["dtype"] == "float32"
    for row in rows:
        for part in (row["ours"], row["peer"]):
            assert part["tokens_per_s"]["n"] == len(part["seconds"]) == 2
            assert part["mfu"] is None and part["peak_memory_bytes"] is None
        medians = [row[name]["tokens_per_s"]["median"] for name in ("ours", "peer")]
        assert row["ratio"]["median"] == pytest.approx(medians[0] / medians[1])
        assert row["peer"]["dtype"] == "float32"  # it has no autocast on a CPU
    assert first.stdout.rstrip().endswith((out / "throughput.txt").read_text().rstrip())
    assert "the peer's own optimizer" not in first.stdout  # nor what else it prints

    done = gpu_sh("throughput", cwd=tmp_path, PEER=str(peer))
    assert done.rc == 0 and "throughput: done before" in done.stdout, done

    # cut off after the first row: only the others are measured
    (out / "throughput.json").unlink()
    (out / "throughput.part.json").write_text(json.dumps({**results, "rows": rows[:1]}))
    second = gpu_sh("throughput", cwd=tmp_path, PEER=str(peer))
    assert second.rc == 0 and second.stdout.count("measured before") == 1, second
    again = json.loads((out / "throughput.json").read_text())["rows"]
    assert again[0] == rows[0] and len(again) == len(rows)
    assert not (out / "throughput.part.json").exists()


@needs_bash
@pytest.mark.slow
def test_gpu_sh_runs_the_checks(tmp_path):
    done = gpu_sh("tests", cwd=tmp_path)
    assert done.rc == 0, done
    checks = json.loads((tmp_path / "results" / "tests.json").read_text())
    assert (checks["passed"], checks["failed"], checks["skipped"]) == (4, 0, 2), checks
    assert "4 checks passed" in done.stdout.rstrip().splitlines()[-1]
    assert "done before" in gpu_sh("tests", cwd=tmp_path).stdout


@needs_bash
def test_gpu_sh_says_what_is_wrong(tmp_path):
    assert_one_line_error(gpu_sh("nosuch", cwd=tmp_path), "unknown stage nosuch")
    assert_one_line_error(gpu_sh(cwd=tmp_path), "no stage given")
    assert_one_line_error(gpu_sh("tests", cwd=tmp_path, PYTHON="no-python"), "no-python")
    if not torch.cuda.is_available():
        assert_one_line_error(gpu_sh("tests", cwd=tmp_path, TOY=""), "TOY=1")


@pytest.mark.slow
def test_recipe_trains_both_and_evaluates_both(workplace, tmp_path, peer):
    options = [f"--peer={peer}", f"--data={workplace / 'data' / 'nanogpt'}", "--seeds=1"]
    done = script("recipe.py", *options, "--max_iters=2", "--out=runs", cwd=tmp_path)
    assert done.rc == 0, done
    found = json.loads((tmp_path / "runs" / "recipe.json").read_text())
    ours, theirs = found["runs"]
    assert (ours["project"], theirs["project"]) == ("ours", "peer")
    for run in (ours, theirs):
        assert run["seconds"] > 0 and run["seed"] == 1337 and run["step"] == 2
        assert run["tokens"] > 1000 and 2 < run["loss"] < 5
    assert found["ours"]["loss"]["mean"] == ours["loss"] != theirs["loss"]
    assert found["time_ratio"] == pytest.approx(ours["seconds"] / theirs["seconds"])
    assert f"{found['time_ratio']:.3f} of the time" in done.stdout


def test_the_runner_shifts_the_peers_seed(tmp_path):
    text = (ROOT / "benchmarks" / "recipe.py").read_text()
    runner = re.search(r'PEER_RUNNER = """(.*?)"""', text, re.DOTALL)[1]
    program = (
        "import sys, torch\ntorch.manual_seed(1337)\nprint(torch.initial_seed(), sys.argv[1:])"
    )
    (tmp_path / "train.py").write_text(program)
    done = run_command([sys.executable, "-c", runner, "2", "a.py", "--b=3"], tmp_path)
    assert done.stdout == "1339 ['a.py', '--b=3']\n", done


def test_a_wrong_peer_is_one_line(tmp_path):
    done = script("throughput.py", "--peer=nowhere", "--device=cpu", cwd=tmp_path)
    assert_one_line_error(done, "peer=nowhere has no model.py")


# ---- benchmarks/windows.py ----


def test_windows_are_measured(tmp_path):
    options = ["--lengths=32,64", "--window=8", "--n_layer=2", "--n_head=2", "--n_embd=16"]
    options += ["--repeats=2", "--device=cpu", "--dtype=float32", "--json=w.json"]
    done = script("windows.py", *options, cwd=tmp_path)
    assert done.rc == 0 and not done.stderr, done
    rows = json.loads((tmp_path / "w.json").read_text())["rows"]
    assert [(r["T"], r["pattern"]) for r in rows] == [
        (n, p) for n in (32, 64) for p in ("D", "DL", "L")
    ]
    assert [r["scores"] for r in rows] == [32, 24, 16, 64, 40, 16]
    assert all(r["spread"]["n"] == 2 and r["kept"] > 0 for r in rows)


def test_windows_mistakes_are_one_line(tmp_path):
    assert_one_line_error(script("windows.py", "--patterns=X", cwd=tmp_path), "letters D and L")
    assert_one_line_error(script("windows.py", "--lengths=long", cwd=tmp_path), "'long'")
