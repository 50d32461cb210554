"""The engine of many requests against `generate`, the uncached model and plain reference code."""

import random
from collections import deque

import pytest
import torch
from helpers.engine import alone, finish, finish_as_plain, random_requests
from helpers.tiny_model import VOCAB, texts, tiny
from torch import nn
from torch.nn import functional as F

from bonsai.engine import Engine, SamplingParams, prefill_decode
from bonsai.models.contract import LanguageModel
from bonsai.system.errors import UserError


@pytest.fixture(scope="module")
def model():
    return tiny(block_size=48)


# ---- requests beside others ----


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "options",
    [
        *({}, dict(prefix_cache=60), dict(prefix_cache=60, lookup=5), dict(draft=4)),
        dict(prefix_cache=60, capture=True),
    ],
    ids=str,
)
def test_a_request_gets_the_tokens_it_gets_alone(model, seed, options, monkeypatch):
    """Arriving at random times, beside others, after others were cancelled or set aside."""
    monkeypatch.setattr(prefill_decode, "SHORTEST", 8)
    rng = random.Random(seed)
    max_batch = rng.choice([1, 3, 8])
    engine = Engine(model, max_batch, **options)
    requests, events = [], {}
    for _ in range(12):
        requests += random_requests(engine, rng, rng.randrange(3))
        for _ in range(rng.randrange(8)):
            for event in engine.step():
                events.setdefault(event.request, []).append(event)
        if requests and rng.random() < 0.3:
            engine.cancel(rng.choice(requests))
        if requests and rng.random() < 0.5:
            engine.hold(rng.choice(requests))
            engine.resume(rng.choice(requests))
    for request in requests:
        engine.resume(request)
    for request, more in finish(engine).items():
        events.setdefault(request, []).extend(more)
    assert len(requests) > 5
    for request in requests:
        want, got = alone(model, request), request.tokens
        assert [e.token for e in events[request] if e.token is not None] == got
        assert [e.finish for e in events[request]][-1] == request.finish is not None
        assert all(e.finish is None for e in events[request][:-1])
        if request.finish == "cancelled":
            assert got == want[: len(got)]
        else:
            assert got == want
            stopped = len(got) < request.params.max_new_tokens
            stopped &= len(request.prompt) + len(got) <= engine.length
            assert (request.finish == "stop") == stopped


def test_n_answers_share_one_prefill(model):
    engine = Engine(model, max_batch=2)
    shapes = []
    hook = engine.model.register_forward_pre_hook(lambda m, args: shapes.append(args[0].shape))
    requests = engine.submit([5, 4, 3], SamplingParams(max_new_tokens=4), n=5)
    finish(engine)
    hook.remove()
    assert [tuple(s) for s in shapes].count((1, 3)) == 1  # five rows, two at a time
    assert [r.tokens for r in requests] == texts(model, [5, 4, 3], max_new_tokens=4, n=5)
    assert not engine.prefixes.rows or engine.prefixes.budget  # nothing is kept after them


def test_a_full_context_ends_a_request(model):
    engine = Engine(model, length=12)
    (request,) = engine.submit([1, 2, 3], SamplingParams(max_new_tokens=100, temperature=0))
    finish(engine)
    assert request.finish == "length" and len(request.tokens) == 12 - 3 + 1
    assert request.tokens == alone(model, request)[: len(request.tokens)]


def test_no_tokens_asked_for(model):
    engine = Engine(model)
    (request,) = engine.submit([1, 2], SamplingParams(max_new_tokens=0, prompt_logprobs=True))
    (event,) = engine.step()
    assert event.token is None and event.finish == request.finish == "length"
    assert len(event.prompt_logprobs) == 2 and not engine.busy


def test_cancelling_a_waiting_request(model):
    engine = Engine(model, max_batch=1)
    one, two = engine.submit([1], SamplingParams(max_new_tokens=3), n=2)
    engine.cancel(two)
    events = finish(engine)
    assert [e.finish for e in events[two]] == ["cancelled"] and two.tokens == []
    assert len(one.tokens) == 3


