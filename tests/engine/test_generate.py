"""bonsai/engine/generate.py against the uncached model and model.generate."""

from itertools import islice

import pytest
import torch
from helpers.tiny_model import BLOCK, VOCAB, texts, tiny
from torch.nn import functional as F

from bonsai.engine import SamplingParams, generate
from bonsai.system.errors import UserError
from model import GPT


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny()


# ---- against the oracle ----


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope", "none"])
@pytest.mark.parametrize("length", [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_greedy_tokens_are_those_of_model_generate(position, length):
    """From inside the context to far beyond it, and for prompts longer than it."""
    model = tiny(position=position)
    prompt = torch.randint(VOCAB, (1, length), generator=torch.Generator().manual_seed(length))
    want = model.generate(prompt, BLOCK + 9, temperature=0)[0, length:].tolist()
    for use_cache in (True, False):
        got = texts(
            model, prompt[0].tolist(), max_new_tokens=BLOCK + 9, temperature=0, use_cache=use_cache
        )
        assert got == [want], use_cache


@pytest.mark.parametrize("on_full", ["slide", "refill", "stop"])
def test_sampled_tokens_are_the_same_with_and_without_cache(model, on_full):
    params = SamplingParams(max_new_tokens=3 * BLOCK, temperature=0.9, top_k=20, top_p=0.95)
    cached = texts(model, [3, 1, 4], params, n=3, on_full=on_full)
    assert cached == texts(model, [3, 1, 4], params, n=3, on_full=on_full, use_cache=False)
    # the context is full after block_size tokens; one more can still be drawn from it
    assert len(cached[0]) == (BLOCK - 3 + 1 if on_full == "stop" else 3 * BLOCK)
    assert len({tuple(row) for row in cached}) == 3


def test_refill_goes_on_from_the_last_half_of_the_context(model):
    (row,) = texts(model, [5], max_new_tokens=3 * BLOCK, temperature=0, on_full="refill")
    ids = [5]
    context = 0
    while len(ids) < 1 + 3 * BLOCK:
        if len(ids) - context > BLOCK:
            context = len(ids) - BLOCK // 2
        ids.append(model(torch.tensor([ids[context:]]))[0][0, -1].argmax().item())
    assert row == ids[1:]


def test_a_prompt_longer_than_the_context_counts_from_its_end(model):
    prompt = [i % VOCAB for i in range(2 * BLOCK + 5)]
    want = model.generate(torch.tensor([prompt]), 1, temperature=0)[0, -1].item()
    rest = {}
    for on_full in ("stop", "refill", "slide"):
        (row,) = texts(model, prompt, max_new_tokens=5, temperature=0, on_full=on_full)
        rest[on_full] = len(row)
        assert row[0] == want
    assert rest == {"stop": 1, "refill": 5, "slide": 5}


def test_a_context_of_one_token():
    model = tiny(block_size=1)
    want = model.generate(torch.tensor([[2]]), 5, temperature=0)[0, 1:].tolist()
    for on_full in ("slide", "refill"):
        assert texts(model, [2], max_new_tokens=5, temperature=0, on_full=on_full) == [want]


def test_later_tokens_do_not_change_earlier_ones(model):
    """Causality: what a longer run yields first is what a shorter run yields."""
    long = texts(model, [7, 7], max_new_tokens=30, n=2)
    assert texts(model, [7, 7], max_new_tokens=9, n=2) == [row[:9] for row in long]


# ---- rows ----


def test_a_row_alone_gets_the_tokens_it_gets_beside_others(model):
    params = SamplingParams(max_new_tokens=2 * BLOCK, temperature=1.0, seed=11)
    together = texts(model, [9, 8], params, n=5)
    alone = [texts(model, [9, 8], params, first_row=row)[0] for row in range(5)]
    assert together == alone
    assert texts(model, [9, 8], params, n=2, first_row=3) == together[3:]


def test_global_random_state_is_neither_used_nor_changed(model):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = texts(model, [1], max_new_tokens=8)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(6)
    assert texts(model, [1], max_new_tokens=8) == one


def test_a_row_ends_at_a_stop_token_and_the_others_go_on(model):
    params = SamplingParams(max_new_tokens=20, temperature=1.0)
    free = texts(model, [2, 4], params, n=4)
    stop = free[0][3]
    stopped = texts(model, [2, 4], SamplingParams(20, stop_tokens=[stop]), n=4)
    ends = [row.index(stop) if stop in row else 20 for row in free]
    for row, was, end in zip(stopped, free, ends):
        assert row == (was[:end] + [None] * 20)[: len(row)]
    assert len(stopped[0]) == min(20, max(ends) + 1)
    assert len(set(ends)) > 1  # the case is worth testing


def test_generation_ends_when_every_row_has_stopped(model):
    likeliest = texts(model, [2], max_new_tokens=1, temperature=0)[0][0]
    steps = list(generate(model, [2], SamplingParams(9, 0, stop_tokens=(likeliest,)), n=3))
    assert steps == [[None, None, None]]
    assert list(generate(model, [2], SamplingParams(0))) == []


# ---- choosing a token ----


@pytest.mark.parametrize("options", [dict(top_p=1e-9), dict(top_k=1), dict(temperature=1e-30)])
def test_narrow_choices_are_greedy(model, options):
    greedy = texts(model, [6], max_new_tokens=12, temperature=0)
    assert texts(model, [6], max_new_tokens=12, **options) == greedy


def test_top_k_zero_is_off(model):
    free = texts(model, [6], max_new_tokens=12, top_k=None)
    assert texts(model, [6], max_new_tokens=12, top_k=0) == free


def test_generated_tokens_have_the_models_distribution(model):
    """The first token of 3,000 rows against softmax of the model's own logits."""
    rows = 3000
    (first,) = generate(model, [4, 2], SamplingParams(1, seed=2), n=rows)
    probs = F.softmax(model(torch.tensor([[4, 2]]))[0][0, -1], dim=-1)
    counts = torch.bincount(torch.tensor(first), minlength=VOCAB)
    often = probs * rows > 5
    chi2 = ((counts - probs * rows) ** 2 / (probs * rows))[often].sum().item()
    assert chi2 < 1.8 * often.sum() + 10, (chi2, often.sum())


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_padded_ids_are_never_chosen(temperature):
    model = tiny()
    with torch.no_grad():  # untrained padding rows may well be the likeliest
        model.lm_head.weight[20:] = 3 * model.lm_head.weight[:11]
    options = dict(max_new_tokens=40, temperature=temperature, n=8)
    assert max(map(max, texts(model, [1], **options))) >= 20
    assert max(map(max, texts(model, [1], vocab_limit=20, **options))) < 20


# ---- manners ----


def test_the_models_mode_and_the_callers_gradients_are_left_alone():
    model = tiny(dropout=0.5).train()
    params = SamplingParams(max_new_tokens=5, temperature=0)
    want = list(generate(model, [1], params))
    assert model.training and all(m.training for m in model.modules())
    assert list(generate(model, [1], params)) == want  # no dropout
    tokens = generate(model, [1], params)
    next(tokens)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    tokens.close()  # given up half-way
    assert model.training
    model.eval()
    list(generate(model, [1], params))
    assert not model.training


@pytest.mark.parametrize("length", [1, 3, BLOCK, BLOCK + 2])
def test_no_memory_is_taken_for_what_a_full_context_leaves_out(model, length):
    """2^50 tokens would take more than there is."""
    tokens = generate(model, [1] * length, SamplingParams(2**50), n=2, on_full="stop")
    assert len(list(tokens)) == max(0, BLOCK - length) + 1


def test_tokens_come_one_step_at_a_time(model):
    calls = []
    hook = model.register_forward_pre_hook(lambda m, args: calls.append(tuple(args[0].shape)))
    tokens = generate(model, [1, 2, 3], SamplingParams(max_new_tokens=10), n=4)
    assert calls == []
    list(islice(tokens, 3))
    hook.remove()
    assert calls == [(1, 3), (4, 1), (4, 1)]  # one prefill for all rows, then one token each


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda m: generate(m, [], SamplingParams()), "prompt is empty"),
        (lambda m: generate(m, [1, VOCAB], SamplingParams()), f"token {VOCAB} is outside"),
        (lambda m: generate(m, [-1], SamplingParams()), "token -1"),
        (lambda m: generate(m, [1], SamplingParams(), n=0), "n=0"),
        (lambda m: generate(m, [1], SamplingParams(), on_full="sldie"), "slide, refill, stop"),
    ],
)
def test_impossible_requests_say_so_at_once(model, call, says):
    with pytest.raises(UserError, match=says):
        call(model)
