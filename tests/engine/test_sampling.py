"""bonsai/engine/sampling.py: noise, filters and penalties follow their definitions."""

import math
import random
from itertools import product

import pytest
import torch
from helpers.tiny_model import VOCAB, reference_probs

from bonsai.engine import SamplingParams
from bonsai.engine.sampling import Row, adjust, candidates, noise, sample_next, scores, step_key
from bonsai.system.errors import UserError


def next_probs(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Logits (n, V) -> probabilities (n, V or vocab_limit) from which the next tokens are drawn."""
    kept, ids = candidates(logits, params)
    probs = kept.softmax(dim=-1)
    if ids is None:
        return probs
    return torch.zeros_like(logits[:, : params.vocab_limit]).scatter(-1, ids, probs)


def test_noise_differs_between_rows_seeds_and_steps():
    def key(seed, row, step):
        return step_key(Row((), SamplingParams(seed=seed), row).key, step)

    keys = {key(*place) for place in product(range(-2, 8), range(10), range(10))}
    assert len(keys) == 1000
    draws = noise(torch.tensor(sorted(keys))[:, None], torch.arange(100))
    assert draws.unique().numel() > 0.99 * draws.numel()  # of 24 bits


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 0, 1, 7, VOCAB, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 1e-6])
@pytest.mark.parametrize("limit", [None, 20])
def test_filters_follow_the_definitions(temperature, top_k, top_p, limit):
    logits = 2 * torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(3))
    params = SamplingParams(1, temperature, top_k, top_p, vocab_limit=limit)
    want = [reference_probs(row, temperature, top_k, top_p, limit) for row in logits.tolist()]
    torch.testing.assert_close(next_probs(logits, params), torch.tensor(want))


def test_top_p_keeps_the_smallest_sufficient_set():
    logits = torch.tensor([[0.1, 0.5, 0.3, 0.1]]).log()
    kept = {p: (next_probs(logits, SamplingParams(top_p=p)) > 0).sum().item() for p in
            (0.01, 0.49, 0.51, 0.79, 0.81, 0.89, 0.95, 1.0)}  # fmt: skip
    assert list(kept.values()) == [1, 1, 2, 2, 3, 3, 4, 4]
    even = next_probs(torch.zeros(1, 4), SamplingParams(top_p=0.5))  # ties: the first ones
    assert even.tolist() == [[0.5, 0.5, 0, 0]]


def test_samples_have_the_stated_distribution():
    """Chi-square over one row's draws and over many rows' first draws."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -1.5, 0.3, 1.2])
    params = SamplingParams(temperature=0.7, top_k=7, top_p=0.97)
    probs = next_probs(logits[None], params)[0]
    kept = probs > 0
    assert 3 < kept.sum() < 8
    steps = [Row((), params, 0, [0] * step) for step in range(4000)]
    rows = [Row((), params, row) for row in range(40_000)]
    for draws in (
        sample_next(logits.expand(4000, -1), steps),
        sample_next(logits.expand(40_000, -1), rows),
    ):
        counts = torch.bincount(draws, minlength=8).float()
        assert counts[~kept].sum() == 0
        expected = probs[kept] * len(draws)
        chi2 = ((counts[kept] - expected) ** 2 / expected).sum().item()
        assert chi2 < 20, chi2  # at most 6 degrees of freedom: p > 0.003


# ---- penalties and filters ----


def reference_logits(logits, prompt, answer, p) -> list[float]:
    """Penalties and bias in plain Python, following the definitions."""
    out = list(logits)
    for token in {*prompt, *answer}:
        out[token] = out[token] / p.repetition_penalty if out[token] > 0 else (
            out[token] * p.repetition_penalty
        )  # fmt: skip
    for token in set(answer):
        out[token] -= p.presence_penalty + p.frequency_penalty * answer.count(token)
    for token, bias in p.logit_bias:
        out[token] += bias
    return out


@pytest.mark.parametrize("seed", range(20))
def test_penalties_and_bias_follow_the_definitions(seed):
    rng = random.Random(seed)
    rows = []
    for _ in range(4):
        params = SamplingParams(
            repetition_penalty=rng.choice([1.0, 1.7, 0.8]),
            presence_penalty=rng.choice([0, 0.5, -1.0]),
            frequency_penalty=rng.choice([0, 0.3]),
            logit_bias=rng.choice([(), {3: 100.0, 5: -2}]),
        )
        prompt, answer = ([rng.randrange(9) for _ in range(rng.randrange(6))] for _ in range(2))
        rows.append(Row(prompt, params, 0, answer))
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(seed))
    before = logits.clone()
    got = adjust(logits, rows)
    assert torch.equal(logits, before)  # the log-probabilities are of these
    want = [
        reference_logits(x, r.prompt, r.tokens, r.params) for x, r in zip(logits.tolist(), rows)
    ]
    torch.testing.assert_close(got, torch.tensor(want))


