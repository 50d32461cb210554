"""projects/rewards: exact chances, gradients that are those of the expected reward, a small run."""

import sys

import numpy as np
import pytest
import torch
from helpers.programs import ROOT, assert_one_line_error, run_command
from helpers.settings import settings

from bonsai.models.loading import load_model
from model import GPT, GPTConfig
from projects.adder import adder
from projects.rewards import rewards

SCRIPT = str(ROOT / "projects" / "rewards" / "rewards.py")
ROWS = torch.from_numpy(adder.sums(1)).long()  # (100, 4): a, b and their sum, its last digit first
ANSWERS = torch.cartesian_prod(torch.arange(10), torch.arange(10))  # all there are: (100, 2)


def script(cwd, *options):
    return run_command([sys.executable, SCRIPT, *options], cwd, timeout=600)


def given(*options):
    return settings("projects/rewards/rewards.py", ["--digits=1", *options])


@pytest.fixture
def model():
    """A GPT with large weights, so that its probabilities differ."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(block_size=3, vocab_size=10, n_layer=1, n_head=2, n_embd=16))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model


def with_all_answers(row: torch.Tensor) -> torch.Tensor:
    return torch.cat((row[:2].expand(100, 2), ANSWERS), dim=1)


def test_chances_are_those_of_digit_after_digit(model):
    found = rewards.chances(model, ROWS, 2)
    assert found.shape == (100,) and found.dtype == np.float64
    for row, p in zip(ROWS, found):
        expected = 1.0
        for i in (2, 3):
            expected *= model(row[None, :i])[0][0, -1].softmax(-1)[row[i]].item()
        assert p == pytest.approx(expected, rel=1e-4)
    assert rewards.chances(model, with_all_answers(ROWS[7]), 2).sum() == pytest.approx(1, abs=1e-5)


def test_answers_are_drawn_by_their_probability(model):
    n = 20_000
    noise = torch.Generator().manual_seed(0)
    said = rewards.draw_answers(model, ROWS[:1, :2].expand(n, 2), 2, noise)
    assert (said[:, :2] == ROWS[0, :2]).all()
    count = torch.bincount(said[:, 2] * 10 + said[:, 3], minlength=100).numpy()
    p = rewards.chances(model, with_all_answers(ROWS[0]), 2)
    assert (abs(count - n * p) < 5 * np.sqrt(n * p) + 5).all()
    assert p.max() > 3 * p.mean()  # a uniform draw would not do


@pytest.mark.parametrize("kind, earned", [("answer", [1, 0, 0, 0]), ("digits", [1, 0.5, 0.5, 0])])
def test_rewards(kind, earned):
    said = torch.tensor([[3, 1], [3, 0], [4, 1], [0, 0]])
    right = torch.tensor([[3, 1]]).expand(4, 2)
    assert rewards.rewards(said, right, kind).tolist() == earned


def gradient(model, loss: torch.Tensor) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def expected_reward(model, kind: str) -> torch.Tensor:
    """Of one question, over all answers; it can be differentiated."""
    p = rewards.log_probability(model, with_all_answers(ROWS[34]), 2).exp()
    return (p * rewards.rewards(ANSWERS, ROWS[34:35, 2:].expand(100, 2), kind)).sum()


@pytest.mark.parametrize("kind", ["answer", "digits"])
def test_the_gradient_is_on_average_that_of_the_expected_reward(model, kind):
    """Two tries at one question: the mean over all 10,000 pairs of answers, each by its
    probability, has the gradient of the expected reward. A mean that included the answer itself
    would give half of it."""
    earned = rewards.rewards(ANSWERS, ROWS[34:35, 2:].expand(100, 2), kind)
    log_p = rewards.log_probability(model, with_all_answers(ROWS[34]), 2)
    a, b = torch.cartesian_prod(torch.arange(100), torch.arange(100)).T
    gain = rewards.advantages(torch.stack((earned[a], earned[b]), dim=1))
    weight = (log_p[a] + log_p[b]).exp().detach()
    loss = -(weight * (gain[:, 0] * log_p[a] + gain[:, 1] * log_p[b]) / 2).sum()
    exact = gradient(model, expected_reward(model, kind))
    assert torch.allclose(gradient(model, loss), -exact, atol=1e-4 * exact.abs().max())


def test_a_step_follows_that_gradient(model):
    c = given("--tries=20000", "--reward=digits")
    noise = torch.Generator().manual_seed(0)
    step = gradient(model, rewards.loss_of(c, "reinforce", model, ROWS[34:35], 2, noise))
    exact = gradient(model, expected_reward(model, "digits"))
    assert (step + exact).norm() < 0.1 * exact.norm()


def test_the_other_two_ways(model):
    c = given("--tries=500", "--reward=answer")
    told = rewards.loss_of(c, "told", model, ROWS, 2, None)
    assert told.item() == pytest.approx(-np.log(rewards.chances(model, ROWS, 2)).mean(), rel=1e-4)
    imitated = rewards.loss_of(c, "imitate", model, ROWS, 2, torch.Generator().manual_seed(0))
    # answers that earn are the right ones, each as often as the model gives it
    p = rewards.chances(model, ROWS, 2)
    assert imitated.item() == pytest.approx(-(p * np.log(p)).sum() / p.sum(), rel=0.05)


def test_one_of_several_tries():
    p = np.array([0.0, 0.5, 1.0])
    assert rewards.one_of(p, 1) == pytest.approx(0.5)
    assert rewards.one_of(p, 2) == pytest.approx((0.75 + 1) / 3)


@pytest.mark.parametrize("way", rewards.WAYS)
def test_each_way_learns_and_asks_the_same_questions(model, monkeypatch, way):
    """40 steps from weights that know nothing; sums that are held out are never asked."""
    asked, loss_of = [], rewards.loss_of

    def look(c, way, model, rows, *rest):
        asked.append(rows)
        return loss_of(c, way, model, rows, *rest)

    monkeypatch.setattr(rewards, "loss_of", look)
    c = given("--steps=40", "--learning_rate=0.01", "--reward=digits", "--questions=8")
    held = np.arange(100) >= 10
    curve = rewards.learn(c, way, model, ROWS, held)
    assert [step for step, _ in curve] == list(range(0, 41, 4))
    assert curve[-1][1][~held].mean() > 2 * curve[0][1][~held].mean() > 0
    asked = torch.stack(asked)
    assert asked.shape == (40, 8, 4) and asked[..., 0].max() == 0  # 0 + b alone
    order = torch.Generator().manual_seed(c.seed)
    expected = torch.stack([torch.randint(10, (8,), generator=order) for _ in range(40)])
    assert (asked[..., 1] == expected).all()


def test_the_program(tmp_path):
    options = ["--digits=1", "--base_steps=3", "--steps=3", "--questions=4", "--tries=2"]
    done = script(tmp_path, *options)
    assert done.rc == 0, done
    out = tmp_path / "out-rewards-1"
    rows = [line.split("|")[1:3] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [name.strip() for name, _ in rows[2:]] == ["before", "reinforce", "imitate", "told"]
    model = load_model(str(out / "reinforce" / "ckpt.pt"), out).model
    held = adder.hold_out(settings("projects/adder/adder.py", ["--digits=1"]), 100)
    right = rewards.chances(model, ROWS, 2)[~held].mean()
    assert f"{right:.3f}" == rows[3][1].strip()
    assert (out / "rewards.png").stat().st_size > 5000
    again = script(tmp_path, *options, "--ways=told")
    assert again.rc == 0 and "not trained again" in again.stdout, again
    assert "reinforce" not in again.stdout


@pytest.mark.parametrize(
    "options, hint",
    [
        (["--ways=punish"], "reinforce, imitate, told"),
        (["--ways="], "reinforce, imitate, told"),
        (["--digits=3"], "from 1 to 2"),
        (["--tries=1"], "at least 2"),
        (["--reward=money"], "answer, digits"),
        (["--digits=1", "--held_out=100"], "some must be held out"),
    ],
)
def test_mistakes_are_one_line(tmp_path, options, hint):
    assert_one_line_error(script(tmp_path, *options), hint)
