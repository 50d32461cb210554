"""The contract: every model of the table, and one that is one file and one line, here a GRU, in
every program."""

import inspect
import sys
from dataclasses import dataclass

import pytest
import torch
import torch.nn as nn
from helpers.programs import program_module
from torch.nn import functional as F

from bonsai.engine import Engine, SamplingParams, generate
from bonsai.engine.prefill_decode import prefill
from bonsai.engine.weights import prepare
from bonsai.evaluation.questions import Questions
from bonsai.models import table as models
from bonsai.models.cache import Cache, KVCache, TokenCache
from bonsai.models.contract import LanguageModel
from bonsai.models.loading import load_model
from bonsai.planning.memory import training_bytes
from bonsai.runs.checkpoint import save_checkpoint
from bonsai.serving.registry import load_served
from bonsai.system.errors import UserError
from bonsai.system.runtime import setup
from bonsai.training import report
from bonsai.training.start import check_loads_again
from bonsai.training.step import TrainingStep
from model import GROUPS


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


# ---- every model ----

BYTES = dict(n_layer=2, n_head=2, n_embd=32, local_head=2, local_embd=16, local_layer=2)
SETTINGS = {  # tiny ones of each model; caches of all kinds of parts
    "gpt": dict(n_layer=2, n_head=4, n_kv_head=2, n_embd=32, attention_window=5),
    "megabyte": dict(**BYTES, patch_size=4, cross_patch=2, conv_encoder=True),
    "spacebyte": dict(**BYTES, patch_size=4, local_window=6),
    "gru": {},
}
every = pytest.mark.parametrize("name", SETTINGS)
B, T, V = 3, 24, 50


def build(name: str, **fields) -> nn.Module:
    """A model with weights so large that all depends on all it may depend on."""
    make, make_config = models.MODELS.get(name, (GRU, GRUConfig))
    torch.manual_seed(0)
    config = make_config(block_size=T, vocab_size=V, **SETTINGS[name], **fields)
    model = make(config).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def ids(count: int = T) -> torch.Tensor:
    return torch.randint(V, (B, count), generator=torch.Generator().manual_seed(1))


def test_every_model_of_the_table_is_held_to_it():
    assert set(models.MODELS) | {"gru"} == set(SETTINGS)


@every
def test_a_model_has_all_that_is_asked_of_one(name):
    model = build(name)
    wanted = {k: v for k, v in vars(LanguageModel).items() if not k.startswith("_")}
    for key, value in wanted.items():
        if key != "cache_type":  # new_cache is asked
            assert hasattr(model, key), key
        if inspect.isfunction(value):
            own = inspect.signature(getattr(type(model), key)).parameters
            assert list(own) == list(inspect.signature(value).parameters), key
    assert model.context_step >= 1 and model.serial_layers() > 0
    assert 0 < model.num_params() <= model.num_params(False)
    assert model.num_params(False) == sum(p.numel() for p in model.parameters())
    assert model.flops_per_token() == model.flops_per_token(T) > model.num_params()
    assert model.channels_per_token() > 0
    assert sum(training_bytes(model, 2, T, "float32")) > 0
    fields = type(model.config)()
    assert fields.block_size > 0 and fields.vocab_size > 0


@every
def test_logits_loss_and_ignored_targets(name):
    model, idx = build(name), ids()
    targets = idx.roll(1, dims=0)
    idx[0], targets[:, 3] = 0, 0  # a token as any other
    logits, loss = model(idx, targets)
    assert logits.shape == (B, T, V)
    want = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, want)
    last, none = model(idx)
    assert last.shape == (B, 1, V) and none is None
    torch.testing.assert_close(last, logits[:, -1:], atol=1e-5, rtol=1e-5)
    targets[:, 5:] = -1
    want = F.cross_entropy(logits[:, :5].flatten(0, 1), targets[:, :5].flatten())
    torch.testing.assert_close(model(idx, targets)[1], want)
    assert torch.equal(model(idx[:, :7], idx[:, :7])[0].argmax(-1), logits[:, :7].argmax(-1))


@every
def test_every_parameter_is_in_one_group_and_learns(name):
    model = build(name)
    model(ids(), ids().roll(1, dims=0))[1].backward()
    assert tuple(model.param_groups()) == GROUPS
    grouped = [id(p) for group in model.param_groups().values() for p in group]
    assert len(grouped) == len(set(grouped)) and set(grouped) == set(map(id, model.parameters()))
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    assert len(grouped) == sum(len(g["params"]) for g in optimizer.param_groups)
    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)