@pytest.mark.parametrize("min_p", [0.0, 0.01, 0.2, 1.0])
@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (9, 1.0), (0, 0.8), (9, 0.8)])
def test_min_p_follows_the_definition(min_p, top_k, top_p):
    logits = 2 * torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(4))
    want = []
    for row in logits.tolist():
        probs = reference_probs(row, 0.9, top_k, top_p, None)
        probs = [p if p >= min_p * max(probs) * (1 - 1e-5) else 0.0 for p in probs]
        want.append([p / sum(probs) for p in probs])
    got = next_probs(logits, SamplingParams(1, 0.9, top_k, top_p, min_p=min_p))
    torch.testing.assert_close(got, torch.tensor(want))


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_top_p_of_a_large_vocabulary(top_p):
    """Where the likeliest tokens are enough, and where all must be sorted."""
    generator = torch.Generator().manual_seed(0)
    for spread in (0.1, 4.0):
        logits = spread * torch.randn(3, 5000, generator=generator)
        want = [reference_probs(row, 1.0, 0, top_p, None) for row in logits.tolist()]
        got = next_probs(logits, SamplingParams(top_p=top_p))
        # at the border rounding may keep one token more or less
        assert (got - torch.tensor(want)).abs().sum() < 1e-2


# ---- log-probabilities ----


def test_scores_are_the_models_own_probabilities():
    """Padding has its share of them, but is never shown among the likeliest."""
    logits = torch.tensor([[0.0, 1.0, 5.0], [2.0, 0.0, -1.0]])
    rows = scores(logits, [0, 2], k=2, limit=2)
    want = logits.log_softmax(-1)
    for row, (score, top) in enumerate(rows):
        assert score == pytest.approx(want[row, [0, 2][row]].item())
        assert [token for token, _ in top] == [[1, 0], [0, 1]][row]
        assert [lp for _, lp in top] == pytest.approx(sorted(want[row, :2].tolist(), reverse=True))
    assert [len(top) for _, top in scores(logits, [0, 2], k=9, limit=None)] == [3, 3]


def test_rows_with_different_filters_are_drawn_as_each_alone():
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(0))
    kinds = [SamplingParams(temperature=0), SamplingParams(top_k=3), SamplingParams(top_p=0.5)]
    rows = [Row((1,), kinds[i % 3], i, [5] * i) for i in range(6)]
    alone = [sample_next(logits[i : i + 1], [row]).item() for i, row in enumerate(rows)]
    assert sample_next(logits, rows).tolist() == alone


@pytest.mark.parametrize(
    "settings, says",
    [
        (dict(temperature=-0.1), "temperature=-0.1"),
        (dict(temperature=math.nan), "temperature=nan"),
        (dict(max_new_tokens=-1), "max_new_tokens=-1"),
        (dict(top_k=-5), "top_k=-5"),
        (dict(top_p=0.0), "top_p=0.0"),
        (dict(top_p=1.5), "top_p=1.5"),
        (dict(vocab_limit=0), "vocab_limit=0"),
        (dict(min_p=1.5), "min_p=1.5"),
        (dict(repetition_penalty=0), "repetition_penalty=0"),
        (dict(presence_penalty=math.nan), "presence_penalty=nan"),
        (dict(frequency_penalty=math.inf), "frequency_penalty=inf"),
        (dict(logit_bias={-1: 1.0}), "logit_bias: -1"),
        (dict(logit_bias=[(1, math.inf)]), "logit_bias: 1=inf"),
        (dict(logprobs=-1), "logprobs=-1"),
    ],
)
def test_impossible_settings_say_so_at_once(settings, says):
    with pytest.raises(UserError, match=says):
        SamplingParams(**settings)


class NeverWalked(list):
    def __iter__(self):
        raise AssertionError("a step has walked through the whole text")


def test_penalties_count_a_long_text_once():
    """Also beside rows that go on from it with guesses."""
    params = SamplingParams(repetition_penalty=1.7, presence_penalty=0.5, frequency_penalty=0.3)
    rng, text = random.Random(1), []
    logits = torch.randn(1, 9, generator=torch.Generator().manual_seed(1))
    plain, long = Row([1, 2], params), Row([1, 2], params, 0, NeverWalked())
    for _ in range(30):
        text.append(rng.randrange(9))
        plain.tokens.append(text[-1])
        long.tokens.append(text[-1])
        guesses = [rng.randrange(9) for _ in range(2)]
        ahead = plain.extended(guesses)
        for row, tokens in ((long, text), (ahead, text + guesses), (plain, text)):
            (want,) = [reference_logits(x, [1, 2], tokens, params) for x in logits.tolist()]
            torch.testing.assert_close(adjust(logits, [row]), torch.tensor([want]))


def test_a_row_behind_more_tokens_is_another_row():
    row = Row((1, 2), SamplingParams(seed=4), 3, [7])
    later = row.extended([8, 9])
    assert later.tokens == [7, 8, 9] and row.tokens == [7]
    assert (later.key, later.prompt) == (row.key, row.prompt)
