"""bonsai/engine/cuda/prompts.py: prompts read together are what they are one by one.

Without CUDA the functions are called where a graph would be replayed, as in test_steps.py.
"""

import copy
import random
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from helpers.engine import alone, finish, random_requests
from helpers.on_meta import Log
from helpers.tiny_model import VARIANTS, VOCAB, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from bonsai.engine import Engine, SamplingParams, prefill_decode
from bonsai.engine.cuda import prompts
from bonsai.engine.cuda.graphs import Graphs
from bonsai.engine.cuda.prompts import Prompts, padded
from bonsai.engine.prefix_cache import Prefixes


@pytest.fixture(scope="module")
def model():
    return tiny(block_size=48)


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
    monkeypatch.setattr(prefill_decode, "SHORTEST", 8)
    for name, tokens in dict(PROMPT=4, STRIDE=16, LONGEST=64, LEAST=1).items():
        monkeypatch.setattr(prompts, name, tokens)


@pytest.fixture
def read(monkeypatch) -> list[tuple[int, int]]:
    """Rows and size of each graph that reads."""
    seen, compute = [], Prompts.compute
    monkeypatch.setattr(
        Prompts, "compute", lambda self, *shape: (seen.append(shape), compute(self, *shape))
    )
    return seen


def prompt(length: int, first: int = 0) -> list[int]:
    """Prompts that begin with different tokens."""
    return [(first + i * i) % VOCAB for i in range(length)]


def submit(engine, prompts, n: int = 1) -> list:
    params = SamplingParams(4, 0.7)
    return [request for p in prompts for request in engine.submit(p, params, n)]


def right(model, requests) -> bool:
    return all(r.tokens and r.tokens == alone(model, r)[: len(r.tokens)] for r in requests)


# ---- which are read together ----


def test_sizes_are_few():
    assert [padded(n) for n in (1, 4, 5, 16, 17, 32, 33)] == [4, 4, 8, 16, 32, 32, 48]


def test_prompts_of_a_size_share_a_graph(model, read):
    """All but the last token of each; rows are a power of two, LONGEST tokens at most."""
    engine = Engine(model, max_batch=20, capture=True)
    lengths = [3, 9, 4, 8, 5, 2, 7, 17, 9, 8, 6, 9, 1, 30, 8, 8, 48, 41]
    requests = submit(engine, (prompt(n, i) for i, n in enumerate(lengths)))
    engine.step()
    assert engine.running == requests  # slots in the order in which they came
    # four of 4; nine of 8; one of 16 and of 32; two that find no place beside each other
    assert read == [(4, 4), (8, 8), (1, 8), (1, 16), (1, 32), (1, 48), (1, 48)]
    finish(engine)
    more = submit(engine, (prompt(n, i) for i, n in enumerate([9, 8, 7])))
    finish(engine)
    assert read[7:] == [(4, 8)]  # a row is of nobody
    kept = [key[1:] for key in engine.captured.graphs.kept if key[0] == "prompts"]
    assert sorted(kept) == sorted({*read})
    assert right(model, requests + more)