class NeverWalked(deque):
    def __iter__(self):
        raise AssertionError("a step has looked at all that wait")


def test_a_step_does_not_look_at_all_that_wait(model):
    """A task may submit a hundred thousand questions at once."""
    engine = Engine(model, max_batch=2)
    engine.submit([1], SamplingParams(max_new_tokens=3), n=9)
    engine.waiting = NeverWalked(engine.waiting)
    assert [sum(map(bool, engine.step())) for _ in range(3)] == [2, 2, 2]
    engine.cancel(engine.waiting[3])
    with pytest.raises(AssertionError):  # now it has to
        engine.step()


class NoCache(LanguageModel):
    """An architecture that has no cache of its own: the contract's remembers the tokens."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, idx, targets=None):
        return self.inner(idx, targets)


def test_a_model_without_a_cache_goes_through_the_same_engine(model):
    plain = NoCache(model)
    engine = Engine(plain, max_batch=3, prefix_cache=30)
    params = SamplingParams(max_new_tokens=9, prompt_logprobs=True)
    requests = engine.submit([1, 2, 3], params, n=2) + engine.submit([4], params, n=2)
    events = finish(engine)
    for request in requests:
        assert request.tokens == alone(model, request) == alone(plain, request)
    scored = [lp for lp, _ in events[requests[0]][0].prompt_logprobs]
    want = F.log_softmax(model(torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 3]]))[0], -1)[0]
    assert scored[1:] == pytest.approx([want[0, 2].item(), want[1, 3].item()], abs=1e-4)


def test_buckets_of_the_compiled_step_change_nothing(model, monkeypatch):
    """The same tokens with rows and positions rounded up; what torch.compile makes of it is left
    to tests/benchmarks/test_gpu.py."""
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)
    monkeypatch.setattr(prefill_decode, "SHORTEST", 8)
    engine = Engine(model, max_batch=6, compile=True)
    requests = random_requests(engine, random.Random(3), 9)
    finish(engine)
    assert len(engine.compiled.buckets) > 4
    for request in requests:
        assert request.tokens == alone(model, request)


class NotKept(RuntimeError):
    """As torch.compile's, around what has gone wrong."""

    def __init__(self, cause: Exception):
        super().__init__("InductorError")
        self.inner_exception = cause


@pytest.mark.parametrize(
    "cause, why",
    [
        (OSError(28, "No space left on device", "/cache/x.py"), "the disk is full: /cache/x.py"),
        (OSError(13, "Permission denied", "/cache/x.py"), "Permission denied: /cache/x.py"),
        (RuntimeError("g++: error:\n x.o: No space left on device"), "the disk is full"),
        (RuntimeError("a mistake of torch"), None),
    ],
    ids=str,
)
def test_steps_that_cannot_be_kept_are_not_compiled(model, monkeypatch, capfd, cause, why):
    """A line for each bucket, and the same texts; those that were compiled before stay."""
    compiled, tried = [], []

    def compile(function, **options):
        def step(idx, part):
            if part.length > 8:
                tried.append(tuple(idx.shape))
                raise NotKept(cause)
            compiled.append(tuple(idx.shape))
            return function(idx, part)

        return step

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(prefill_decode, "SHORTEST", 8)
    engine = Engine(model, max_batch=2, compile=True)
    for _ in range(2):
        requests = engine.submit([1, 2], SamplingParams(max_new_tokens=12), n=2)
        if why is None:
            with pytest.raises(RuntimeError, match="Inductor"):
                finish(engine)
            return
        finish(engine)
        for request in requests:
            assert request.tokens == alone(model, request)
    line = f"steps of 2 rows and 16 positions are not compiled, slower: {why}\n"
    assert capfd.readouterr().err == line and tried == [(2, 1)]
    assert compiled == 2 * 6 * [(2, 1)]


# ---- tokens guessed ahead ----


