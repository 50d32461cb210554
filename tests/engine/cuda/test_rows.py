"""bonsai/engine/cuda/rows.py against sampling.py: the same tokens, whatever the rows' settings."""

import random
from itertools import product

import pytest
import torch

from bonsai.engine.cuda.rows import Draw, Rows, adjusts, next_tokens, packed_scores, unpacked
from bonsai.engine.sampling import Row, SamplingParams, sample_next, scores

V = 50
FILTERS = {
    "greedy": dict(temperature=0),
    "plain": {},
    "cold": dict(temperature=1e-30),
    "top_k": dict(top_k=7, temperature=0.8),
    "top_k of all": dict(top_k=V),
    "top_p": dict(top_p=0.7),
    "top_k and top_p": dict(top_k=9, top_p=0.8, temperature=1.4),
    "min_p": dict(min_p=0.1),
    "all filters": dict(top_k=20, top_p=0.9, min_p=0.05, temperature=1.2),
    "limit": dict(vocab_limit=30),
    "top_k beyond the limit": dict(vocab_limit=30, top_k=40),
}
CHANGES = {
    "none": {},
    "repetition": dict(repetition_penalty=1.7),
    "presence": dict(presence_penalty=0.5),
    "frequency": dict(frequency_penalty=-0.8),
    "bias": dict(logit_bias=((3, 4.0), (5, -2.0), (3, 1.0))),
    "all": dict(
        repetition_penalty=0.8, presence_penalty=1, frequency_penalty=0.4, logit_bias={9: 3.0}
    ),
}


def on_device(rows: list[Row]) -> Rows:
    made = Rows(len(rows) + 2, V, torch.device("cpu"))
    lengths = [len(row.prompt) + len(row.tokens) - 1 for row in rows]
    made.put(range(len(rows)), rows, lengths)
    return made


def drawn_for_a_while(rows: list[Row], steps: int = 25) -> None:
    """Both ways draw from the same logits, step by step."""
    made, draw = on_device(rows), Draw.of(rows, V)
    generator = torch.Generator().manual_seed(len(rows))
    for _ in range(steps):
        logits = 2 * torch.randn(len(rows), V, generator=generator)
        got, want = next_tokens(logits, made, draw), sample_next(logits, rows)
        assert got.tolist() == want.tolist()
        made.take(got, draw)
        for row, token in zip(rows, want.tolist()):
            row.tokens.append(token)
    lengths = [len(row.prompt) + len(row.tokens) - 1 for row in rows]
    assert made.pos[: len(rows)].tolist() == lengths
    assert made.token[: len(rows), 0].tolist() == [row.tokens[-1] for row in rows]


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("change", CHANGES)
def test_rows_with_the_same_settings(filters, change):
    params = SamplingParams(seed=5, **FILTERS[filters], **CHANGES[change])
    drawn_for_a_while([Row((1, 2, 3), params, row, [4]) for row in range(3)])


@pytest.mark.parametrize("seed", range(12))
def test_rows_with_different_settings_side_by_side(seed):
    rng = random.Random(seed)
    rows = []
    for row in range(6):
        params = {**FILTERS[rng.choice([*FILTERS])], **CHANGES[rng.choice([*CHANGES])]}
        prompt, answer = ([rng.randrange(30) for _ in range(rng.randrange(1, 6))] for _ in range(2))
        rows.append(Row(prompt, SamplingParams(seed=seed, **params), row, answer))
    drawn_for_a_while(rows)


def test_a_row_is_the_same_in_another_slot_and_after_another_row():
    """What a row before it had, penalties and biases too, is gone."""
    params = [SamplingParams(**FILTERS["all filters"], **CHANGES[c]) for c in ("all", "none")]
    first, second = (Row((1, 2), p, i, [3, 3]) for i, p in enumerate(params))
    made, logits = on_device([first, second]), torch.randn(2, V)
    made.move(1, 0)
    draw = Draw.of([first], V)
    assert next_tokens(logits[:1], made, draw).tolist() == [sample_next(logits[:1], [second])]
    made.put([0, 1], [first, first], [3, 3])
    made.put([0], [second], [3])
    want = sample_next(logits, [second, first]).tolist()
    assert next_tokens(logits, made, Draw.of([second, first], V)).tolist() == want


def tables(rows: Rows) -> list[list]:
    return [x.tolist() for x in (rows.token, rows.ints, rows.floats, *rows.texts.all)]


