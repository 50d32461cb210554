"""bonsai/models/seq2seq.py: masks, caches, beam search against brute force, learning."""

import itertools
import math

import pytest
import torch

from bonsai.models.seq2seq import Seq2Seq, Seq2SeqConfig, beam_search, warmup_rate
from bonsai.system.runtime import setup
from bonsai.training.settings import StepSettings
from bonsai.training.step import TrainingStep
from model import sinusoids

TINY = dict(vocab_size=13, n_layer=2, n_head=2, n_embd=16, hidden=32, max_length=40)


def make(**changes) -> Seq2Seq:
    torch.manual_seed(0)
    model = Seq2Seq(Seq2SeqConfig(**{**TINY, **changes})).eval()
    for p in model.parameters():  # away from the small initial weights
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.5)
    return model


def ids(*shape, seed=1) -> torch.Tensor:
    return torch.randint(3, 13, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_shapes_and_loss(placement):
    model = make(norm_placement=placement)
    source, target = ids(3, 7), ids(3, 5, seed=2)
    logits, loss = model(source, target, target)
    assert logits.shape == (3, 5, 13) and logits.dtype == torch.float32
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
    assert loss.item() == pytest.approx(expected.item())
    assert model(source, target)[1] is None


def test_the_decoder_is_causal_and_the_encoder_is_not():
    model = make()
    source, target = ids(1, 6), ids(1, 6, seed=2)
    changed = target.clone()
    changed[0, 3] = (changed[0, 3] - 2) % 10 + 3
    moved = (model(source, target)[0] - model(source, changed)[0]).abs().amax(dim=(0, 2)) > 1e-6
    assert moved.tolist() == [False] * 3 + [True] * 3
    late = source.clone()
    late[0, -1] = (late[0, -1] - 2) % 10 + 3
    moved = (model(source, target)[0] - model(late, target)[0]).abs().amax(dim=(0, 2)) > 1e-6
    assert moved.all()  # the whole source is seen from the first target token on


def test_padding_changes_nothing():
    model = make()
    source, target = ids(2, 6), ids(2, 5, seed=2)
    wide_source = torch.nn.functional.pad(source, (0, 4))
    wide_target = torch.nn.functional.pad(target, (0, 3))
    logits, loss = model(source, target, target)
    wide, wide_loss = model(wide_source, wide_target, wide_target)
    assert torch.allclose(wide[:, :5], logits, atol=1e-5)
    assert wide_loss.item() == pytest.approx(loss.item(), abs=1e-6)


def test_cached_decoding_is_that_of_the_whole():
    model = make()
    source, target = ids(2, 6), ids(2, 8, seed=2)
    memory, mask = model.encode(source)
    whole, _ = model.decode(target, memory, mask)
    past, parts = None, []
    for piece in target.split([1, 1, 3, 1, 2], dim=1):
        logits, past = model.decode(piece, memory, mask, past)
        parts.append(logits)
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)


def greedy(model, source, most) -> list[int]:
    """The oracle of beams = 1: everything computed anew for each token."""
    c, tokens = model.config, []
    for _ in range(most):
        logits, _ = model(source, torch.tensor([[c.bos, *tokens]]))
        logits[..., [c.pad, c.bos]] = -math.inf
        token = logits[0, -1].argmax().item()
        if token == c.eos:
            break
        tokens.append(token)
    return tokens


