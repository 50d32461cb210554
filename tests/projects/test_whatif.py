"""projects/attention_whatif: the attention written out is the model's; what each change changes."""

import json
import sys

import pytest
import torch
from helpers.programs import ROOT, assert_one_line_error, run_command
from helpers.settings import settings

from model import GPT, GPTConfig
from projects.attention_whatif import whatif

SCRIPT = str(ROOT / "projects" / "attention_whatif" / "whatif.py")
TINY = ["--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=16", "--batch_size=16"]


C = settings("projects/attention_whatif/whatif.py", TINY)


def output(name: str, idx: torch.Tensor) -> torch.Tensor:
    model = whatif.build(C, whatif.QUESTIONS[name], 11)
    for p in model.parameters():  # away from the small initial weights
        torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    return model(idx, idx)[0]


IDX = torch.randint(11, (2, 16), generator=torch.Generator().manual_seed(1))


def test_unchanged_it_is_the_model():
    torch.manual_seed(C.seed)
    sizes = {name: C[name] for name in ("n_layer", "n_head", "n_embd", "block_size")}
    plain = GPT(GPTConfig(vocab_size=11, bias=False, **sizes))
    built = whatif.build(C, whatif.QUESTIONS["as it is"], 11)
    for (name, a), (other, b) in zip(plain.named_parameters(), built.named_parameters()):
        assert name == other and torch.equal(a, b)
    assert torch.allclose(plain(IDX, IDX)[0], built(IDX, IDX)[0], atol=1e-5)


@pytest.mark.parametrize("name", whatif.QUESTIONS)
def test_every_change_changes_something(name):
    logits = output(name, IDX)
    assert logits.shape == (2, 16, 11) and torch.isfinite(logits).all()
    if name != "as it is":
        assert not torch.allclose(logits, output("as it is", IDX), atol=1e-3)


@pytest.mark.parametrize(
    "name, sees",
    [
        ("as it is", "past"),
        ("squared", "past"),
        ("other side", "future"),
        ("no mask", "both"),
        ("no attention", "none"),
    ],
)
def test_what_a_position_sees(name, sees):
    """Change token 8: which positions notice?"""
    changed = IDX.clone()
    changed[:, 8] = (changed[:, 8] + 1) % 11
    moved = (output(name, IDX) - output(name, changed)).abs().amax(dim=(0, 2)) > 1e-6
    before, after = moved[:8], moved[9:]
    assert moved[8]
    assert before.any().item() == (sees in ("future", "both"))
    assert after.any().item() == (sees in ("past", "both"))


def test_the_script(workplace, tmp_path):
    """With the mask on the other side the loss falls below what is possible, except at the end."""
    options = [*TINY, "--dataset=meta", "--steps=300", "--windows=64", f"--out_dir={tmp_path}"]
    options += ["--only=as it is,other side", "--learning_rate=5e-3"]
    done = run_command([sys.executable, SCRIPT, *options], workplace, timeout=600)
    assert done.rc == 0, done
    plain, cheat = json.loads((tmp_path / "whatif.json").read_text())["rows"]
    assert cheat["loss"] < plain["loss"] - 0.3
    assert cheat["last"] > plain["last"]
    assert (tmp_path / "whatif.png").stat().st_size > 5000


def test_the_next_call_goes_on_with_the_next_run(workplace, tmp_path, monkeypatch):
    """Where it was cut; runs of other settings or data are made anew."""
    monkeypatch.chdir(workplace)
    trained, train = [], whatif.train

    def cut(c, what, data):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(what.question)
        return train(c, what, data)

    options = dict(n_layer=1, n_head=2, n_embd=16, block_size=16, batch_size=2, steps=2, windows=2)
    options |= dict(dataset="meta", only="as it is,squared,negated", out_dir=str(tmp_path))
    monkeypatch.setattr(whatif, "train", cut)
    with pytest.raises(KeyboardInterrupt):
        whatif.main(**options)
    monkeypatch.setattr(whatif, "train", lambda *args: trained.append(1) or train(*args))
    for more, count in (({}, 1), ({}, 0), ({"only": "squared"}, 0), ({"steps": 3}, 3)):
        trained.clear()
        whatif.main(**{**options, **more})
        assert len(trained) == count, more
    rows = json.loads((tmp_path / "whatif.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["as it is", "squared", "negated"]
    assert all(len(row["curve"]) == 3 for row in rows)


@pytest.mark.parametrize(
    "options, hint",
    [
        (["--only=nosuch"], "as it is"),
        (["--n_head=3"], "divisible"),
        (["--dataset=nosuch"], "no data set"),
    ],
)
def test_mistakes_are_one_line(workplace, options, hint):
    assert_one_line_error(run_command([sys.executable, SCRIPT, *options], workplace), hint)
