"""train.py as a program: resuming, saving, stopping, and what a run leaves behind."""

import contextlib
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from helpers.programs import (
    ROOT,
    TINY,
    assert_one_line_error,
    differences,
    environment,
    load,
    losses,
    metrics,
    snapshot,
    train,
    train_all,
)
from helpers.tiny_data import CHARS, char_ids, write_meta

from bonsai.runs.metrics import read_metrics

# ---- exact resume ----


def evaluations(out: Path, every: int) -> list[tuple]:
    """Evaluations at multiples of `every`; a run that stopped in between has one more."""
    rows = [r for r in metrics(out) if "val_loss" in r and r["iter"] % every == 0]
    return [(r["iter"], r["train_loss"], r["val_loss"], r["val_bpb"]) for r in rows]


@pytest.fixture(scope="module")
def whole_runs(workplace, tmp_path_factory) -> dict[str, Path]:
    """Uninterrupted runs of 20 steps, one per batch order: what resumed ones are compared with."""
    folder = tmp_path_factory.mktemp("whole")
    options = ["--eval_interval=7", "--save_interval=5", "--keep_last=2", "--keep_best=True"]
    orders = ("random", "epoch")
    runs = {folder / order: [f"--batch_order={order}", *options] for order in orders}
    for out, result in train_all(workplace, runs).items():
        (out / "stdout").write_text(result.stdout)
    return {order: folder / order for order in orders}


def assert_same_run(a: Path, b: Path, every: int) -> None:
    """To the last bit: every logged loss, the evaluations, the weights, the optimizer's state."""
    assert losses(a) == losses(b)
    assert evaluations(a, every) == evaluations(b, every)
    one, two = load(a / "last.pt"), load(b / "last.pt")
    for key in ("model", "optimizer", "iter_num", "model_args", "tokenizer"):
        assert differences(one[key], two[key], key) == []


@pytest.mark.parametrize("order", ["random", "epoch"])
def test_10_steps_and_10_more_are_20_steps(whole_runs, workplace, tmp_path, order):
    options = [f"--batch_order={order}", "--eval_interval=7"]
    first = train(workplace, tmp_path / "run", *options, "--max_iters=10")
    assert first.rc == 0, first
    # the steps before the resume are its own, so that what is compared was written by both
    assert losses(tmp_path / "run") == losses(whole_runs[order])[:10]
    second = train(workplace, tmp_path / "run", *options, "--init_from=resume")
    assert second.rc == 0, second
    assert re.search(r"weights from .*\.pt, step 10\b", second.stdout), second
    assert_same_run(whole_runs[order], tmp_path / "run", every=7)
    rows = [r["val_loss"] for r in metrics(tmp_path / "run") if "val_loss" in r]
    assert load(tmp_path / "run" / "ckpt.pt")["progress"]["best_val_loss"] == min(rows)


def start(cwd: Path, out: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "--dataset=meta", f"--out_dir={out}"]
    return subprocess.Popen(
        [*command, *options],
        cwd=cwd,
        env=environment(PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen, text: str) -> str:
    """Read the process's stdout up to a line that has `text` in it."""
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} never came:\n{seen}\n{process.stderr.read()}")


@pytest.mark.slow
def test_a_compiled_model_trains_and_saves_plain_names(whole_runs, workplace, tmp_path):
    result = train(workplace, tmp_path, "--eval_interval=7", "--compile=True", "--dropout=0.0")
    assert result.rc == 0, result
    names = [load(out / "last.pt")["model"].keys() for out in (tmp_path, whole_runs["random"])]
    assert list(names[0]) == list(names[1])
    assert losses(tmp_path)[0][1] == pytest.approx(losses(whole_runs["random"])[0][1], abs=0.1)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_the_resumed_run_is_exact(whole_runs, workplace, tmp_path, name):
    options = ["--eval_interval=7"]
    # a hundred thousand steps, of which the schedule knows nothing: it is stopped on the way
    process = start(workplace, tmp_path / "run", *options, "--max_iters=100000")
    wait_for(process, "iter 3:")
    process.send_signal(getattr(signal, name))
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == {"SIGINT": 130, "SIGTERM": 143}[name]
    assert "Traceback" not in stderr
    assert f"{name}: finishing this step, then saving" in stderr
    assert "--init_from=resume" in stdout.splitlines()[-1]
    stopped = load(tmp_path / "run" / "last.pt")["iter_num"]
    assert f"stopped at step {stopped}" in stdout
    if stopped >= 20:
        pytest.skip("the machine was too busy: the run was past its end when the signal came")
    result = train(workplace, tmp_path / "run", *options, "--init_from=resume")
    assert result.rc == 0, result
    assert_same_run(whole_runs["random"], tmp_path / "run", every=7)