@every
def test_gradients_are_those_of_finite_differences_in_float64(name):
    """Along a random direction; in float32 a difference would be mostly rounding."""
    model, idx = build(name), ids()
    params = list(model.parameters())
    direction = [torch.randn_like(p) for p in params]
    loss = model(idx, idx)[1]
    loss.backward()
    slope = sum((p.grad * d).sum().item() for p, d in zip(params, direction))
    step, ends = 1e-6, []
    for side in (step, -2 * step):
        with torch.no_grad():
            for p, d in zip(params, direction):
                p += side * d
            ends.append(model(idx, idx)[1])
    assert loss.dtype == torch.float64
    assert (ends[0] - ends[1]).item() / (2 * step) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("name", models.MODELS)
def test_activation_checkpointing_changes_nothing(name):
    """Nor does what is dropped: it is the same when it is computed again."""
    results = []
    for on in (False, True):
        model = build(name, dropout=0.3, activation_checkpointing=on).train()
        torch.manual_seed(1)
        loss = model(ids(), ids().roll(1, dims=0))[1]
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


@every
def test_a_context_can_be_shortened(name):
    model = build(name)
    before = model(ids(16))[0]
    model.crop_block_size(16)
    assert model.config.block_size == model.new_cache(1).length == 16
    assert torch.equal(model(ids(16))[0], before)
    if name in models.MODELS:
        with pytest.raises(AssertionError):
            model(ids(17))


# ---- every cache ----


def read(model: nn.Module, cache: Cache, idx: torch.Tensor, rows=range(B), T: int = 1):
    """Read the next T tokens of rows of idx; holds the logits to those of all tokens at once."""
    at = [slice(n, n + T) for n in cache.lengths]
    got = prefill(model, torch.stack([idx[row, a] for row, a in zip(rows, at)]), cache)
    for row, a, logits in zip(rows, at, got):
        want = model(idx[row : row + 1, : a.stop])[0][0, -1]
        torch.testing.assert_close(logits, want, atol=1e-5, rtol=1e-5)


@every
@torch.no_grad()
def test_a_cache_keeps_account_of_its_rows(name):
    """Rows of one length and of several; views, copies and clones; each goes on where it stood."""
    model, idx = build(name), ids()
    cache = model.new_cache(B)
    assert isinstance(cache, Cache) and (cache.lengths, cache.length, cache.used) == ([0] * B, T, 0)
    assert cache.nbytes == B * model.new_cache(1).nbytes > 0
    read(model, cache, idx, T=6)
    read(model, cache, idx)
    assert cache.lengths == [7] * B
    copy = cache.clone(9)  # in memory of its own
    assert copy.length == 9 and copy.nbytes < cache.nbytes
    one = cache.view(1, 2)
    read(model, one, idx, [1], T=5)
    assert (one.lengths, cache.lengths) == ([12], [7] * B)  # a view counts for itself
    cache.lengths[1] = 12
    read(model, cache, idx)  # rows of several lengths
    assert (cache.lengths, cache.used) == ([8, 13, 8], 13)
    read(model, copy, idx, T=2)
    assert copy.lengths == [9] * B
    other = model.new_cache(2)
    other.copy_row(1, cache, 1, 10)  # the beginning of a row
    other.copy_row(0, copy, 2, 9)
    assert other.lengths == [9, 10]
    read(model, other, idx, [2, 1])
    cache.copy_row(0, cache, 1, 13)  # within a cache
    read(model, cache, idx, [1, 1, 2])
    assert cache.lengths == [14, 14, 9]


@every
@torch.no_grad()
def test_a_cache_begins_anew_and_one_row_becomes_several(name):
    model, idx = build(name), ids()
    idx[:, :5] = idx[0, :5]
    cache = model.new_cache(1, 12)
    read(model, cache, idx, [2], T=12)
    cache.reset()
    read(model, cache, idx, [0], T=5)
    cache.expand(B)
    assert cache.lengths == [5] * B and cache.length == 12
    for _ in range(4):
        read(model, cache, idx)
    read(model, cache, idx, T=3)
    if cache.rewinds:  # what was read too much is forgotten
        cache.lengths = [7, 11, 9]
        read(model, cache, idx)


