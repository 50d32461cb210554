"""bonsai/engine/cuda/steps.py: the engine's tokens and events are those of steps one by one.

Without CUDA the functions are called where a graph would be replayed: shapes, slots, positions,
draws and what is read behind are the same. tests/benchmarks/test_gpu.py captures them.
"""

import copy
import itertools
import random
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from helpers.byte_models import MEGABYTE
from helpers.engine import alone, finish, random_requests
from helpers.on_meta import Log
from helpers.tiny_model import VARIANTS, VOCAB, texts, tiny

from bonsai.engine import Engine, SamplingParams, generate, prefill_decode
from bonsai.engine.cuda import graphs
from bonsai.engine.cuda.prompts import Prompts
from bonsai.engine.cuda.rows import Draw
from bonsai.engine.cuda.steps import AT_ONCE, CapturedSteps
from bonsai.engine.prefix_cache import Prefixes
from bonsai.engine.sampling import Row
from bonsai.models.megabyte import Megabyte, MegabyteConfig


@pytest.fixture(scope="module")
def model():
    return tiny(block_size=48)


@pytest.fixture(autouse=True)
def short_buckets(monkeypatch):
    monkeypatch.setattr(prefill_decode, "SHORTEST", 8)


# ---- the engine ----


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope", "none"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_block_and_position(variant, position):
    model = tiny(block_size=48, position=position, **VARIANTS[variant])
    engine = Engine(model, max_batch=3, capture=True)
    for length in (1, 9, 30):
        engine.submit([5] * length, SamplingParams(20, 0.8, top_k=9), n=2)
    for request in finish(engine):
        assert request.tokens == alone(model, request)
    assert len(engine.captured.graphs.kept) > 3  # of rows and positions; and draws


def told(events) -> list[tuple]:
    """What a program sees of a request: tokens, endings, and which tokens were the likeliest."""
    return [(e.token, e.finish, e.top and [token for token, _ in e.top]) for e in events]


@pytest.mark.parametrize("seed", range(3))
def test_requests_of_all_kinds_see_what_they_see_without_graphs(model, seed):
    seen = []
    for capture in (False, True):
        engine = Engine(model, max_batch=4, capture=capture)
        requests = random_requests(engine, random.Random(seed), 8)
        for place, request in enumerate(requests):
            k = [None, 0, 3, VOCAB][place % 4]
            request.params = replace(request.params, logprobs=k, prompt_logprobs=place % 5 == 0)
        events = finish(engine)
        seen.append([events[request] for request in requests])
    for plain, captured in zip(*seen):
        assert told(captured) == told(plain)
        for a, b in zip(plain, captured):
            assert b.logprob == pytest.approx(a.logprob, abs=1e-4)
            assert (a.prompt_logprobs is None) == (b.prompt_logprobs is None)


def test_what_comes_after_a_stop_token_is_left_out(model):
    """The stop is seen behind, in the middle of steps that were queued with it."""
    params = SamplingParams(40, temperature=1.0)
    free = texts(model, [2, 4], params, n=4)
    stops = {free[0][3], free[1][AT_ONCE + 2]}
    engine = Engine(model, max_batch=4, capture=True)
    requests = engine.submit([2, 4], replace(params, stop_tokens=tuple(stops)), n=4)
    later = engine.submit([7], params, n=2)  # take the places of those that stop
    events = finish(engine)
    for request, row in zip(requests, free):
        end = next((i for i, token in enumerate(row) if token in stops), len(row))
        assert (
            request.tokens == row[:end] == [e.token for e in events[request] if e.token is not None]
        )
        assert events[request][-1].finish == ("stop" if end < len(row) else "length")
    assert [r.tokens for r in later] == texts(model, [7], params, n=2)


def test_full_contexts_beside_rows_that_go_on(model):
    """Queued steps of a row that is full write nowhere else."""
    engine = Engine(model, max_batch=3, length=20, capture=True)
    full = engine.submit([1] * 17, SamplingParams(30), n=1)
    full += engine.submit([2] * 20, SamplingParams(30), n=1)
    (long,) = engine.submit([3], SamplingParams(30))
    finish(engine)
    assert [len(r.tokens) for r in full] == [4, 1] and {r.finish for r in full} == {"length"}
    assert len(long.tokens) == 20
    for request in (*full, long):
        assert request.tokens == alone(model, request)[: len(request.tokens)]


def test_no_step_is_queued_for_tokens_that_nobody_asked_for(model):
    engine = Engine(model, max_batch=2, capture=True)
    counted = []
    compute = engine.captured.compute
    engine.captured.compute = lambda *size: (counted.append(size), compute(*size))
    engine.submit([1, 2], SamplingParams(12))
    engine.submit([3], SamplingParams(5))
    finish(engine)
    assert len(counted) == 12