def kill_and_resume(workplace: Path, out: Path, reference: Path, kills: int, seed: int) -> None:
    """Kill a run `kills` times, each time resuming it; then compare it with the uninterrupted one.

    Each life must leave a checkpoint that loads, and the run must get on from life to life.
    """
    rng = np.random.default_rng(seed)
    options = ["--eval_interval=7", "--save_interval=1", "--init_from=auto"]
    steps = load(reference / "last.pt")["iter_num"]
    options += [f"--max_iters={steps}"]
    finished = False
    for _ in range(kills):
        process = start(workplace, out, *options)
        try:
            wait_for(process, "iter ")
            time.sleep(rng.uniform(0, 0.12))  # into a step, or into a save
            process.send_signal(signal.SIGKILL)
            stderr = process.communicate(timeout=60)[1]
        except AssertionError:  # nothing was left to do
            stderr, finished = process.communicate(timeout=60)[1], True
        finally:
            process.kill()
        assert "Traceback" not in stderr and "error" not in stderr, stderr
        saved = [load(p)["iter_num"] for p in (out / "ckpt.pt", out / "last.pt") if p.exists()]
        logged = [row["iter"] + 1 for row in read_metrics(out) if "loss" in row]
        assert max(saved, default=0) >= max(logged) - 1  # at most one step is lost
        if finished:
            break
    result = train(workplace, out, *options)
    assert result.rc == 0, result
    assert_same_run(reference, out, every=7)
    assert not list(out.glob("*.tmp")) + list(out.glob("*.new")) + list(out.glob("*.keep"))


def test_kill_9_three_times(whole_runs, workplace, tmp_path):
    kill_and_resume(workplace, tmp_path / "run", whole_runs["random"], kills=3, seed=0)


@pytest.mark.slow
def test_kill_9_at_25_moments(workplace, tmp_path):
    reference = tmp_path / "reference"
    result = train(workplace, reference, "--eval_interval=7", "--max_iters=400")
    assert result.rc == 0, result
    kill_and_resume(workplace, tmp_path / "run", reference, kills=25, seed=1)


# ---- what a run leaves behind and says ----


def test_the_files_of_a_run(whole_runs):
    out = whole_runs["random"]
    assert (out / "loss.png").read_bytes()[:4] == b"\x89PNG"
    config = json.loads((out / "config.json").read_text())
    assert (config["n_layer"], config["eval_interval"], config["norm"]) == (2, 7, "layernorm")
    log = (out / "log.txt").read_text().splitlines()
    assert log[0].startswith("command: python ") and "--eval_interval=7" in log[0]
    assert log[1].startswith("commit: ") and torch.__version__ in log[1]
    assert log[2].startswith("hardware: ")
    rows = metrics(out)
    assert [r["iter"] for r in rows if "loss" in r] == list(range(20))  # max_iters updates exactly
    assert [r["iter"] for r in rows if "val_loss" in r] == [0, 7, 14, 20]
    step = next(r for r in rows if "loss" in r)
    assert {"lr", "grad_norm", "ms", "tokens_per_s"} <= set(step)
    assert all(math.isfinite(v) for v in step.values())
    assert not list(out.glob("*.tmp"))


