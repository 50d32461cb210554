"""docs/research.md: its code does what stands beside it."""

import contextlib
import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.programs import ROOT, losses, program_module, run_program, train
from helpers.tiny_data import tiny_text, write_meta

from bonsai.evaluation.loss import split_loss
from bonsai.models.loading import load_model
from bonsai.runs.metrics import read_metrics
from bonsai.serving.page.inside import look
from bonsai.system.runtime import setup

PAGE = (ROOT / "docs" / "research.md").read_text(encoding="utf-8")
OPTIONS = "dataset=code n_layer=2 n_embd=16 block_size=64 attention_window=8 batch_size=4"
OPTIONS += " init=gpt2 zero_init=False max_iters=4 eval_interval=2 eval_iters=2 log_interval=1"
OPTIONS += " save_interval=1 keep_last=2"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with data of bytes and out-quickstart, a tiny model of the quickstart's kind."""
    folder = tmp_path_factory.mktemp("research")
    data = folder / "data" / "code"
    data.mkdir(parents=True)
    ids = {
        name: np.frombuffer(tiny_text(600, seed).encode(), np.uint8).astype("<u2")
        for seed, name in enumerate(("train", "val"))
    }
    for name, split in ids.items():
        (data / f"{name}.bin").write_bytes(split.tobytes())
    write_meta(data, ids, vocab_size=257, eot=256, tokenizer={"type": "byte"})
    config = str(ROOT / "config" / "quickstart.py")
    options = [config, *(f"--{option}" for option in OPTIONS.split()), "--dropout=0"]
    done = train(folder, folder / "out-quickstart", *options)
    assert done.rc == 0, done
    return folder


@pytest.fixture(scope="module")
def page(run) -> SimpleNamespace:
    """The names that the page's code binds, and as `printed` what it prints."""
    names, out = {}, io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(run)
        patch.setattr(sys, "path", [*sys.path])
        patch.setitem(sys.modules, "train", program_module("train.py"))  # and away again
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
            exec(block, names)
    return SimpleNamespace(**names, printed=out.getvalue())


def model_in(run: Path, folder: str) -> torch.nn.Module:
    return load_model(str(run / folder)).model.eval()


@torch.no_grad()
def test_the_lens_after_the_last_layer_is_the_model(run, page):
    model = model_in(run, "out-quickstart")
    torch.testing.assert_close(page.lens[-1], model(page.ids, page.ids)[0])
    _, lens = look(model, page.ids[0].tolist())
    torch.testing.assert_close(lens[1:], torch.stack(page.lens)[:, 0, -1])


def test_what_hooks_change_changes_the_loss_until_they_are_removed(run, page):
    changes = re.findall(r"^([+-][\d.]+) nats$", page.printed, re.M)
    assert len(changes) == 2 and all(float(change) for change in changes)
    hooks = [h for m in page.model.modules() for h in (m._forward_hooks, m._forward_pre_hooks)]
    assert not any(hooks)


def test_products_with_the_hessian_are_those_of_differences(run, page):
    """Of gradients in float64, a small step along the gradient apart."""
    model, ids = model_in(run, "out-quickstart").double(), page.ids
    weights = [p for p in model.parameters() if p.dim() == 2]

    def gradient() -> list[torch.Tensor]:
        return torch.autograd.grad(model(ids[:, :-1], ids[:, 1:])[1], weights)

    here, step = gradient(), 1e-4
    with torch.no_grad():
        for p, g in zip(weights, here):
            p += step * g
    for a, b, product in zip(gradient(), here, page.product):
        want = (a - b) / step
        assert (product - want).norm() < 0.01 * want.norm()


def test_losses_by_position_add_up_to_that_of_eval(run, page):
    runtime, (T, val) = setup("cpu", "float32", compile=False), (page.T, page.val)
    loss, count = split_loss(model_in(run, "out-quickstart"), val, runtime, T, 4, windows=16)
    assert page.losses.sum().item() / count == pytest.approx(loss, rel=1e-5)
    each = page.by_position * page.counted.sum(0)
    assert each.sum().item() == pytest.approx(page.losses.sum().item(), rel=1e-5)
    assert "nats for white space" in page.printed and "step 4: " in page.printed


@torch.no_grad()
def test_changed_weights_are_checkpoints(run, page):
    """The mean is one; and layers that were added change nothing before they are trained."""
    mean, grown = model_in(run, "out-mean"), model_in(run, "out-grown")
    for name, weight in mean.state_dict().items():
        several = torch.stack([w[name] for w in page.several])
        torch.testing.assert_close(weight, several.mean(0))
        assert len(several) > 2
    assert len(grown.transformer.h) == len(mean.transformer.h) + 2
    assert torch.equal(grown(page.x, page.y)[0], mean(page.x, page.y)[0])
    options = ["--init_from=out-grown", "--dataset=code", "--max_iters=1", "--out_dir=tuned"]
    assert run_program([*options, "--eval_iters=1", "--warmup_iters=0"], run).rc == 0


def test_a_run_is_made_again_from_its_config_json(run):
    done = run_program(["out-quickstart/config.json", "--out_dir=again"], run)
    assert done.rc == 0 and "without effect" not in done.stdout, done
    assert losses(run / "again") == losses(run / "out-quickstart") != []


def test_a_search_in_one_process_leaves_a_run_for_each_rate(run, page):
    rates = {
        json.loads(path.read_text())["learning_rate"]: min_loss(path.parent)
        for path in (run / "sweep").glob("*/config.json")
    }
    assert rates.keys() == {0.01, 0.02} and page.best == min((v, k) for k, v in rates.items())


def min_loss(folder: Path) -> float:
    return min(row["val_loss"] for row in read_metrics(folder) if "val_loss" in row)


def test_columns_of_the_metrics_are_those_of_the_table(run):
    kinds = {"steps": set(), "evaluations": set()}
    for row in read_metrics(run / "out-quickstart"):
        kinds["evaluations" if "val_loss" in row else "steps"] |= row.keys()
    for kind, columns in kinds.items():
        (line,) = re.findall(rf"^\| {kind} \| (.*) \|$", PAGE, re.M)
        assert set(re.findall(r"`(\w+)`", line)) - {"skipped"} == columns
