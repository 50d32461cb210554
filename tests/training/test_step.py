"""bonsai/training/step.py: one step of training, whoever takes it."""

import ast
import copy
import math

import pytest
import torch
from helpers.programs import ROOT

from bonsai.models import head_loss as head_loss_module
from bonsai.models.embedding import accumulate_in_place
from bonsai.models.head_loss import chunked_head_loss, kernel_head_loss
from bonsai.system.runtime import setup
from bonsai.training import optimizers
from bonsai.training.settings import StepSettings
from bonsai.training.step import TrainingStep
from model import GPT, GPTConfig

CPU = setup("cpu", "float32", False)
SETTINGS = StepSettings(learning_rate=1e-2, seed=7)


def tiny(dropout: float = 0.0, **fields) -> GPT:
    torch.manual_seed(0)
    shape = dict(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=16, dropout=dropout)
    return GPT(GPTConfig(**shape, **fields))


def batch(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    idx = torch.randint(11, (rows, 9), generator=torch.Generator().manual_seed(seed))
    return idx[:, :-1], idx[:, 1:]


def weights(training: TrainingStep) -> list[torch.Tensor]:
    return [p.detach().clone() for p in training.model.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b))


def test_micro_batches_are_parts_of_one_batch():
    """Their mean loss and gradient are those of all rows together."""
    x, y = batch(4)
    whole, parts = TrainingStep(tiny(), SETTINGS, CPU), TrainingStep(tiny(), SETTINGS, CPU)
    loss = whole(0, [(x, y)]).item()
    halves = iter([(x[:2], y[:2]), (x[2:], y[2:]), "one that is not of this step"])
    assert parts(0, halves, [2, 2]).item() == pytest.approx(loss, abs=1e-6)
    assert next(halves) == "one that is not of this step"
    assert parts.norm.item() == pytest.approx(whole.norm.item(), rel=1e-4)
    for a, b in zip(weights(whole), weights(parts)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_parts_of_a_step_are_the_step():
    one, other = TrainingStep(tiny(), SETTINGS, CPU), TrainingStep(tiny(), SETTINGS, CPU)
    for number in range(3):
        one(number, [batch(2, number)])
        other.begin(number)
        other.backward(*batch(2, number))
        assert not same(weights(one), weights(other))  # the update is still to come
        other.update()
        assert same(weights(one), weights(other)) and one.loss == other.loss


def test_dropout_is_a_function_of_seed_and_step():
    losses = []
    for number in (3, 3, 4):
        losses.append(TrainingStep(tiny(0.5), SETTINGS, CPU)(number, [batch(2)]).item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("spoilt", [math.nan, math.inf, 1e30])
def test_weights_that_the_update_has_spoilt(spoilt):
    """Their step's loss, of the weights before it, is finite."""
    training = TrainingStep(tiny(), SETTINGS, CPU)
    assert training.is_finite()  # before any step
    training(0, [batch(2)])
    before = torch.get_rng_state(), training.loss.clone()
    assert training.is_finite() and training.model.training
    assert torch.equal(before[0], torch.get_rng_state()) and training.loss == before[1]
    with torch.no_grad():
        for p in training.model.parameters():
            p.fill_(spoilt)
    assert math.isfinite(training.loss) and not training.is_finite()


def test_looking_whether_the_loss_is_finite_changes_nothing():
    """Else a run would depend on how often it is saved."""

    class Averaging(torch.nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x.mT).mT

    model = tiny()
    model.transformer.ln_f = Averaging(model.config.n_embd)
    training = TrainingStep(model, SETTINGS, CPU)
    training(0, [batch(2)])
    before = copy.deepcopy(model.state_dict())
    assert training.is_finite() and training.model.training
    after = model.state_dict()
    assert all(torch.equal(w, after[key]) for key, w in before.items())
    assert before["transformer.ln_f.num_batches_tracked"] == 1


def test_a_save_does_not_fail_for_want_of_memory(monkeypatch):
    training = TrainingStep(tiny(), SETTINGS, CPU)
    training(0, [batch(2)])

    def full(*args, **keywords):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training.model, "forward", full)
    assert training.is_finite()
    training.loss.fill_(math.nan)
    assert not training.is_finite()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_gradient_that_is_not_finite_changes_nothing(name, fused, monkeypatch):
    """Also by an optimizer whose kernels do not look at found_inf."""
    if not fused:
        plain = {"adamw": lambda model, c, runtime: torch.optim.SGD(model.parameters(), lr=0.1)}
        monkeypatch.setattr(optimizers, "OPTIMIZERS", {**plain, "muon": optimizers.muon})
    training = TrainingStep(tiny(), StepSettings(optimizer=name), CPU)
    training(0, [batch(2)])
    before = weights(training)
    for spoilt in (1, 2):
        training.begin(spoilt)
        training.backward(*batch(2))
        next(training.model.parameters()).grad.fill_(math.nan)
        training.update()
        assert same(before, weights(training)) and int(training.skipped) == spoilt
    training(3, [batch(2)])
    assert not same(before, weights(training)) and int(training.skipped) == 0


@pytest.mark.parametrize("head_loss", [chunked_head_loss, kernel_head_loss])
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_in_a_fused_head(head_loss, name, spoilt, monkeypatch):
    """Of one token in one of two micro-batches: it is found, and the step is left out; one where no
    target counts moves nothing."""
    monkeypatch.setattr(head_loss_module, "MOST", {"cpu": 3 * 11})  # three rows at a time
    monkeypatch.setattr(head_loss_module, "HALF", (torch.float32,))
    training = TrainingStep(tiny(), StepSettings(optimizer=name), CPU)
    training.model.head_loss = head_loss
    training(0, [batch(2)])
    before = weights(training)
    training.begin(1, 2)
    training.backward(*batch(2), divisor=2)
    with training.model.transformer.ln_f.register_forward_hook(lambda m, x, y: spoil(y, spoilt)):
        training.backward(*batch(2), divisor=2)
    training.update()
    assert same(before, weights(training)) and int(training.skipped) == 1
    assert not math.isfinite(training.loss) and not training.is_finite()
    x, y = batch(2)
    gradient = []
    for batches in ([(x, y)], [(x, y), (x, torch.full_like(y, -1))]):
        training.begin(2, len(batches))
        for part in batches:
            training.backward(*part)
        training.scaler.unscale_(training.optimizer)
        gradient.append([p.grad.clone() for p in training.model.parameters()])
        training.optimizer.zero_grad()
    assert same(*gradient) and all(g.isfinite().all() for g in gradient[0])


def spoil(y: torch.Tensor, value: float) -> torch.Tensor:
    y = y.clone()
    y[0, 3, 5] = value
    return y


def test_nobody_else_writes_out_the_update():
    """The order of unscaling, clipping, guard and update stands in one place."""
    for path in [*ROOT.glob("*.py"), *(ROOT / "bonsai").rglob("*.py")]:
        names = {n.attr for n in ast.walk(ast.parse(path.read_text())) if hasattr(n, "attr")}
        assert "unscale_" not in names or path.name == "step.py"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_tables_that_add_up_the_gradients_of_micro_batches(optimizer):
    """As on a GPU: the weights are those of autograd's sums; a gradient that is not finite leaves
    nothing behind in the next step's, and a single batch after steps of several is its own."""
    fields = dict(value_embeddings=True, bigram_embeddings=1, tie_head=False, position="rope")
    c = StepSettings(learning_rate=1e-2, optimizer=optimizer, seed=7)
    one, other = (TrainingStep(tiny(**fields), c, CPU) for _ in range(2))
    other.tables = accumulate_in_place(other.model)
    assert len(other.tables) == 3 and not TrainingStep(tiny(**fields), c, CPU, True).tables
    for number, parts in enumerate((1, 3, 2, 1, 2)):
        micro_batches = [batch(2, 10 * number + i) for i in range(parts)]
        for training in (one, other):
            training(number, micro_batches, [parts] * parts)
        assert other.norm.item() == pytest.approx(one.norm.item(), rel=1e-5)
        for a, b in zip(weights(one), weights(other)):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
        if number == 2:
            before = weights(other)
            for training in (one, other):
                training(9, micro_batches, [0.0] * parts)  # losses of infinity
                assert training.skipped == 1
            assert same(before, weights(other))