def test_checkpoints_of_a_run(whole_runs):
    out = whole_runs["random"]
    # saves at 5, 10, 15 and 20, of which two stay
    assert [p.name for p in sorted(out.glob("step_*.pt"))] == ["step_0000015.pt", "step_0000020.pt"]
    last, ckpt, best = (load(out / name) for name in ("last.pt", "ckpt.pt", "best.pt"))
    assert last["iter_num"] == ckpt["iter_num"] == 20
    assert load(out / "last.prev.pt")["iter_num"] == 15
    assert load(out / "ckpt.prev.pt")["iter_num"] == 14
    evals = {r["iter"]: r["val_loss"] for r in metrics(out) if "val_loss" in r}
    assert best["iter_num"] == min((i for i in evals if i), key=evals.get)
    assert float(last["best_val_loss"]) == pytest.approx(min(evals.values()), rel=1e-6)
    steps = [int(s["step"]) for s in last["optimizer"]["state"].values()]
    assert set(steps) == {20}
    assert last["tokenizer"] == {"type": "char", "chars": list(CHARS)}
    assert last["config"]["eval_interval"] == 7
    assert {"torch", "python", "bonsai", "code"} == set(last["versions"])


def test_console_lines_are_those_of_nanogpt(whole_runs):
    out = whole_runs["random"]
    lines = (out / "stdout").read_text().splitlines()

    def find(pattern: str) -> list[str]:
        return [line for line in lines if re.fullmatch(pattern, line)]

    assert find(r"tokens per iteration will be: 128")
    assert find(r"found vocab_size = 30 \(inside data/meta/meta\.json\)")
    assert find(r"number of parameters: 0\.03M")
    number = r"\d+\.\d{4}"
    assert len(find(rf"step \d+: train loss {number}, val loss {number}.*")) == 4
    assert len(find(rf"iter \d+: loss {number}, time \d+\.\d\dms, mfu (n/a|-?\d+\.\d\d%)")) == 20
    assert len(find(rf"saving checkpoint to {re.escape(str(out))}")) == 3
    assert len(find(r"settings: .*n_layer=2.*")) == 1
    # and what nanoGPT does not say
    assert find(r"device: cpu, dtype float32, not compiled")
    assert find(r"memory: about \d+\.\d\d GiB needed \(.*\).*")


def test_the_loss_falls_and_bits_per_byte_is_the_loss_in_bits(whole_runs):
    evals = [r for r in metrics(whole_runs["random"]) if "val_loss" in r]
    assert evals[0]["val_loss"] == pytest.approx(math.log(len(CHARS)), abs=0.2)
    assert evals[-1]["val_loss"] < evals[0]["val_loss"] - 0.1
    for row in evals:  # one byte per token
        assert row["val_bpb"] == pytest.approx(row["val_loss"] / math.log(2))


def test_the_logged_loss_is_that_of_its_step(whole_runs, workplace, tmp_path):
    """log_interval=5 logs every fifth of the same losses, and trains the same."""
    result = train(workplace, tmp_path, "--eval_interval=7", "--log_interval=5")
    assert result.rc == 0, result
    each = dict(losses(whole_runs["random"]))
    logged = dict(losses(tmp_path))
    assert sorted(logged) == [step for step in sorted(each) if step % 5 == 0]
    for step, loss in logged.items():
        assert loss == each[step]
    same = [load(out / "last.pt")["model"] for out in (whole_runs["random"], tmp_path)]
    assert differences(*same) == []


def test_activation_checkpointing_trains_the_same(whole_runs, workplace, tmp_path):
    result = train(
        workplace, tmp_path, "--eval_interval=7", "--activation_checkpointing=True", "--max_iters=6"
    )
    assert result.rc == 0, result
    for (i, a), (j, b) in zip(losses(tmp_path), losses(whole_runs["random"])):
        assert i == j and a == pytest.approx(b, abs=1e-5)


# ---- which checkpoints are written ----


