"""The contract: a model that is one file and one line, here a GRU, in every program."""

import importlib.util
import sys
from dataclasses import dataclass

import pytest
import torch
import torch.nn as nn
from helpers.programs import ROOT
from torch.nn import functional as F

from bonsai.engine import Engine, SamplingParams, generate
from bonsai.models import table as models
from bonsai.models.contract import LanguageModel
from bonsai.models.loading import load_model
from bonsai.serving.registry import load_served
from bonsai.system.errors import UserError
from bonsai.system.runtime import setup
from bonsai.training import report


@dataclass
class GRUConfig:
    block_size: int = 16
    vocab_size: int = 50304
    width: int = 16


class GRU(LanguageModel):
    def __init__(self, config: GRUConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.width)
        self.gru = nn.GRU(config.width, config.width, batch_first=True)
        self.lm_head = nn.Linear(config.width, config.vocab_size)

    def forward(self, idx, targets=None):
        x = self.gru(self.wte(idx))[0]  # (B, T, C)
        if targets is None:
            return self.lm_head(x[:, -1:]), None
        logits = self.lm_head(x)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


@pytest.fixture
def programs(monkeypatch, workplace):
    """train.py and eval.py with one more line in the table of models."""
    monkeypatch.setitem(models.MODELS, "gru", (GRU, GRUConfig))
    monkeypatch.setitem(models.CONFIGS, "gru", GRUConfig)
    monkeypatch.setattr(report, "plot_loss", lambda folder, title="": None)
    monkeypatch.chdir(workplace)

    def program(name: str):
        spec = importlib.util.spec_from_file_location(f"{name}_in_process", ROOT / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return program


def test_a_gru_trains_goes_on_evaluates_and_samples(programs, monkeypatch, tmp_path, capsys):
    train = programs("train").main
    settings = dict(model="gru", dataset="meta", device="cpu", dtype="float32", compile=False)
    settings |= dict(width=24, batch_size=8, gradient_accumulation_steps=1, learning_rate=1e-2)
    settings |= dict(max_iters=20, eval_interval=20, eval_iters=4, warmup_iters=0)
    out = tmp_path / "run"
    assert train(out_dir=str(out), **settings) == 0
    on = dict(out_dir=str(out), init_from="resume", device="cpu", dtype="float32")
    assert train(**on, max_iters=22) == 0
    said = capsys.readouterr().out
    before, after = (float(said.split(f"step {n}: ")[1].split("val loss ")[1][:6]) for n in (0, 22))
    assert after < before - 0.3
    loaded = load_model("resume", out)
    assert (loaded.name, loaded.config["width"]) == ("gru", 24)
    with pytest.raises(UserError, match="is a gru, which has no n_layer"):
        train(**on, n_layer=3)
    with pytest.raises(UserError, match="has width=24"):
        train(**on, model="gru", width=32)
    muon = {**settings, "optimizer": "muon", "max_iters": 2, "eval_interval": 2}
    assert train(out_dir=str(tmp_path / "muon"), **muon) == 0

    monkeypatch.setattr(sys, "argv", ["eval.py", f"--out_dir={out}", "--device=cpu"])
    programs("eval").main()
    assert "bits per byte" in capsys.readouterr().out
    short = [f"--out_dir={out}", "--device=cpu", "--num_samples=1", "--max_new_tokens=4"]
    monkeypatch.setattr(sys, "argv", ["sample.py", *short])
    assert not programs("sample").main()
    served = load_served("gru", str(out), setup("cpu", "float32", False), max_batch=2)
    assert served.tokenizer.vocab_size == served.model.config.vocab_size
    model = loaded.model.eval()
    params = SamplingParams(max_new_tokens=30, temperature=0)  # longer than the context
    ids = [t[0] for t in generate(model, [1, 2, 3], params)]
    assert ids[0] == model(torch.tensor([[1, 2, 3]]))[0].argmax().item()


def test_the_engine_shares_prefixes_of_a_model_without_a_cache():
    """Each prompt begins as the one before; the answers are those of the short loop."""
    torch.manual_seed(0)
    model = GRU(GRUConfig(64, 50, 16)).eval()
    engine, params = Engine(model, max_batch=2), SamplingParams(max_new_tokens=8, temperature=0)
    for tails in ([[1], [2, 3]], [[4], [5, 6, 7]], [[1], [1, 2]]):
        prompts = [list(range(1, 41)) + tail for tail in tails]
        requests = [engine.submit(prompt, params)[0] for prompt in prompts]
        while engine.busy:
            engine.step()
        for prompt, request in zip(prompts, requests):
            assert list(request.tokens) == [t[0] for t in generate(model, prompt, params)]