@pytest.mark.parametrize("seed", range(5))
def test_rows_put_together_are_what_they_are_one_by_one(seed):
    """In whatever order of the slots, and over what was there."""
    rng = random.Random(seed)
    together, alone = (on_device([Row((1,), SamplingParams(logit_bias={3: 1.0}))]) for _ in "ab")
    for made in (together, alone):
        made.put(range(3), [Row((9, 3), SamplingParams(**CHANGES["all"]), 0, [4])] * 3, [1] * 3)
    slots, rows = rng.sample(range(3), 3), []
    for slot in slots:
        params = {**FILTERS[rng.choice([*FILTERS])], **CHANGES[rng.choice([*CHANGES])]}
        prompt, answer = ([rng.randrange(V) for _ in range(rng.randrange(1, 9))] for _ in "ab")
        rows.append(Row(prompt, SamplingParams(seed=seed, **params), slot, answer * (slot > 0)))
    together.put(slots, rows, [slot + 5 for slot in slots])
    for slot, row in zip(slots, rows):
        alone.put([slot], [row], [slot + 5])
    assert tables(together) == tables(alone)
    changed = [slot for slot, row in zip(slots, rows) if adjusts(row.params)]
    assert [slot for slot in sorted(slots) if together.texts.prompt[slot].any()] == sorted(changed)


def test_what_a_step_does_is_as_little_as_its_rows_need():
    def draw(*params: dict) -> Draw:
        return Draw.of([Row((1,), SamplingParams(**p)) for p in params], V)

    off = Draw(False, True, 0, False, V, False, False, False, False, None)
    assert draw({}) == off and draw({"top_k": 7}) == off._replace(top_k=7)
    assert draw({"top_k": 7, "temperature": 0}) == off._replace(greedy=True, random=False)
    assert draw({"top_k": 7}, {"top_k": 9}) == off._replace(top_k=9, ranked=True)
    assert draw({"top_k": 7}, {}) == off._replace(ranked=True)
    assert draw({"top_p": 0.5}, {"min_p": 0.1}) == off._replace(top_p=True, min_p=True)
    assert draw({"vocab_limit": 9}, {}) == off._replace(limited=True)
    assert draw({"logprobs": 3}, {"logprobs": 0}) == off._replace(logprobs=3)
    assert draw({"logit_bias": {1: 2.0}}) == off._replace(adjusted=True)


@pytest.mark.parametrize("limit", [None, 12])
def test_scores_are_those_of_the_logits_as_they_are(limit):
    logits, tokens = torch.randn(3, V), [4, 0, 11]
    params = [SamplingParams(vocab_limit=limit, logprobs=k) for k in (5, 0, 2)]
    rows = [Row((1,), p, i, [2]) for i, p in enumerate(params)]
    made = on_device(rows)
    numbers = packed_scores(logits, torch.tensor(tokens), made, Draw.of(rows, V)).tolist()
    for i, p in enumerate(params):
        (want,) = scores(logits[i : i + 1], [tokens[i]], p.logprobs, limit)
        got = unpacked(numbers[i], p)
        assert got[0] == pytest.approx(want[0]) and [t for t, _ in got[1]] == [
            t for t, _ in want[1]
        ]
        assert [x for _, x in got[1]] == pytest.approx([x for _, x in want[1]])


def test_a_limit_below_the_number_of_likeliest_tokens():
    """Beside a row that has another."""
    logits, tokens = torch.randn(2, V), [1, 7]
    params = [SamplingParams(vocab_limit=limit, logprobs=5) for limit in (3, None)]
    rows = [Row((1,), p, i, [2]) for i, p in enumerate(params)]
    draw = Draw.of(rows, V)
    numbers = packed_scores(logits, torch.tensor(tokens), on_device(rows), draw).tolist()
    for i, p in enumerate(params):
        (want,) = scores(logits[i : i + 1], [tokens[i]], 5, p.vocab_limit)
        assert [t for t, _ in unpacked(numbers[i], p)[1]] == [t for t, _ in want[1]]


@pytest.mark.parametrize("vocab_limit", [None, 30])
def test_what_is_drawn_is_always_a_token(vocab_limit):
    """Whatever a kernel makes of logits that are no numbers: the next step looks it up."""
    params = SamplingParams(vocab_limit=vocab_limit, frequency_penalty=0.1)
    rows = [Row((1,), params, i, [2]) for i in range(3)]
    made = on_device(rows)
    made.take(torch.tensor([-5, V + 3, 2**40]), Draw.of(rows, V))
    last = (vocab_limit or V) - 1
    assert made.token[:3, 0].tolist() == [0, last, last]
    assert made.texts.counts[:3].sum(1).tolist() == [2, 2, 2]


def test_rows_of_free_slots_draw_some_token():
    made = Rows(4, V, torch.device("cpu"))
    for filters, change in product(FILTERS.values(), CHANGES.values()):
        params = SamplingParams(**filters, **change)
        made.put([0], [Row((1,), params, tokens=[2])], [1])
        tokens = next_tokens(torch.randn(4, V), made, Draw.of([Row((1,), params)], V))
        assert all(0 <= token < V for token in tokens.tolist())