def test_without_always_save_the_best_model_stays(workplace, tmp_path):
    """The rate soars after a few steps and spoils the model: ckpt.pt keeps the best one."""
    out = tmp_path / "run"
    options = ["--always_save_checkpoint=False", "--keep_best=True", "--sample_interval=6"]
    options += ["--eval_interval=2", "--eval_iters=8", "--max_iters=12", "--grad_clip=0.0"]
    options += ["--learning_rate=3e-3", "--min_lr=1.0", "--lr_decay_iters=4"]
    result = train(workplace, out, *options)
    assert result.rc == 0, result
    evals = {r["iter"]: r["val_loss"] for r in metrics(out) if "val_loss" in r}
    best = min(evals, key=evals.get)
    assert 0 < best < 12, f"the rate did not spoil the model: {evals}"
    assert load(out / "ckpt.pt")["iter_num"] == load(out / "best.pt")["iter_num"] == best
    last = load(out / "last.pt")
    assert last["iter_num"] == 12
    assert float(last["best_val_loss"]) == pytest.approx(evals[best], rel=1e-6)
    # sample_interval: one sample at step 6, ended by fifteen dashes
    assert result.stdout.count("\n" + "-" * 15) == 1


def test_patience_stops_and_says_so(workplace, tmp_path):
    """It is counted across a resume."""
    options = ["--learning_rate=0.0", "--min_lr=0.0", "--eval_interval=1", "--patience=3"]
    first = train(workplace, tmp_path, *options, "--max_iters=2")
    assert first.rc == 0 and "stopping early" not in first.stdout, first
    result = train(workplace, tmp_path, *options, "--init_from=resume")
    assert result.rc == 0, result
    assert "no improvement in 3 evaluations: stopping early" in result.stdout
    assert [r["iter"] for r in metrics(tmp_path) if "val_loss" in r] == [0, 1, 2, 3]
    assert load(tmp_path / "last.pt")["iter_num"] == 3