def test_one_beam_is_greedy():
    model = make()
    source = ids(4, 6)
    answers = beam_search(model, source, beams=1, extra=6)
    assert answers == [greedy(model, row[None], 12) for row in source]
    padded = torch.nn.functional.pad(source, (0, 3))
    assert beam_search(model, padded, beams=1, extra=3) == answers  # as far as both may go


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_many_beams_find_the_best_of_all(alpha):
    """With a beam for every beginning the search is exhaustive: brute force agrees."""
    model = make(vocab_size=6, max_length=8)
    with torch.no_grad():
        model.embedding.weight[2] *= 0.5  # an end that is neither always nor never likely
    source = ids(3, 2) % 3 + 3
    most = 4
    answers = beam_search(model, source, beams=4**most, alpha=alpha, extra=most - 2)
    for row, answer in zip(source, answers):
        best, best_score = None, -math.inf
        for length in range(most):
            for words in itertools.product((3, 4, 5), repeat=length):
                logits, _ = model(row[None], torch.tensor([[1, *words]]))
                logits = logits.log_softmax(dim=-1)
                score = sum(logits[0, i, w].item() for i, w in enumerate((*words, 2)))
                score /= ((5 + length + 1) / 6) ** alpha
                if score > best_score:
                    best, best_score = list(words), score
        assert answer == best


def test_label_smoothing_while_training_only():
    model = make(dropout=0.0, label_smoothing=0.2)
    source, target = ids(2, 6), ids(2, 5, seed=2)
    plain = model(source, target, target)[1]
    model.train()
    logits, smoothed = model(source, target, target)
    logp = logits.log_softmax(dim=-1)
    expected = 0.8 * plain + 0.2 * -logp.mean(dim=-1).mean()
    assert smoothed.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_embedding_is_shared():
    model = make()
    assert sum(p.numel() == 13 * 16 for p in model.parameters()) == 1
    x = model.embed(torch.tensor([[5, 5]]))
    expected = 4 * model.embedding.weight[5] + sinusoids(torch.arange(2), 16)
    assert torch.allclose(x[0], expected, atol=1e-6)


def test_the_learning_rate_of_the_paper():
    rates = [warmup_rate(step, 512) for step in range(20_000)]
    top = max(range(20_000), key=rates.__getitem__)
    assert top == 3999 and rates[top] == pytest.approx((512 * 4000) ** -0.5)
    assert rates[0] == pytest.approx(rates[top] / 4000)
    assert rates[15_999] == pytest.approx(rates[top] / 2)


def test_it_learns_to_turn_a_row_around():
    torch.manual_seed(0)
    model = Seq2Seq(Seq2SeqConfig(**{**TINY, "n_embd": 32, "dropout": 0.0, "label_smoothing": 0}))
    optimizer = model.configure_optimizers(0.0, 5e-3, (0.9, 0.98), "cpu")
    draw = torch.Generator().manual_seed(3)
    begin, end = torch.full((64, 1), 1), torch.full((64, 1), 2)
    steps = 200
    for step in range(steps):
        for group in optimizer.param_groups:  # to 0: of six seeds each gets all 20 right
            group["lr"] = 5e-3 * (1 - step / steps)
        source = torch.randint(3, 13, (64, 5), generator=draw)
        target = source.flip(1)
        _, loss = model(source, torch.cat((begin, target), 1), torch.cat((target, end), 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    source = torch.randint(3, 13, (20, 5), generator=draw)
    right = [a == b for a, b in zip(beam_search(model, source), source.flip(1).tolist())]
    assert sum(right) >= 18


def test_the_step_that_projects_share_trains_it():
    torch.manual_seed(0)
    runtime = setup("cpu", "float32", False)
    step = TrainingStep(Seq2Seq(Seq2SeqConfig(**TINY)), StepSettings(weight_decay=0.1), runtime)
    batch = [torch.randint(3, 13, (4, n)) for n in (5, 6, 6)]
    before = [p.clone() for p in step.model.parameters()]
    assert torch.isfinite(step(0, [batch]))
    assert not all(map(torch.equal, before, step.model.parameters()))
    assert [g["weight_decay"] > 0 for g in step.optimizer.param_groups] == [True, False]


def test_choices_that_do_not_go_together():
    for changes, hint in [
        (dict(n_head=3), "n_head=3"),
        (dict(norm_placement="none"), "pre, post"),
        (dict(pad=1), "three tokens"),
        (dict(eos=13), "three tokens"),
    ]:
        with pytest.raises(ValueError, match=hint):
            Seq2SeqConfig(**{**TINY, **changes})