@every
def test_what_has_no_keys_and_values_is_not_compiled(name):
    model = build(name)
    if isinstance(model.new_cache(1), KVCache):
        return
    with pytest.raises(UserError, match="needs a model with a cache of keys and values"):
        Engine(model, compile=True)
    assert isinstance(model.new_cache(1), TokenCache) == (name == "gru")


# ---- what classes of one's own do when they are built ----


class Odd(GRU):
    """With parts that are in no checkpoint, or are no numbers like weights."""

    def __init__(self, config: GRUConfig):
        super().__init__(config)
        self.keep = [x.item() for x in torch.linspace(1, 0.5, 3)]  # as for stochastic depth
        self.register_buffer("at", torch.arange(config.block_size))
        self.register_buffer("seen", torch.ones(4, 4).tril().bool())
        self.register_buffer("turn", torch.polar(torch.ones(4), torch.arange(4.0)))
        self.register_buffer("fixed", torch.zeros(1000), persistent=False)
        self.register_buffer("noise", torch.empty(1000), persistent=False)
        nn.init.normal_(self.noise, generator=torch.Generator().manual_seed(0))
        counts = torch.zeros(3)
        counts += torch.arange(3)
        self.rates = nn.Parameter(counts)


@dataclass
class OddConfig(GRUConfig):
    n_layer: int = 40  # more than there are tensors, as if all shared theirs
    cap: float = float("inf")
    note: str | None = None


