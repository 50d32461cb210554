"""The byte models through the programs: train, resume, two processes, sample, eval, bench; and
data/bytes, which feeds them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.programs import (
    ROOT,
    TINY,
    assert_one_line_error,
    differences,
    load,
    losses,
    metrics,
    run_as_several,
    run_command,
    run_program,
    train,
    train_all,
)

LOCAL = ["--local_embd=16", "--local_head=2"]
ARMS = {
    "megabyte": [
        *LOCAL,
        "--local_layer=1",
        "--model=megabyte",
        "--patch_size=4",
        "--cross_patch=2",
    ],
    "spacebyte": [
        *LOCAL,
        "--local_layer=2",
        "--model=spacebyte",
        "--local_window=8",
        "--position=rope",
    ],
}
arms = pytest.mark.parametrize("name", ARMS)


@pytest.fixture(scope="module")
def runs(workplace, tmp_path_factory) -> dict[str, Path]:
    """A finished run of 20 steps of each model, with dropout."""
    folder = tmp_path_factory.mktemp("runs")
    outs = {name: folder / name for name in ARMS}
    train_all(workplace, {outs[name]: options for name, options in ARMS.items()})
    return outs


@arms
def test_training_lowers_the_loss(name, runs):
    values = [row["val_loss"] for row in metrics(runs[name]) if "val_loss" in row]
    assert values[-1] < values[0] - 0.3
    state = load(runs[name] / "ckpt.pt")
    assert state["model_name"] == name and state["model_config"]["local_embd"] == 16


@arms
def test_a_resumed_run_equals_an_uninterrupted_one(name, runs, workplace, tmp_path):
    out = tmp_path / "run"
    assert train(workplace, out, *ARMS[name], "--max_iters=10").rc == 0
    result = train(workplace, out, *ARMS[name], "--init_from=resume")
    assert result.rc == 0, result
    assert losses(out) == losses(runs[name])
    one, two = load(runs[name] / "last.pt"), load(out / "last.pt")
    assert not differences(one["model"], two["model"])
    assert not differences(one["optimizer"]["state"], two["optimizer"]["state"])


@arms
def test_two_processes_equal_one(name, workplace, tmp_path):
    options = [*ARMS[name], "--dropout=0.0", "--gradient_accumulation_steps=4", "--eval_iters=3"]
    options += ["--max_iters=6", "--eval_interval=6"]
    assert train(workplace, tmp_path / "one", *options).rc == 0
    words = [*TINY, "--dataset=meta", f"--out_dir={tmp_path / 'two'}", *options]
    result = run_as_several(words, workplace)
    assert result.rc == 0, result
    for (i, x), (_, y) in zip(losses(tmp_path / "one"), losses(tmp_path / "two")):
        assert x == pytest.approx(y, abs=1e-5), f"step {i}"


@arms
def test_samples_are_the_same_with_and_without_caches(name, runs, workplace):
    options = [f"--out_dir={runs[name]}", "--num_samples=2", "--max_new_tokens=40", "--start=the "]
    options += ["--device=cpu", "--on_full=refill"]
    texts = []
    for cached in (True, False):
        result = run_program([*options, f"--kv_cache={cached}"], workplace, program="sample.py")
        assert result.rc == 0, result
        texts.append(result.stdout)
    assert texts[0] == texts[1] and texts[0].startswith("the ") and texts[0].count("-" * 15) == 2


@arms
def test_eval_reports_bits_per_byte(name, runs, workplace, tmp_path):
    rows = {}
    for strided in (False, True):
        target = tmp_path / f"{strided}.json"
        options = [f"--out_dir={runs[name]}", f"--json={target}", f"--strided={strided}"]
        result = run_program([*options, "--device=cpu"], workplace, program="eval.py")
        if strided and name != "megabyte":
            assert_one_line_error(result, "spacebyte", "only megabyte has --strided")
            return
        assert result.rc == 0, result
        (row,) = json.loads(target.read_text())["losses"]
        assert row["bits_per_byte"] == pytest.approx(row["loss"] / np.log(2))
        rows[strided] = row
    assert rows[True]["tokens"] == rows[False]["tokens"]
    assert rows[True]["loss"] != rows[False]["loss"]


@arms
def test_bench_takes_steps(name, workplace, tmp_path):
    options = [*ARMS[name], "--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=16"]
    options += ["--steps=2", "--warmup=1", "--dataset=meta", "--device=cpu", "--json=-"]
    result = run_program(options, workplace, program="bench.py")
    assert result.rc == 0, result
    results = json.loads(result.stdout.splitlines()[-1])
    assert results["flops_per_token"] > 0 and results["tokens_per_s"] > 0


@pytest.mark.parametrize(
    "options, words",
    [
        (["--patch_size=5"], ["n_embd=32", "patch_size=5"]),
        (["--cross_patch=9"], ["cross_patch=9"]),
        (["--block_size=100000"], ["block_size", "too few"]),
        (["--value_embeddings=True"], ["value_embeddings"]),
        (["--bigram_embeddings=1"], ["bigram_embeddings"]),
        (["--further_weight=0.5"], ["further_weight", "model=megabyte"]),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_one_line(options, words, workplace, tmp_path):
    result = train(workplace, tmp_path / "run", *ARMS["megabyte"], *options)
    assert_one_line_error(result, *words)


@arms
def test_muon_trains_them_too(name, workplace, tmp_path):
    options = ["--optimizer=muon", "--learning_rate=0.02", "--init=fan_in", "--norm=rmsnorm"]
    out = tmp_path / "run"
    result = train(workplace, out, *ARMS[name], *options, "--max_iters=10")
    assert result.rc == 0, result
    assert losses(out)[-1][1] < losses(out)[0][1] - 0.3
    again = train(workplace, out, *ARMS[name], *options, "--init_from=resume", "--max_iters=12")
    assert again.rc == 0 and len(losses(out)) == 12, again


# ---- data/bytes ----


def prepare(tmp_path: Path, *options: str):
    script = ROOT / "data" / "bytes" / "prepare.py"
    return run_command(
        [sys.executable, str(script), f"--out={tmp_path / 'out'}", *options], tmp_path
    )


def read(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    meta = json.loads((folder / "meta.json").read_text())
    return meta, {s: np.fromfile(folder / f"{s}.bin", "<u2") for s in ("train", "val")}


def test_a_folder_of_any_files(tmp_path):
    """Every file as it is, whole, followed by 256; empty and hidden ones are left out."""
    rng = np.random.default_rng(0)
    contents = {f"sub{i % 3}/f{i}.dat": rng.bytes(20 + i) for i in range(30)}
    for name, data in contents.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "in" / "empty").touch()
    (tmp_path / "in" / ".hidden").write_bytes(b"no")
    result = prepare(tmp_path, "--input=in", "--val_fraction=0.2")
    assert result.rc == 0 and "empty ones left out: 1" in result.stdout, result
    meta, splits = read(tmp_path / "out")
    assert meta["vocab_size"] == 257 and meta["tokenizer"] == {"type": "byte"}
    documents = []
    for name, ids in splits.items():
        files = np.split(ids, np.flatnonzero(ids == 256) + 1)[:-1]
        documents += [bytes(f[:-1].astype(np.uint8)) for f in files]
        info = meta["splits"][name]
        assert info["documents"] == len(files) and info["bytes"] == len(ids) - len(files)
    assert sorted(documents) == sorted(contents.values())
    assert 1 <= meta["splits"]["val"]["documents"] < 15
    again = prepare(tmp_path, "--input=in/sub0,in/sub1", "--endings=dat")
    assert again.rc == 0 and "20 files" in again.stdout


def test_one_file_is_cut(tmp_path):
    data = bytes(range(256)) * 9000  # over several pieces
    (tmp_path / "one.bin").write_bytes(data)
    result = prepare(tmp_path, "--input=one.bin", "--val_fraction=0.1")
    assert result.rc == 0, result
    _, splits = read(tmp_path / "out")
    cut = round(len(data) * 0.9)
    assert bytes(splits["train"][:-1].astype(np.uint8)) == data[:cut]
    assert bytes(splits["val"][:-1].astype(np.uint8)) == data[cut:]


@pytest.mark.parametrize(
    "options, words",
    [
        ([], ["no input", "--input="]),
        (["--input=nowhere"], ["nowhere"]),
        (["--input=empty.txt"], ["empty.txt is empty"]),
        (["--input=short.txt"], ["1 byte"]),
        (["--input=.", "--endings=.wav"], [".wav"]),
        (["--input=short.txt", "--val_fraction=1"], ["val_fraction"]),
    ],
    ids=str,
)
def test_mistakes_are_one_line(options, words, tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_bytes(b"a")
    assert_one_line_error(prepare(tmp_path, *options), *words)
    assert not (tmp_path / "out").exists()
