"""Tokens from a model: one prefill, then one-token steps over a cache of keys and values.

The engine sees token ids only; text and tokenizers stay outside. `generate` is the short way, n
answers to one prompt; `Engine` answers many requests at once, which come and go between steps:

    params = SamplingParams(max_new_tokens=100, temperature=0.8, top_k=200)
    for tokens in generate(model, prompt_ids, params, n=4):  # [17, 4, 4, 52]: one new id per row
        ...
    engine = Engine(model, max_batch=16)
    requests = engine.submit(prompt_ids, params, n=4)
    while engine.busy:
        for event in engine.step():  # .request, .token, .finish, ...
            ...

The noise of a draw depends on the request's seed, the row and the step alone, so that in float32 a
request gets the same tokens alone or beside others, cached or not, except where two tokens are
closer than rounding.
"""

from bonsai.engine.generate import ON_FULL, generate
from bonsai.engine.sampling import SamplingParams
from bonsai.engine.scheduler import Engine, Event, Request
from bonsai.engine.weights import prepare

__all__ = [
    "ON_FULL",
    "Engine",
    "Event",
    "Request",
    "SamplingParams",
    "generate",
    "prepare",
]