def test_set_aside_and_cancelled_while_steps_are_queued(model):
    params = SamplingParams(30, 0.9)
    engine = Engine(model, max_batch=3, capture=True)
    first, second, third = engine.submit([4, 2], params, n=3)
    events = [*engine.step(), *engine.step()]
    assert engine.flight is not None and not events
    engine.hold(first)
    engine.cancel(second)
    events += engine.step()
    assert [e.finish for e in events if e.request is second][-1] == "cancelled"
    engine.resume(first)
    assert not first.tokens and not second.tokens  # what was queued for them is gone
    finish(engine)
    assert [first.tokens, third.tokens] == [texts(model, [4, 2], params, 3)[i] for i in (0, 2)]
    engine.submit([1], params)
    engine.step(), engine.step()
    engine.clear()
    assert not engine.busy and engine.step() == []


@pytest.mark.parametrize("refused", [(), (0,), (1, 4), range(99)], ids=str)
def test_captures_that_are_refused_change_no_token(model, refused, monkeypatch, capsys):
    """The first, some, or all: one line, and texts that join and leave are what they are alone."""
    tried = itertools.count()

    def capture(function, stream, pool):
        if next(tried) in refused:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB\nmore")
        return graphs.Uncaptured(function)

    monkeypatch.setattr(graphs, "CapturedGraph", capture)
    monkeypatch.setattr(graphs, "on_stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    engine = Engine(model, max_batch=4, capture=True)
    engine.captured.graphs.captures = True
    engine.captured.graphs.stream, engine.captured.graphs.pool = None, None
    requests = random_requests(engine, random.Random(5), 8)
    finish(engine)
    for request in requests:
        assert request.tokens == alone(model, request)
    said = capsys.readouterr().err
    line = (
        "steps run without CUDA graphs, slower: CUDA out of memory. Tried to allocate 20.00 MiB\n"
    )
    assert said == (line if refused else "")
    assert next(tried) == (
        graphs.REFUSALS if len(refused) > 9 else len(engine.captured.graphs.kept)
    )


def test_rows_that_leave_or_move_before_their_first_step(model):
    """Where they are is not on the device yet, and their slots get others."""
    params = SamplingParams(20, 0.9, frequency_penalty=0.3)
    for gone in ((0,), (2,), (1, 0), (3, 0), (0, 1, 2, 3)):
        engine = Engine(model, max_batch=4, capture=True)
        requests = engine.submit([4, 2], params, n=3) + engine.submit([7, 1, 1], params)
        engine.step()
        assert engine.running == requests and len(engine.captured.joining) == 4
        for place in gone:
            engine.hold(requests[place])
        requests += engine.submit([5] * 6, params)
        engine.step()
        assert not {*engine.captured.joining} - {*range(4 - len(gone), 4)}
        for place in gone:
            engine.resume(requests[place])
        finish(engine)
        assert all(request.tokens == alone(model, request) for request in requests)


def test_a_step_for_which_memory_is_short_leaves_a_working_engine(model, monkeypatch):
    """As the server goes on after it."""
    engine = Engine(model, max_batch=4, capture=True)
    compute = engine.captured.compute
    engine.captured.compute = lambda *size: (_ for _ in ()).throw(torch.OutOfMemoryError("full"))
    engine.submit([1, 2, 3], SamplingParams(20), n=2)
    with pytest.raises(torch.OutOfMemoryError):
        finish(engine)
    engine.submit([1, 2, 4], SamplingParams(20, frequency_penalty=0.1))
    engine.admit(engine.waiting.popleft())
    engine.clear()
    assert not engine.captured.joining and not engine.prompts.unread
    engine.captured.compute = compute
    requests = random_requests(engine, random.Random(6), 5)
    finish(engine)
    assert all(request.tokens == alone(model, request) for request in requests)


@pytest.mark.parametrize("options", [dict(lookup=4), dict(draft=4)], ids=str)
def test_steps_of_changing_lengths_are_not_captured(model, options):
    engine = Engine(model, capture=True, **options)
    (request,) = engine.submit([1, 2, 1, 2], SamplingParams(20))
    finish(engine)
    assert engine.captured is None and request.tokens == alone(model, request)


# ---- generate ----

SETTINGS = [
    dict(temperature=0),
    dict(temperature=0.8, top_k=5),
    dict(top_p=0.8, min_p=0.01, stop_tokens=(3, 4)),
    dict(repetition_penalty=1.3, frequency_penalty=0.2),
]


@pytest.mark.parametrize("on_full", ["slide", "refill", "stop"])
def test_generate_gives_the_same_texts(model, on_full):
    """One after another with the same graphs, beyond the context too."""
    captured = CapturedSteps.of(model, 4, 48)
    for settings in SETTINGS:
        for prompt, n in (([3, 1, 4], 4), ([5] * 60, 2), ([1], 1)):
            params = SamplingParams(70, **settings)
            want = texts(model, prompt, params, n, on_full=on_full)
            assert texts(model, prompt, params, n, on_full=on_full, captured=captured) == want


def test_an_iterator_that_is_given_up_leaves_nothing_behind(model):
    captured, params = CapturedSteps.of(model, 2, 48), SamplingParams(30)
    tokens = iter(generate(model, [1, 2], params, 2, captured=captured))
    for _ in range(4):
        next(tokens)
    tokens.close()
    want = texts(model, [7], params, first_row=1)
    assert texts(model, [7], params, first_row=1, captured=captured) == want


def test_a_model_without_keys_and_values_is_decoded_without():
    model = Megabyte(MegabyteConfig(**MEGABYTE)).eval()
    assert CapturedSteps.of(model, 1, 16) is None
    engine = Engine(model, capture=True)
    (request,) = engine.submit([1, 2, 3], SamplingParams(9))
    finish(engine)
    assert engine.captured is None and request.tokens == alone(model, request)


# ---- what a graph can capture ----

DRAWS = {
    "plain": [SamplingParams()],
    "greedy": [SamplingParams(temperature=0)],
    "top_k": [SamplingParams(temperature=0.8, top_k=9)],
    "top_p": [SamplingParams(top_p=0.9)],
    "different": [
        *(SamplingParams(top_k=9, min_p=0.1), SamplingParams(temperature=0, vocab_limit=9)),
    ],
    "penalties": [SamplingParams(repetition_penalty=1.3, logit_bias={3: 1.0}), SamplingParams()],
    "logprobs": [SamplingParams(logprobs=2)],
}


def made_on_meta(model, params: list[SamplingParams]) -> CapturedSteps:
    """Steps on a device where tensors have no numbers: to look at one is an error there."""
    model = copy.deepcopy(model).to("meta")
    captured = CapturedSteps(model, model.new_cache(4, 48))
    for slot, p in enumerate(params):
        captured.put(slot, Row((1, 2), p, slot, [3]), 2)
    captured.join()
    return captured


@pytest.mark.parametrize("name", DRAWS)
@torch.inference_mode()
def test_what_is_captured_looks_at_no_number(model, name):
    params = DRAWS[name]
    captured = made_on_meta(model, params)
    prompts = Prompts(captured.model, captured.cache, Prefixes(0), captured.graphs)
    draw = Draw.of([Row((1,), p) for p in params], VOCAB)
    if draw.logprobs is not None:
        captured.scores[draw.logprobs] = torch.zeros((4, 1 + 2 * draw.logprobs), device="meta")
    with Log() as log:
        prompts.compute(2, 16)
        captured.compute(2, 16)
        captured.choose(2, draw)
    assert len(log.operations) > 30
    # a list as an index becomes a tensor on the host, which a capture may not copy; no mode sees it
    assert not [name for name, _ in log.operations if name.startswith("aten.index.")]
    # nor does what it does depend on the tokens and lengths that the host knows
    for slot in range(2):
        captured.put(slot, Row((1, 2, 5), params[-1], slot, [3, 8]), 4)
    captured.join()
    with Log() as again:
        prompts.compute(2, 16)
        captured.compute(2, 16)
        captured.choose(2, draw)
    assert again.operations == log.operations


@pytest.mark.parametrize("look", [lambda x: x.sum().item(), torch.nonzero, lambda x: x[x > 0]])
def test_a_look_at_a_number_would_be_seen(look):
    with pytest.raises((RuntimeError, NotImplementedError)):
        look(torch.zeros(3, device="meta"))


@torch.inference_mode()
def test_results_stay_where_they_are(model):
    """A replay writes to addresses: no step may give a buffer another."""
    captured = CapturedSteps.of(model, 4, 48)
    rows = [Row((1, 2), SamplingParams(logit_bias={1: 1.0}, logprobs=1), i, [3]) for i in range(3)]

    def buffers() -> list[int]:
        own = [captured.cache.k, captured.cache.v, captured.logits, *captured.scores.values()]
        own += [captured.rows.token, captured.rows.ints, captured.rows.floats]
        return [x.data_ptr() for x in (*own, *captured.rows.texts.all)]

    for slot, row in enumerate(rows):
        captured.put(slot, row, 2)
    list(captured.launch(rows, 2).read())
    before = buffers()
    captured.move(2, 0)
    captured.put(1, rows[0], 2)
    list(captured.launch(rows[:2], AT_ONCE).read())
    assert buffers() == before