@pytest.mark.parametrize("temperature", [0, 0.6])
@pytest.mark.parametrize("cached", [True, False])
def test_repetition_takes_fewer_steps_and_the_same_tokens(temperature, cached):
    """A model with a strong habit: each token is likely to be followed by the next."""
    model = tiny(block_size=96, n_layer=1)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        width = model.config.n_embd
        model.transformer.wte.weight[:10, :10] = torch.eye(10)
        model.transformer.ln_f.weight.fill_(1)
        head = torch.zeros(VOCAB, width)
        head[(torch.arange(10) + 1) % 10, torch.arange(10)] = 2.5
        model.lm_head.weight = nn.Parameter(head)
    engine = Engine(model if cached else NoCache(model), lookup=6)
    params = SamplingParams(max_new_tokens=70, temperature=temperature, top_k=3, logprobs=2)
    request, steps = finish_as_plain(engine, model, [0, 1, 2, 3], params)
    assert len(request.tokens) == 70 and steps < 45


# ---- log-probabilities ----


def test_logprobs_are_the_models_own(model):
    """Before temperature, penalties and filters; also of the prompt."""
    params = SamplingParams(
        max_new_tokens=6, temperature=0.5, top_k=3, logprobs=4, prompt_logprobs=True,
        repetition_penalty=1.5, vocab_limit=25,
    )  # fmt: skip
    prompt = [i % 25 for i in range(9)]
    engine = Engine(model)
    (request,) = engine.submit(prompt, params)
    events = finish(engine)[request]
    ids = torch.tensor([prompt + request.tokens])
    with torch.no_grad():
        logp = F.log_softmax(model(ids, ids)[0][0], dim=-1)
    first = events[0].prompt_logprobs
    assert first[0] == (None, None) and len(first) == 9
    assert all(e.prompt_logprobs is None for e in events[1:])
    scored = first[1:] + [(e.logprob, e.top) for e in events]
    for place, (own, top) in enumerate(scored):
        want = logp[place]
        assert own == pytest.approx(want[ids[0, place + 1]].item(), abs=1e-4)
        values, tokens = want[:25].topk(4)
        assert [token for token, _ in top] == tokens.tolist()
        assert [p for _, p in top] == pytest.approx(values.tolist(), abs=1e-4)
    (request,) = engine.submit(prompt, SamplingParams(max_new_tokens=1, logprobs=0))
    (event,) = finish(engine)[request]
    assert event.top == [] and event.logprob < 0


# ---- mistakes ----


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda m: Engine(m, max_batch=0), "max_batch=0"),
        (lambda m: Engine(m, length=1000), "length=1000"),
        (lambda m: Engine(m, quantize="int3"), "quantize=int3 is not one of int8"),
        (lambda m: Engine(m, prefix_cache=-1), "prefix_cache=-1"),
        (lambda m: Engine(m, lookup=-1), "lookup=-1"),
        (lambda m: Engine(m, draft=-1), "draft=-1"),
        (lambda m: Engine(m, lookup=4, compile=True), "choose one"),
        (lambda m: Engine(m, draft=4, compile=True), "choose one"),
        (lambda m: Engine(m, draft=4, lookup=4), "choose one"),
        (lambda m: Engine(m, draft=4, quantize="int8"), "not for quantize=int8"),
        (lambda m: Engine(m).submit([], SamplingParams()), "prompt is empty"),
        (lambda m: Engine(m).submit([1] * 49, SamplingParams()), "49 tokens, the context 48"),
        (lambda m: Engine(m).submit([VOCAB], SamplingParams()), "outside the model's vocabulary"),
        (lambda m: Engine(m).submit([1], SamplingParams(), n=0), "n=0"),
        (lambda m: Engine(m).submit([1], SamplingParams(logit_bias={99: 1})), "token 99"),
        (lambda m: Engine(NoCache(m), compile=True), "compile=True needs"),
    ],
)
def test_impossible_requests_say_so_at_once(model, call, says):
    with pytest.raises(UserError, match=says):
        call(model)
