"""Against nanoGPT and transformers: the same weights, losses and logits, each other's checkpoints.

The golden files were written by nanoGPT (commit 3adf61e) and transformers (5.23). With NANOGPT set
to a checkout of nanoGPT, and with transformers installed, the same is compared live.
"""

import hashlib
import importlib.util
import json
import os
import pickle
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.programs import (
    GOLDEN,
    TINY,
    assert_one_line_error,
    load,
    losses,
    metrics,
    run_command,
    run_program,
    train,
)
from helpers.tiny_data import CHARS

from bonsai.data.meta import open_meta
from bonsai.models.loading import load_model
from bonsai.system.errors import UserError
from model import GPT, GPTConfig

NANOGPT = os.environ.get("NANOGPT")
needs_nanogpt = pytest.mark.skipif(
    not NANOGPT, reason="set NANOGPT to a checkout of nanoGPT to compare with it live"
)
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)
FILES = json.loads((GOLDEN / "nanogpt.json").read_text())


# ---- initial weights and ten steps ----


def ten_steps(make, make_config, bias: bool) -> tuple[dict, list[float]]:
    """The initial weights of a model, and its losses in ten steps on the golden batches."""
    torch.manual_seed(FILES["seed"])
    model = make(make_config(bias=bias, **FILES["model"]))
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    o = FILES["optimizer"]
    args = (o["weight_decay"], o["learning_rate"], tuple(o["betas"]), "cpu")
    optimizer = model.configure_optimizers(*args)
    losses = []
    for batch in torch.tensor(FILES["batches"]):
        _, loss = model(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), FILES["grad_clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return weights, losses


@pytest.mark.parametrize("run", FILES["runs"])
def test_weights_and_ten_losses_equal_nanogpts(run):
    """Weights to the last bit, losses to 1e-5.

    Should a future torch draw other random numbers, the golden file must be made anew with it: the
    first of the weights below says so by more than rounding.
    """
    golden = FILES["runs"][run]
    weights, losses = ten_steps(GPT, GPTConfig, golden["bias"])
    assert set(weights) == set(golden["weights"])
    same_arithmetic = torch.__version__.split("+")[0] == FILES["torch"].split("+")[0]
    same_arithmetic &= torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    for name, expected in golden["weights"].items():
        w = weights[name]
        assert list(w.shape) == expected["shape"], name
        assert w.flatten()[:3].tolist() == pytest.approx(expected["first"], abs=1e-7), name
        digest = hashlib.sha256(w.contiguous().numpy().tobytes()).hexdigest()
        if digest != expected["sha256"]:  # other loops may round the last bit elsewhere
            assert float(w.double().sum()) == pytest.approx(expected["sum"], abs=1e-5), name
            assert not same_arithmetic, name
    assert losses == pytest.approx(golden["losses"], abs=1e-5)


@needs_nanogpt
@pytest.mark.parametrize("bias", [True, False])
def test_weights_and_ten_losses_equal_nanogpts_live(bias):
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(NANOGPT) / "model.py")
    theirs = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = theirs  # dataclasses look their module up
    spec.loader.exec_module(theirs)
    a, b = ten_steps(GPT, GPTConfig, bias), ten_steps(theirs.GPT, theirs.GPTConfig, bias)
    assert list(a[0]) == list(b[0])
    assert all(torch.equal(a[0][k], b[0][k]) for k in b[0])
    assert a[1] == pytest.approx(b[1], abs=1e-5)


@needs_nanogpt
def test_nanogpts_config_files_load_unchanged(tmp_path):
    files = sorted((Path(NANOGPT) / "config").glob("*.py"))
    assert len(files) == 7
    for path in files:
        result = run_program([path, "--help"], tmp_path)
        assert result.rc == 0, result


# ---- nanoGPT's checkpoint and data here ----

EXPECTED = json.loads((GOLDEN / "nanogpt_ckpt.json").read_text())
# as the golden checkpoint was trained
SHAPE = ["--n_embd=16", "--batch_size=4", "--gradient_accumulation_steps=2", "--eval_iters=5"]


@pytest.fixture(scope="module")
def nanogpt_place(tmp_path_factory, workplace) -> Path:
    """A folder as nanoGPT leaves it: data/nanogpt with a meta.pkl, and out/ckpt.pt."""
    place = tmp_path_factory.mktemp("nanogpt")
    shutil.copytree(workplace / "data" / "nanogpt", place / "data" / "nanogpt")
    (place / "out").mkdir()
    shutil.copy(GOLDEN / "nanogpt_ckpt.pth", place / "out" / "ckpt.pt")
    return place