def test_what_a_class_makes_beside_its_weights_is_there_when_it_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "odd", (Odd, OddConfig))
    fields = dict(vocab_size=50, block_size=8, width=8)
    torch.use_deterministic_algorithms(True)  # then torch.empty is full of NaN
    try:
        model = models.build_model("odd", fields, torch.device("meta"))  # other zeros stay here
        check_loads_again(model, "odd")
        state = {"model": model.state_dict(), **models.describe_model(model, "odd")}
        save_checkpoint(tmp_path, {**state, "iter_num": 1, "best_val_loss": torch.tensor(1.0)})
        loaded = load_model("best", tmp_path).model
    finally:
        torch.use_deterministic_algorithms(False)
    assert loaded.config == model.config and loaded.keep == model.keep
    for (name, have), (_, want) in zip(loaded.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(have, want) and have.dtype == want.dtype, name
    for (name, have), (_, want) in zip(loaded.named_parameters(), model.named_parameters()):
        assert torch.equal(have, want), name
    half = prepare(loaded, torch.bfloat16)
    assert half.turn.dtype == torch.complex64 and half.at.dtype == torch.int64
    assert half.fixed.dtype == torch.bfloat16


class Cropped(GRU):
    def __init__(self, config: GRUConfig):
        super().__init__(config)
        self.register_buffer("seen", torch.ones(config.block_size))


@dataclass
class ListConfig(GRUConfig):
    widths: tuple = (1, 2)


@pytest.mark.parametrize(
    ("made", "change", "words"),
    [
        ((Cropped, GRUConfig), lambda m: m.crop_block_size(8), r"seen is \(16,\), not \(8,\)"),
        ((GRU, ListConfig), lambda m: None, "ListConfig.widths is a tuple: only numbers and words"),
        ((GRU, GRUConfig), lambda m: setattr(m, "lm_head", nn.Identity()), "no lm_head.weight"),
        ((GRU, GRUConfig), lambda m: m.add_module("lora", nn.Linear(2, 2)), "too much: lora.weigh"),
    ],
    ids=["a table that is not cropped", "a setting", "a part that was taken away", "one more"],
)
def test_a_model_that_could_not_be_loaded_is_not_trained(made, change, words, monkeypatch):
    monkeypatch.setitem(models.MODELS, "odd", made)
    model = models.build_model("odd", dict(vocab_size=50))
    change(model)
    with pytest.raises(UserError, match=words):
        check_loads_again(model, "odd")


class Mixed(GRU):
    """With a filter, a norm and a tied head."""

    def __init__(self, config: GRUConfig):
        super().__init__(config)
        self.filter = nn.Conv1d(config.width, config.width, 4, groups=config.width)
        self.project = nn.Linear(config.width, config.width)


def test_kinds_of_parameters_of_a_class_of_ones_own():
    """A head is none of the matrices that become orthogonal, nor is a filter."""
    model = Mixed(GRUConfig(8, 50, 8))
    groups = {id(p): kind for kind, ps in model.param_groups().items() for p in ps}
    kinds = {name: groups[id(p)] for name, p in model.named_parameters()}
    assert (kinds["wte.weight"], kinds["lm_head.weight"]) == ("embeddings", "head")
    assert (kinds["filter.weight"], kinds["project.weight"]) == ("scalars", "matrices")
    assert model.num_params(False) - model.num_params() == 50 * 8
    model.lm_head = nn.Linear(8, 50, bias=False)
    model.lm_head.weight = model.wte.weight
    assert model.num_params() == model.num_params(False)  # the table is multiplied, too


# ---- a model that is one file and one line, in every program ----


@pytest.fixture
def programs(monkeypatch, workplace):
    """train.py and eval.py with one more line in the table of models."""
    monkeypatch.setitem(models.MODELS, "gru", (GRU, GRUConfig))
    monkeypatch.setitem(models.CONFIGS, "gru", GRUConfig)
    monkeypatch.setattr(report, "plot_loss", lambda folder: None)
    monkeypatch.chdir(workplace)
    return lambda name: program_module(f"{name}.py")


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


class StateCache(Cache):
    """Of each row one state, (1, B, width), whatever it has read."""

    buffers = (("state", 1, None),)

    def __init__(self, config: GRUConfig, batch: int, length: int, dtype, device):
        super().__init__(batch, length)
        self.state = torch.zeros(1, batch, config.width, dtype=dtype, device=device)


class Recurrent(GRU):
    """The GRU with a cache."""

    cache_type = StateCache

    def forward(self, idx, targets=None, cache=None):
        if cache is None:
            return super().forward(idx, targets)
        x, state = self.gru(self.wte(idx), cache.state.clone())
        cache.state.copy_(state)
        cache.lengths = [n + idx.size(1) for n in cache.lengths]
        return self.lm_head(x[:, -1:]), None


@pytest.mark.parametrize("options", [{}, {"prefix_cache": 500}, {"lookup": 3}], ids=str)
@torch.no_grad()
def test_a_state_of_all_tokens_is_never_taken_for_one_of_fewer(options):
    """Not for a prompt that begins alike, nor for one in the place of another, nor after a wrong
    guess."""
    torch.manual_seed(0)
    model = Recurrent(GRUConfig(64, 12, 16)).eval()
    for p in model.parameters():
        p.mul_(4)  # so that it remembers
    engine = Engine(model, max_batch=1, **options)
    params = SamplingParams(max_new_tokens=10, temperature=0)
    for prompt in ([1, 2, 3, 4, 5], [1, 2, 3], [1, 2, 9], [1, 2, 3, 4, 5, 6], [7, 8, 7, 8, 7]):
        request = engine.submit(prompt, params)[0]
        while engine.busy:
            engine.step()
        ids = list(prompt)
        for _ in range(10):
            ids.append(int(model(torch.tensor([ids]))[0][0, -1].argmax()))
        assert list(request.tokens) == ids[len(prompt) :]
    cache = model.new_cache(2)
    model(torch.tensor([[1, 2], [3, 4]]), cache=cache)
    cache.reset()
    assert cache.lengths == [0, 0] and not cache.state.any()


def test_numbers_of_ones_own_are_of_a_model_without_dropout(programs, monkeypatch, tmp_path):
    """Those that train.py's evaluate computes beside the losses; steps are with it again."""
    seen, begin = [], TrainingStep.begin
    mode = lambda name, model: seen.append((name, model.training))  # noqa: E731
    monkeypatch.setattr(Questions, "scores", lambda _, model, *more: mode("own", model) or {})
    monkeypatch.setattr(
        TrainingStep, "begin", lambda t, *a: mode("step", t.network) or begin(t, *a)
    )
    settings = dict(model="gru", dataset="meta", device="cpu", dtype="float32", eval_iters=1)
    settings |= dict(batch_size=2, gradient_accumulation_steps=1, max_iters=2, eval_interval=1)
    assert programs("train").main(out_dir=str(tmp_path / "run"), **settings) == 0
    assert seen == [("own", False), ("step", True)] * 2 + [("own", False)]


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