def test_eval_only_trains_and_writes_nothing(whole_runs, workplace, tmp_path):
    scratch = train(workplace, tmp_path / "new", "--eval_only=True")
    assert scratch.rc == 0, scratch
    assert scratch.stdout.count("\nstep 0: train loss") == 1 and "iter 0" not in scratch.stdout
    assert not list((tmp_path / "new").rglob("*.pt"))
    out = whole_runs["epoch"]
    before = snapshot(out)
    with ThreadPoolExecutor(2) as pool:
        options = ["--eval_interval=7", "--eval_only=True"]
        sources = ("resume", out)
        run = lambda source: train(workplace, out, *options, f"--init_from={source}")  # noqa: E731
        results = list(pool.map(run, sources))
    for result in results:
        assert result.rc == 0, result
        assert "iter " not in result.stdout.replace("per iter", "")
        last = [r for r in metrics(out) if "val_loss" in r][-1]
        assert f"val loss {last['val_loss']:.4f}" in result.stdout
    after = snapshot(out)
    changed = {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
    assert changed <= {out / "log.txt"}, "an evaluation changed the run it looked at"


def test_a_run_without_a_finite_gradient_stops(workplace, tmp_path):
    """A step of an absurd rate makes every later loss NaN: none of those may touch the weights."""
    options = ["--learning_rate=1e30", "--min_lr=1e30", "--decay_lr=False", "--max_skipped=3"]
    result = train(workplace, tmp_path, *options, "--eval_interval=100")
    assert result.rc == 1, result
    assert "Traceback" not in result.stderr
    assert "3 steps in a row had no finite gradient: stopping" in result.stdout
    state = load(tmp_path / "diverged.pt")  # it takes no sound one's place
    assert all(torch.isfinite(w).all() for w in state["model"].values())
    for moments in state["optimizer"]["state"].values():
        assert all(torch.isfinite(v).all() for v in moments.values())
    assert [r.get("skipped") for r in metrics(tmp_path) if "loss" in r][-3:] == [1, 2, 3]


def test_a_new_run_sets_the_old_one_aside(workplace, tmp_path):
    assert train(workplace, tmp_path, "--max_iters=2").rc == 0
    old = (tmp_path / "last.pt").read_bytes()
    # also one that begins with the weights of the old one
    finetune = f"--init_from={tmp_path / 'last.pt'}"
    result = train(workplace, tmp_path, "--max_iters=1", "--seed=2", finetune)
    assert result.rc == 0, result
    assert (tmp_path / "earlier" / "1" / "last.pt").read_bytes() == old
    assert load(tmp_path / "last.pt")["iter_num"] == 1
    assert len(losses(tmp_path)) == 1
    done = train(workplace, tmp_path, "--max_iters=1", "--init_from=auto")
    assert done.rc == 0 and "nothing left to do" in done.stdout, done


# ---- where the weights come from ----


def test_finetune_from_a_file_and_from_a_folder(whole_runs, workplace, tmp_path):
    source = whole_runs["random"]
    options = ["--max_iters=1", "--eval_interval=7"]
    names = (source, source / "best.pt")
    runs = {tmp_path / name.name: [f"--init_from={name}", *options] for name in names}
    train_all(workplace, runs)
    for out in runs:
        state = load(out / "last.pt")
        assert state["iter_num"] == 1 and state["model_args"]["n_layer"] == 2
        assert {int(s["step"]) for s in state["optimizer"]["state"].values()} == {1}
    start = metrics(tmp_path / source.name)[0]
    end = [r for r in metrics(source) if "val_loss" in r][-1]
    assert start["val_loss"] == end["val_loss"]  # of ckpt.pt, the last one here


def test_resume_with_a_shorter_context(whole_runs, workplace, tmp_path):
    """The position embedding is cropped, and so are its moments."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "ckpt.pt").write_bytes((whole_runs["random"] / "ckpt.pt").read_bytes())
    result = train(
        workplace, out, "--init_from=resume", "--block_size=8", "--max_iters=22", "--dropout=0.0"
    )
    assert result.rc == 0, result
    state = load(out / "last.pt")
    assert state["model_args"]["block_size"] == 8 and state["model_args"]["dropout"] == 0.0
    assert state["model"]["transformer.wpe.weight"].shape == (8, 32)
    shapes = {tuple(s["exp_avg"].shape) for s in state["optimizer"]["state"].values()}
    assert (8, 32) in shapes and (16, 32) not in shapes
    assert [i for i, _ in losses(out)] == [20, 21]


def test_resume_cannot_change_the_shape_of_the_model(whole_runs, workplace, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "last.pt").write_bytes((whole_runs["random"] / "last.pt").read_bytes())
    result = train(workplace, out, "--init_from=resume", "--n_layer=7", "--max_iters=21")
    assert_one_line_error(result, "has n_layer=2, so n_layer=7 cannot be", "leave it out")
    assert [p.name for p in out.iterdir() if p.suffix == ".pt"] == ["last.pt"]


# ---- data ----


def test_every_kind_of_data_set_trains(workplace, tmp_path):
    """nanoGPT's folder, one without any meta, llm.c's files, shards, rows with masks, a mixture."""
    data = ("meta", "nanogpt", "llmc", "shards", "meta:0.7,more:0.3")
    options = {name: [f"--dataset={name}", "--max_iters=2"] for name in data}
    options["llmc"].append("--vocab_size=30")  # it does not say
    results = train_all(workplace, {tmp_path / name: o for name, o in options.items()})
    said = results[tmp_path / "nanogpt"].stdout
    assert "found vocab_size = 30 (inside data/nanogpt/meta.pkl)" in said
    # the same tokens, however they are stored
    meta, nanogpt, llmc, shards, mixture = (losses(tmp_path / name) for name in data)
    assert meta == nanogpt == llmc == shards != mixture


def test_rows_with_masks_train(workplace, tmp_path):
    """Only the unmasked half of each row counts. In bfloat16, which every CPU can emulate."""
    options = ["--block_size=7", "--max_iters=60", "--lr_decay_iters=60", "--eval_interval=60"]
    options += ["--eval_iters=0", "--dtype=bfloat16"]
    result = train(workplace, tmp_path, *options, dataset="rows")
    assert result.rc == 0 and "dtype bfloat16" in result.stdout, result
    assert {w.dtype for w in load(tmp_path / "last.pt")["model"].values()} == {torch.float32}
    evals = [r for r in metrics(tmp_path) if "val_loss" in r]
    assert evals[-1]["val_loss"] < evals[0]["val_loss"]


def test_a_masked_token_changes_no_loss(tmp_path):
    """Two data sets that differ in targets which the mask leaves out train to the same weights.

    Row length 8, context 7: the last token of a row is never an input, and here it is masked.
    """
    ids = np.resize(char_ids("abcdefgh"), 8 * 60)
    mask = (np.arange(len(ids)) % 8 != 7).astype(np.uint8)
    for name in ("one", "two"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        here = ids.copy()
        if name == "two":
            here[7::8] = np.random.default_rng(0).integers(0, 30, 60)
        for split in ("train", "val"):
            (folder / f"{split}.bin").write_bytes(here.tobytes())
            (folder / f"{split}.mask.bin").write_bytes(mask.tobytes())
        masks = {s: {"mask_files": [f"{s}.mask.bin"]} for s in ("train", "val")}
        write_meta(folder, {"train": here, "val": here}, masks, row_length=8)
    options = ["--block_size=7", "--max_iters=3"]
    train_all(tmp_path, {tmp_path / n: [*options, f"--dataset={n}"] for n in ("one", "two")})
    weights = [load(tmp_path / name / "last.pt")["model"] for name in ("one", "two")]
    assert differences(*weights) == []


def test_a_data_set_without_meta_has_gpt2s_vocabulary(workplace, tmp_path):
    result = train(workplace, tmp_path, "--max_iters=1", "--n_embd=8", dataset="bare")
    assert result.rc == 0, result
    assert "defaulting to vocab_size of GPT-2" in result.stdout
    assert load(tmp_path / "last.pt")["model_args"]["vocab_size"] == 50304


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss and sparse files as on Linux")
def test_a_large_file_starts_fast_and_stays_out_of_memory(tmp_path):
    """4 GB of tokens (a sparse file of zeros): resident memory and the time to the first step."""
    folder = tmp_path / "data" / "big"
    folder.mkdir(parents=True)
    for name, size in (("train", 4 << 30), ("val", 1 << 20)):
        with open(folder / f"{name}.bin", "wb") as f:
            f.truncate(size)
    options = [*TINY, "--dataset=big", "--out_dir=out", "--vocab_size=64", "--block_size=256"]
    options += ["--max_iters=60", "--batch_size=12", "--gradient_accumulation_steps=1"]
    t0 = time.monotonic()
    with open(tmp_path / "stdout", "w") as stdout:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *options],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
        )
        while "iter 0:" not in (tmp_path / "stdout").read_text() and process.poll() is None:
            time.sleep(0.05)
        first_step, peak = time.monotonic() - t0, 0
        while process.poll() is None:  # ru_maxrss would count the memory of this process, too
            with contextlib.suppress(psutil.Error):
                peak = max(peak, psutil.Process(process.pid).memory_info().rss)
            time.sleep(0.02)
    assert process.returncode == 0
    assert 10 * 2**20 < peak < 1.5 * 2**30
    assert first_step < 40  # 2 s on an idle machine; this one may have more to do


def test_runs_from_any_folder(workplace, tmp_path):
    """A data set by its path; the config file and out_dir from a folder that is not the root."""
    (tmp_path / "mine.py").write_text("import time\nmax_iters = 2\nout_dir = 'out-here'\n")
    options = ["mine.py", "--eval_interval=1"]
    data = os.path.relpath(workplace / "data" / "meta", tmp_path)
    result = train(tmp_path, "unused", *options, dataset=data)
    assert result.rc == 0, result
    assert load(tmp_path / "out-here" / "last.pt")["iter_num"] == 2
    assert not (tmp_path / "unused").exists()


# ---- wandb ----


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline_and_its_id_after_a_resume(workplace, tmp_path):
    options = ["--wandb_log=True", "--wandb_project=tests"]
    env = {"WANDB_DIR": str(tmp_path), "WANDB_MODE": "offline"}
    first = train(workplace, tmp_path / "run", *options, "--max_iters=2", env=env)
    assert first.rc == 0, first
    run_id = load(tmp_path / "run" / "last.pt")["wandb_id"]
    assert run_id and list((tmp_path / "wandb").glob(f"offline-run-*-{run_id}"))
    more = [*options, "--init_from=resume", "--max_iters=3"]
    assert train(workplace, tmp_path / "run", *more, env=env).rc == 0
    assert load(tmp_path / "run" / "last.pt")["wandb_id"] == run_id


def test_a_broken_run_folder_is_no_traceback(workplace, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    result = train(workplace, tmp_path / "file", "--max_iters=1")
    assert_one_line_error(result, "file")
