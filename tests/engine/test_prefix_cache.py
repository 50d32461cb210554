"""bonsai/engine/prefix_cache.py: what is known of a prompt is not computed again."""

import random

import numpy as np
import pytest
import torch
from helpers.engine import alone, finish
from helpers.tiny_model import VOCAB, tiny

from bonsai.engine import Engine, SamplingParams
from bonsai.engine.prefix_cache import Filled, Prefixes, shared
from bonsai.system.errors import UserError


@pytest.fixture(scope="module")
def model():
    return tiny(block_size=48)


def test_a_known_prefix_is_not_computed_again(model):
    engine = Engine(model, prefix_cache=60)
    prompt = [i % VOCAB for i in range(30)]
    greedy = SamplingParams(max_new_tokens=1, temperature=0)
    computed = []
    for p in (prompt, prompt[:20] + [7, 7], prompt, prompt[:12], [9] + prompt[:29]):
        shapes = []
        hook = engine.model.register_forward_pre_hook(
            lambda m, args, shapes=shapes: shapes.append(args[0].size(1))
        )
        (request,) = engine.submit(p, greedy)
        finish(engine)
        hook.remove()
        assert request.tokens == alone(model, request)
        assert sum(map(len, engine.prefixes.rows)) <= 60
        computed.append(shapes)
    # all; what differs; nothing, as the logits are kept too; the last token, for its logits; all
    assert computed == [[30], [2], [], [1], [30]]


class FakeRow(list):
    """The tokens of one row of a cache: as much of one as prefixes need."""

    shortens = True

    def copy_row(self, row: int, source: "FakeRow", source_row: int, length: int) -> None:
        self[:] = source[:length]

    def view(self, begin: int, end: int) -> "FakeRow":
        return self

    def clone(self, length: int) -> "FakeRow":
        return FakeRow(self[:length])


def remember(prefixes: Prefixes, *prompt: int, keep: bool = False) -> None:
    filled = [Filled(prompt, 0, keep)]
    prefixes.store(FakeRow(prompt), filled, torch.tensor([float(sum(prompt))]))


def restored(prefixes: Prefixes, *prompt: int) -> tuple[list[int], float | None]:
    """What of a prompt was known, and the logits behind it where those are."""
    row = FakeRow()
    logits = prefixes.restore(prompt, row)
    return list(row), None if logits is None else logits.item()


def test_the_longest_common_beginning_is_taken():
    prefixes = Prefixes(20)
    remember(prefixes, 1, 2, 3, 4)
    remember(prefixes, 1, 2, 9)
    assert restored(prefixes, 1, 2, 3, 7) == ([1, 2, 3], None)
    assert restored(prefixes, 1, 2, 9, 9) == ([1, 2, 9], None)
    assert restored(prefixes, 5, 1) == ([], None)


def test_the_logits_are_known_of_the_very_prompt_only():
    """Else one token is left to compute, whose logits are the prompt's."""
    prefixes = Prefixes(20)
    remember(prefixes, 1, 2, 3)
    assert restored(prefixes, 1, 2, 3) == ([1, 2, 3], 6.0)
    assert restored(prefixes, 1, 2) == ([1], None)
    assert restored(prefixes, 1) == ([], None)


def test_the_least_recently_used_go_first():
    prefixes = Prefixes(6)
    remember(prefixes, 1, 1)
    remember(prefixes, 2, 2)
    remember(prefixes, 3, 3)
    restored(prefixes, 1, 1)
    remember(prefixes, 4, 4)
    assert restored(prefixes, 1, 1)[0] == [1, 1] and restored(prefixes, 2, 2)[0] == []
    remember(prefixes, *range(7))  # more than there is room for
    assert restored(prefixes, *range(7))[0] == []


def test_a_beginning_is_forgotten_for_what_goes_on_with_it():
    prefixes = Prefixes(100)
    remember(prefixes, 1, 2)
    remember(prefixes, 1, 2, 3)
    assert list(prefixes.rows) == [(1, 2, 3)]