def test_one_memory_for_all_sizes(model):
    for max_batch, length, tokens in ((1, 48, 48), (9, 48, 96), (9, 10, 70), (2, 10, 20)):
        staging = (reader := Engine(model, max_batch, length, capture=True).prompts).staging
        assert len(staging.lengths) * staging.length == tokens >= len(reader.ids)
        assert len(reader.ids) == min(tokens, prompts.LONGEST)
        for size in (4, 8, reader.longest):
            part = staging.reshaped(len(reader.ids) // size, size)
            assert part.k.data_ptr() == staging.k.data_ptr()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_block(variant, read):
    model = tiny(block_size=48, **VARIANTS[variant])
    engine = Engine(model, max_batch=9, capture=True)
    requests = submit(engine, (prompt(n, n) for n in (7, 20, 9, 6, 8, 15, 22)))
    finish(engine)
    assert right(model, requests)
    assert read == [(4, 8), (2, 32), (1, 16)]


def test_a_prompt_longer_than_graphs_read(model, read, monkeypatch):
    monkeypatch.setattr(prompts, "LONGEST", 20)
    engine = Engine(model, max_batch=4, capture=True)
    short = submit(engine, [prompt(20), prompt(21, 1)])
    long = submit(engine, [prompt(30, 2)], n=2) + submit(engine, [prompt(22, 3)], n=3)
    finish(engine)
    assert read == [(1, 20), (1, 20)] and right(model, short + long)


# ---- prompts that are known ----


def test_answers_to_a_prompt_are_read_once(model, read):
    engine = Engine(model, max_batch=8, capture=True)
    requests = submit(engine, [prompt(6), prompt(7, 1)], n=3) + submit(engine, [prompt(6)])
    engine.step()
    assert read == [(2, 8)] and not engine.prefixes.rows  # nobody waits: nothing is kept
    finish(engine)
    assert right(model, requests)


def test_prompts_with_several_answers_beside_others(model, read):
    """Of one size, in one graph: each answer's slot gets its prompt."""
    engine = Engine(model, max_batch=10, capture=True)
    requests = []
    for place, n in enumerate((1, 3, 2, 1, 3)):
        requests += submit(engine, [prompt(6 + place % 4, place)], n)
    engine.step()
    assert read == [(8, 8)]
    assert engine.cache.lengths == [len(r.prompt) - 1 for r in requests]
    finish(engine)
    assert right(model, requests)


def operations(model, count: int, budget: int, **settings) -> int:
    """How many a step takes to admit prompts of one size, without the model's."""
    engine = Engine(model, max_batch=8, prefix_cache=budget, capture=True)
    engine.captured.graphs.run = lambda key, function: None
    for place in range(count):
        engine.submit(prompt(8, place), SamplingParams(4, 0.7, **settings))
    with Count() as counted:
        engine.step()
        engine.captured.join()
    return counted.calls


class Count(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.calls += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [{}, dict(frequency_penalty=0.5, logit_bias={3: 1.0})])
def test_many_prompts_take_no_more_operations_than_one(model, settings):
    """Each would take longer than what it does: on a GPU a launch, or a copy from the host."""
    few, many = (operations(model, count, 0, **settings) for count in (1, 8))
    assert many == few < 60
    # to remember one is a view and two copies of each: only of those that are left at the end
    few, more, all_kept = (operations(model, 8, budget, **settings) for budget in (14, 21, 1000))
    assert all_kept - few == 6 * (more - few) > 0


def test_answers_that_wait_for_a_place_find_their_prompt(model, read):
    engine = Engine(model, max_batch=3, capture=True)
    requests = submit(engine, [prompt(7, 1)]) + submit(engine, [prompt(6), prompt(9, 2)], n=4)
    engine.step()
    assert read == [(2, 8)] and [*engine.prefixes.rows] == [tuple(prompt(6)[:-1])]
    finish(engine)
    assert read == [(2, 8), (1, 8)] and right(model, requests)


@contextmanager
def passes(engine):
    """A list of the shapes that go through the model."""
    shapes = []
    hook = engine.model.register_forward_pre_hook(
        lambda m, args: shapes.append(tuple(args[0].shape))
    )
    yield shapes
    hook.remove()


def test_answers_that_wait_keep_their_prompt_from_being_forgotten(model, read, monkeypatch):
    """Whatever was admitted before it in the same step."""
    monkeypatch.setattr(prompts, "LONGEST", 20)
    engine = Engine(model, max_batch=3, capture=True)
    same, other, long = prompt(9), prompt(8, 1), prompt(30, 2)
    requests = submit(engine, [same, other]) + submit(engine, [same], n=2)
    finish(engine)
    assert read == [(2, 8)]
    requests += submit(engine, [other, same]) + submit(engine, [long], n=2)
    with passes(engine) as shapes:
        finish(engine)
    assert len(read) == 2 and shapes.count((1, 29)) == 1 and right(model, requests)


def test_a_short_beginning_in_common_is_read_again(model, read, monkeypatch):
    """Two tokens, as of a chat's template, are not worth a pass of their own; eight are."""
    monkeypatch.setattr(prompts, "LEAST", 8)
    engine = Engine(model, 4, prefix_cache=200, capture=True)
    requests = submit(engine, [[1, 2, *prompt(5, first=i)] for i in range(4)])
    finish(engine)
    assert read == [(4, 8)] and right(model, requests)
    read.clear()
    more = submit(engine, [[1, 2, *prompt(5, first=9)], [*requests[0].prompt, 3, 4, 5]])
    finish(engine)
    assert right(model, more) and read == [(1, 8), (1, 16)]  # of the second six were known
    read.clear()
    more = submit(engine, [[*more[1].prompt, 6, 7]])
    finish(engine)
    assert right(model, more) and not read  # eight and more are taken, the rest by itself


def test_a_prompt_waits_for_one_that_it_begins_like(model, read):
    """Where that is remembered: only what differs is read."""
    first, other, later = prompt(9), prompt(8, 1), [*prompt(6), 9, 9]
    for budget, want in ((40, [(2, 8), (1, 1)]), (0, [(4, 8)])):
        engine = Engine(model, 4, prefix_cache=budget, capture=True)
        requests = submit(engine, [first, other, later])
        with passes(engine) as shapes:
            engine.step()
        assert shapes == want
        known = {tuple(r.prompt[:-1]) for r in requests} if budget else set()
        assert {*engine.prefixes.rows} == known
        finish(engine)
        assert right(model, requests)


def test_one_that_is_not_captured_waits_too(model):
    engine = Engine(model, 4, prefix_cache=40, capture=True)
    requests = submit(engine, [prompt(9), prompt(8, 1)])
    engine.submit([*prompt(6), 9, 9], SamplingParams(0))
    with passes(engine) as shapes:
        engine.step()
    assert shapes == [(2, 8), (1, 2)]
    finish(engine)
    assert right(model, requests)


def all_told(engine, seed: int) -> list[tuple]:
    """Of each of some requests of all kinds, of which some are set aside and one is cancelled: its
    tokens, how it ended, and how many tokens of its prompt were scored."""
    requests, events = random_requests(engine, random.Random(seed), 12), []
    for place, request in enumerate(requests):
        request.params = replace(request.params, prompt_logprobs=place % 5 == 0)
    for place in (1, 4):
        events += engine.step()
        engine.hold(requests[place])
        engine.resume(requests[place])  # its tokens, too, are read again
    engine.cancel(requests[-1])  # it has no place yet
    events += [event for of in finish(engine).values() for event in of]
    scored = {e.request: len(e.prompt_logprobs) for e in events if e.prompt_logprobs}
    return [(r.tokens, r.finish, scored.get(r, 0)) for r in requests]


@pytest.mark.parametrize("name", ["classic", "bigrams"])
@pytest.mark.parametrize("budget", [0, 25, 10**6])
@pytest.mark.parametrize("seed", range(3))
def test_requests_of_all_kinds_get_what_they_get_one_by_one(seed, budget, name, read, monkeypatch):
    """Without graphs, by graphs that read one prompt each, and by graphs that read several; these
    remember the same prompts where there is room for all of them."""
    model = tiny(block_size=48, **VARIANTS[name])
    together = Engine(model, 6, capture=True, prefix_cache=budget)
    want = all_told(Engine(model, 6, prefix_cache=budget), seed)
    assert all_told(together, seed) == want
    graphs, read[:] = len(read), []
    add = Prompts.add
    monkeypatch.setattr(Prompts, "add", lambda self, *a, **k: (add(self, *a, **k), self.read()))
    alone = Engine(model, 6, capture=True, prefix_cache=budget)
    assert all_told(alone, seed) == want
    assert graphs <= len(read) and {rows for rows, _ in read} == {1}
    if budget > 25:  # else some may be forgotten a few prompts later
        assert {*together.prefixes.rows} == {*alone.prefixes.rows}


def test_a_step_that_failed_leaves_nothing_to_read(model, read, monkeypatch):
    engine = Engine(model, capture=True)
    submit(engine, [prompt(5), prompt(6, 1)])
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Prompts, "read", lambda self: (_ for _ in ()).throw(MemoryError()))
        engine.step()
    engine.clear()
    requests = submit(engine, [prompt(14)])
    finish(engine)
    assert read == [(1, 16)] and right(model, requests)