def test_nanogpts_checkpoint_gives_nanogpts_logits(nanogpt_place):
    loaded = load_model("resume", str(nanogpt_place / "out"))
    ids = torch.tensor(EXPECTED["ids"])
    loaded.model.eval()
    with torch.no_grad():
        logits, loss = loaded.model(ids[:, :-1], ids[:, 1:])
    expected = torch.tensor(EXPECTED["last_logits"])
    torch.testing.assert_close(logits[:, -1], expected, atol=1e-5, rtol=0)
    assert loss.item() == pytest.approx(EXPECTED["loss"], abs=1e-5)


def test_nanogpts_run_goes_on_here(nanogpt_place, tmp_path):
    place = tmp_path / "place"
    shutil.copytree(nanogpt_place, place)
    # a compiled model's checkpoint: every name has a prefix
    state = load(place / "out" / "ckpt.pt")
    state["model"] = {f"_orig_mod.{k}": v for k, v in state["model"].items()}
    torch.save(state, place / "out" / "ckpt.pt")
    options = ["--init_from=resume", "--max_iters=30", "--lr_decay_iters=30", *SHAPE]
    result = train(place, "out", *options, dataset="nanogpt")
    assert result.rc == 0, result
    rows = metrics(place / "out")
    assert [r["iter"] for r in rows if "loss" in r] == list(range(10, 30))
    evals = [r["val_loss"] for r in rows if "val_loss" in r]
    assert abs(evals[0] - float(state["best_val_loss"])) < 0.1  # other windows, the same model
    assert evals[-1] < evals[0]
    after = load(place / "out" / "ckpt.pt")
    assert after["model_args"] == state["model_args"]
    assert {int(s["step"]) for s in after["optimizer"]["state"].values()} == {30}


def test_nanogpts_checkpoint_samples_here(nanogpt_place):
    options = ["--num_samples=2", "--max_new_tokens=40", "--device=cpu"]
    result = run_program(options, nanogpt_place, program="sample.py")
    assert result.rc == 0, result
    assert result.stdout.count("-" * 15) == 2
    text = re.sub(r"^settings: .*\n", "", result.stdout).replace("-" * 15, "")
    assert len(text) > 60 and set(text) <= set(CHARS)  # its meta.pkl decodes them


def test_nanogpts_checkpoint_evaluates_here(nanogpt_place):
    options = ["--out_dir=out", "--dataset=nanogpt", "--device=cpu", "--json=-"]
    result = run_program(options, nanogpt_place, program="eval.py")
    assert result.rc == 0, result
    text = json.dumps(json.loads(result.stdout.splitlines()[-1]))
    assert "bits_per_byte" in text and "loss" in text


# ---- our checkpoint for nanoGPT ----


@pytest.fixture(scope="module")
def ours(nanogpt_place, tmp_path_factory) -> Path:
    """A run of ours on nanoGPT's data folder, with a classic model."""
    out = tmp_path_factory.mktemp("ours") / "out"
    result = train(nanogpt_place, out, *SHAPE, "--max_iters=10", dataset="nanogpt")
    assert result.rc == 0, result
    return out


def test_our_checkpoint_has_nanogpts_layout(ours):
    """What nanoGPT reads of it: names, shapes, dtypes, the optimizer's groups."""
    golden, state = load(GOLDEN / "nanogpt_ckpt.pth"), load(ours / "ckpt.pt")
    assert set(golden) <= set(state)
    assert list(state["model_args"]) == list(golden["model_args"])  # exactly nanoGPT's seven keys
    assert list(state["model"]) == list(golden["model"])
    for name, w in golden["model"].items():
        assert (state["model"][name].shape, state["model"][name].dtype) == (w.shape, w.dtype), name
    assert state["best_val_loss"].shape == () and isinstance(state["iter_num"], int)
    a, b = golden["optimizer"], state["optimizer"]
    for one, two in zip(a["param_groups"], b["param_groups"], strict=True):
        assert one["params"] == two["params"] and one["weight_decay"] == two["weight_decay"]
        assert one["betas"] == two["betas"]
    assert a["state"].keys() == b["state"].keys()
    for i in a["state"]:
        assert a["state"][i].keys() == b["state"][i].keys()
        for key in a["state"][i]:
            assert a["state"][i][key].shape == b["state"][i][key].shape
    nanogpt_settings = set(golden["config"])
    assert nanogpt_settings <= set(state["config"])