def test_one_prompt_is_held_beyond_the_budget_until_the_next():
    prefixes = Prefixes(0)
    remember(prefixes, 1, 2, keep=True)
    assert restored(prefixes, 1, 2) == ([1, 2], 3.0)
    remember(prefixes, 3, keep=False)
    assert not prefixes.rows


@pytest.mark.parametrize("seed", range(20))
def test_the_nearest_is_the_first_that_shares_most(seed):
    rng, prefixes = random.Random(seed), Prefixes(10**6)
    for _ in range(12):
        remember(prefixes, *rng.choices((1, 2), k=rng.randint(1, 9)))
    for _ in range(40):
        prompt = tuple(rng.choices((1, 2, 3), (9, 9, 1), k=rng.randint(1, 9)))
        common = {p: shared(np.array(p), np.array(prompt)) for p in prefixes.rows}
        best = max(common, key=common.get)
        assert prefixes.nearest(prompt) == ((best, common[best]) if common[best] else ((), 0))


class FakeRows(list):
    """Rows of a cache, and how often one of them was copied."""

    copies = 0

    def view(self, begin: int, end: int) -> "FakeRows":
        part = FakeRows(self[begin:end])
        part.whole = self
        return part

    def clone(self, length: int) -> FakeRow:
        self.whole.copies += 1
        if self.whole.copies > self.whole.room:
            raise MemoryError
        return FakeRow(self[0][:length])


def told(prefixes: Prefixes) -> list:
    return [(p, k.row, k.ids.tolist(), k.logits.item()) for p, k in prefixes.rows.items()]


@pytest.mark.parametrize("seed", range(40))
def test_many_remembered_at_once_are_those_remembered_one_by_one(seed):
    """In the same order; those that are forgotten again at once are not copied."""
    rng, logits = random.Random(seed), torch.tensor([1.0])
    budget = rng.choice([0, 6, 20, 99])
    together, alone = Prefixes(budget), Prefixes(budget)
    for _ in range(4):
        prompts = {tuple(rng.choices((1, 2), k=rng.randint(1, 7))) for _ in range(9)}
        filled = [Filled(p, row, rng.random() < 0.2) for row, p in enumerate(sorted(prompts))]
        rng.shuffle(filled)
        cache = FakeRows(map(list, sorted(prompts)))
        cache.room, before = 9, {*together.rows}
        together.store(cache, filled, logits)
        for one in filled:
            cache_of_one = FakeRows([one.prompt])
            cache_of_one.room = 1
            alone.store(cache_of_one, [one._replace(row=0)], logits)
        assert told(together) == told(alone) and together.held == alone.held
        assert cache.copies >= len({*together.rows} - before)
        assert cache.copies <= len(together.rows)


def test_prompts_for_which_memory_is_short_are_not_known():
    prefixes, cache = Prefixes(20), FakeRows([[1, 1], [2, 2], [3, 3]])
    remember(prefixes, 9, 9)
    cache.room = 1
    with pytest.raises(MemoryError):
        prefixes.store(cache, [Filled((n, n), n - 1, False) for n in (1, 2, 3)], torch.zeros(1))
    assert list(prefixes.rows) == [(9, 9), (1, 1)]
    assert restored(prefixes, 2, 2)[0] == [] and restored(prefixes, 1, 1)[0] == [1, 1]


def test_a_budget_below_nothing():
    with pytest.raises(UserError, match="prefix_cache=-1"):
        Prefixes(-1)


def test_shared_is_what_counting_token_by_token_gives():
    draw = random.Random(0)
    for _ in range(500):
        a, b = ([draw.randint(0, 1) for _ in range(draw.randint(1, 6))] for _ in range(2))
        n = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
        assert shared(np.array(a), np.array(b)) == n, (a, b)
