"""benchmarks/update.py at toy size: what is updated, and that it is train.py's update."""

import json

import pytest
import torch

from benchmarks import update
from bonsai.training.settings import StepSettings

TOY = dict(device="cpu", sizes="toy,fast_toy", repeats=2, updates=2)


def test_rows_are_measured_once(tmp_path, capsys):
    update.main(**TOY, out=str(tmp_path))
    rows = json.loads((tmp_path / "update.json").read_text())["rows"]
    found = [(r["size"], r["part"], r["optimizer"]) for r in rows]
    assert found == [
        ("toy", "all", "AdamW"),
        ("fast_toy", "matrices", "Muon"),
        ("fast_toy", "all else", "AdamW"),
    ]
    assert all(r["ours"]["n"] == 2 and r["ours"]["median"] > 0 for r in rows)
    assert [("torch" in r, "ours_gb" in r) for r in rows] == [(True, True), (False, False)] + [
        (True, True)
    ]
    moved = rows[0]["numbers"] * 32  # clipping reads the gradients once more
    assert rows[0]["torch_gb"] == pytest.approx(moved / rows[0]["torch"]["median"] / 1e6)
    assert rows[2]["ours_gb"] == pytest.approx(
        rows[2]["numbers"] * 28 / rows[2]["ours"]["median"] / 1e6
    )
    said = capsys.readouterr().out
    assert said.endswith((tmp_path / "update.txt").read_text())
    update.main(**TOY, out=str(tmp_path))
    assert capsys.readouterr().out.count("measured before") == 3


@pytest.mark.parametrize("size", ["toy", "fast_toy"])
def test_the_parts_are_all_of_the_model(tmp_path, size):
    update.main(device="cpu", sizes=size, repeats=1, updates=1, out=str(tmp_path))
    rows = json.loads((tmp_path / "update.json").read_text())["rows"]
    shape, _ = update.settings_of(size)
    numbers = sum(p.numel() for p in update.build_model("gpt", shape).parameters())
    assert sum(row["numbers"] for row in rows) == numbers


def test_the_fast_rows_have_the_recipes_settings():
    _, classic = update.settings_of("124M")
    shape, fast = update.settings_of("fast_124M")
    assert classic == StepSettings()
    assert (fast.optimizer, fast.grad_clip, fast.neuron_beta) == ("muon", 0.0, 0.95)
    assert shape["value_embeddings"] and shape["bigram_embeddings"] == 5 and shape["n_head"] == 6


def test_torchs_update_is_torchs():
    """Clipped to a norm of 1, then AdamW: the first step moves by the rate, times the gradients'
    signs, but for eps."""
    p = torch.nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([3.0, -4.0, 0.0])
    group = dict(params=[p], lr=0.1, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8)
    update.adamw_by_torch([group], 1.0)()
    torch.testing.assert_close(p.grad, torch.tensor([0.6, -0.8, 0.0]))
    torch.testing.assert_close(p.detach(), torch.tensor([-0.1, 0.1, 0.0]))
