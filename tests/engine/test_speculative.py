"""bonsai/engine/speculative.py: what is guessed, and that guesses change no token."""

from dataclasses import replace

import pytest
from helpers.engine import finish, finish_as_plain
from helpers.tiny_model import tiny

from bonsai.engine import Engine, SamplingParams
from bonsai.engine.sampling import Row
from bonsai.engine.speculative import Draft, Lookup


def test_a_guess_is_what_followed_the_longest_run_of_late():
    lookup, row = Lookup(most=8), Row([1, 2, 3], SamplingParams(), tokens=[4, 5])
    assert lookup.guess(row, None, room=8) == []
    row.tokens += [9, 2, 3, 4]
    assert lookup.guess(row, None, room=3) == [5, 9, 2]
    row.tokens += [6, 2, 3, 4]
    assert lookup.guess(row, None, room=8) == [6, 2, 3, 4, 6, 2, 3, 4]  # a loop goes on
    assert lookup.guess(row, None, room=0) == []
    lookup.learn(guessed=8, right=1)
    row.tokens.append(6)
    assert len(lookup.guess(row, None, room=8)) == 2


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_the_model_in_int8_guesses_what_the_model_says(temperature):
    model = tiny(block_size=96, n_head=1)  # heads of 32 channels, which block.cpp takes
    params = SamplingParams(80, temperature, top_k=9, frequency_penalty=0.3, logprobs=1)
    engine = Engine(model, draft=5)
    request, steps = finish_as_plain(engine, model, [5, 3, 1], params)
    assert len(request.tokens) == 80 and steps < 30
    stop = request.tokens[40]
    end = request.tokens.index(stop)
    (short,) = engine.submit([5, 3, 1], replace(params, stop_tokens=(stop,)))
    finish(engine)
    assert short.tokens == request.tokens[:end] and short.finish == "stop"


def test_guesses_of_a_model_shrink_slowly():
    draft = Draft(None, most=8)
    lengths = []
    for guessed, right in [(8, 8), (8, 2), (7, 0), (6, 6), (8, 3)]:
        draft.learn(guessed, right)
        lengths.append(draft.length)
    assert lengths == [8, 7, 6, 8, 7]