def test_what_is_known_of_a_prompt_is_asked_once(model, monkeypatch):
    """Each time all prompts that are known are gone through."""
    asked, nearest = [], Prefixes.nearest
    monkeypatch.setattr(
        Prefixes, "nearest", lambda self, tokens: (asked.append(tokens), nearest(self, tokens))[1]
    )
    engine = Engine(model, prefix_cache=99, capture=True)
    prompts = [prompt(9), prompt(9) + [1, 1], prompt(9, 3), prompt(9) + [1, 1]]
    for p in prompts:
        requests = submit(engine, [p])
        finish(engine)
        assert right(model, requests)
    assert asked == [tuple(p[:-1]) for p in prompts]


# ---- what a graph can capture ----


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_reading_looks_at_no_number(variant):
    """Nor does what it does depend on which tokens they are, nor on how many slots they go into."""
    model = copy.deepcopy(tiny(block_size=48, **VARIANTS[variant])).to("meta")
    reader = Prompts(model, model.new_cache(4, 48), Prefixes(0), Graphs(torch.device("meta")))
    logs = []
    for lengths in ((16, 9), (12, 13, 15), (5,)):
        for slot, length in enumerate(lengths):
            reader.add(slot, tuple(prompt(length, slot)), keep=False)
        with Log() as log:
            reader.compute(4, 16)
        logs.append(log.operations)
        reader.read()
    assert logs[0] == logs[1] == logs[2] and len(logs[0]) > 30
    # a list as an index becomes a tensor on the host, which a capture may not copy; no mode sees it
    assert not [name for name, _ in logs[0] if name.startswith("aten.index.")]


@torch.inference_mode()
def test_replays_find_everything_where_it_was(model):
    """A replay reads and writes addresses: no prompt may give a buffer another."""
    cache = model.new_cache(4, 48)
    reader = Prompts(model, cache, Prefixes(0), Graphs(torch.device("cpu")))
    caches = (reader.staging, cache)

    def addresses() -> list[int]:
        return [x.data_ptr() for x in (reader.ids, *(x for c in caches for x in (c.k, c.v)))]

    before = addresses()
    for slot in range(4):
        reader.add(slot, tuple(prompt(8, slot)), keep=False)
    reader.read()
    assert addresses() == before and reader.staging is caches[0]