@needs_nanogpt
def test_our_checkpoint_in_nanogpts_programs(ours, nanogpt_place, tmp_path):
    for name in ("train.py", "sample.py", "model.py", "configurator.py"):
        (tmp_path / name).symlink_to(Path(NANOGPT).resolve() / name)
    shutil.copytree(nanogpt_place / "data", tmp_path / "data")
    shutil.copytree(ours, tmp_path / "out")
    own = ["--device=cpu", "--dtype=float32", "--compile=False", "--out_dir=out"]
    options = ["--num_samples=1", "--max_new_tokens=30", *own]
    sample = run_command([sys.executable, "sample.py", *options], tmp_path)
    assert sample.rc == 0 and "-" * 15 in sample.stdout, sample
    known = {"--dropout", "--n_layer", "--n_head", "--block_size", "--learning_rate", "--min_lr"}
    options = [o for o in TINY if o.split("=")[0] in known]
    options += ["--init_from=resume", "--dataset=nanogpt", "--max_iters=12", "--eval_interval=1"]
    command = [sys.executable, "train.py", *options, *SHAPE, *own, "--warmup_iters=2"]
    resumed = run_command([*command, "--lr_decay_iters=20"], tmp_path)
    assert resumed.rc == 0, resumed
    assert "iter 10: loss" in resumed.stdout and "iter 9:" not in resumed.stdout
    first = float(resumed.stdout.split("iter 10: loss ")[1].split(",")[0])
    assert abs(first - losses(ours)[-1][1]) < 0.3  # where we left it, on other batches


# ---- transformers ----

TINY_HF = GOLDEN / "hf_gpt2_tiny"


@needs_transformers
def test_gpt2_of_transformers_has_its_logits():
    """Golden ids and logits of a random GPT2LMHeadModel; then the same model live."""
    expected = np.load(TINY_HF / "expected.npz")
    model = GPT.from_pretrained(str(TINY_HF), dict(dropout=0.1)).eval()
    assert (model.config.activation, model.config.dropout) == ("gelu_tanh", 0.1)
    ids = torch.from_numpy(expected["ids"])
    with torch.no_grad():
        logits, _ = model(ids, ids)
    torch.testing.assert_close(logits, torch.from_numpy(expected["logits"]), atol=1e-4, rtol=0)

    from transformers import GPT2LMHeadModel

    theirs = GPT2LMHeadModel.from_pretrained(TINY_HF).eval()
    ids = torch.randint(101, (3, 64), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(model(ids, ids)[0], theirs(ids).logits, atol=1e-4, rtol=0)
        # with exact GELU they would differ by more than that: the choice is tested as well
        exact = GPT(replace(model.config, activation="gelu")).eval()
        exact.load_state_dict(model.state_dict())
        assert (exact(ids, ids)[0] - theirs(ids).logits).abs().max() > 1e-4


@needs_transformers
def test_finetuning_a_hugging_face_folder(workplace, tmp_path):
    options = [f"--init_from={TINY_HF}", "--max_iters=2", "--learning_rate=1e-3"]
    result = train(workplace, tmp_path / "out", *options)
    assert result.rc == 0, result
    state = load(tmp_path / "out" / "last.pt")
    assert state["model_args"]["vocab_size"] == 101 and state["model_args"]["block_size"] == 16
    assert state["model_config"]["activation"] == "gelu_tanh"  # and so it resumes as it was
    assert load_model("resume", str(tmp_path / "out")).model.config.activation == "gelu_tanh"


@needs_transformers
def test_a_folder_with_another_model_is_refused(tmp_path):
    (tmp_path / "bert").mkdir()
    config = {"model_type": "bert", "architectures": ["BertModel"]}
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="bert"):
        GPT.from_pretrained(str(tmp_path / "bert"))
    with pytest.raises(UserError, match="bert model, not a gpt2"):
        load_model(str(tmp_path / "bert"), "out")


def test_no_hub_is_one_line(workplace, tmp_path):
    """HF_HUB_OFFLINE is set for all programs in these tests; an empty cache has no GPT-2."""
    env = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    result = train(workplace, tmp_path / "out", "--init_from=gpt2", env=env)
    assert_one_line_error(result, "gpt2")
    assert not (tmp_path / "out").exists()


def test_nanogpts_meta_pkl_is_read_without_executing_it(nanogpt_place):
    meta, source = open_meta(nanogpt_place / "data" / "nanogpt")
    assert source.name == "meta.pkl"
    theirs = pickle.loads(source.read_bytes())
    assert meta["vocab_size"] == theirs["vocab_size"]
    assert meta["tokenizer"] == {"type": "char", "chars": list(theirs["itos"].values())}
