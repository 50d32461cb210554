"""What the tests of the engine share."""

import pytest
from helpers.tiny_model import VOCAB

from bonsai.engine import Engine, Request, SamplingParams, generate


def finish(engine) -> dict:
    """Step until all is done: {request: its events}."""
    events = {}
    while engine.busy:
        for event in engine.step():
            events.setdefault(event.request, []).append(event)
    return events


def alone(model, request) -> list[int]:
    """What `generate` gives for a request."""
    rows = generate(model, request.prompt, request.params, first_row=request.row, on_full="stop")
    return [token for (token,) in rows if token is not None]


def random_requests(engine, rng, count):
    """Requests of all kinds, some of which begin alike."""
    requests = []
    for _ in range(count):
        begin = rng.choice([[], [3, 1, 4, 1, 5, 9, 2, 6], [3, 1, 4, 1]])
        prompt = begin + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 20))]
        params = SamplingParams(
            max_new_tokens=rng.randrange(0, 50),
            temperature=rng.choice([0, 0.7, 1.5]),
            top_k=rng.choice([0, 5]),
            top_p=rng.choice([1.0, 0.9]),
            min_p=rng.choice([0.0, 0.05]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            frequency_penalty=rng.choice([0.0, 0.4]),
            presence_penalty=rng.choice([0.0, 0.7]),
            vocab_limit=rng.choice([None, VOCAB - 4]),
            logit_bias=rng.choice([{}, {7: 2.0}]),
            stop_tokens=rng.choice([(), (0, 1)]),
            seed=rng.randrange(100),
        )
        requests += engine.submit(prompt, params, n=rng.choice([1, 1, 3]))
    return requests


def finish_as_plain(
    engine, model, prompt: list[int], params: SamplingParams
) -> tuple[Request, int]:
    """A request of an engine that guesses, done, and its steps; holds tokens and log-probabilities
    to those without guesses."""
    (request,) = engine.submit(prompt, params)
    steps, events = 0, []
    while engine.busy:
        events += engine.step()
        steps += 1
    assert request.tokens == alone(model, request) == [event.token for event in events]
    (other,) = (plain := Engine(model)).submit(prompt, params)
    want = [event.logprob for event in finish(plain)[other]]
    assert [event.logprob for event in events] == pytest.approx(want, abs=1e-4)
    return request, steps
