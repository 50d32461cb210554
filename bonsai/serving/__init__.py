"""The HTTP server behind serve.py: an OpenAI-compatible API and the playground's data.

Read in this order:

    app.py          the routes, and how an error becomes JSON
    api/            OpenAI's requests and answers:
      schemas.py    the fields of requests, checked; bodies.py: from a body's bytes to these
      plans.py      from a request to prompts and settings for the engine
      answers.py    from the engine's events to pieces of text; forms.py: from these to JSON
      faults.py     errors as clients get them
    worker.py       the thread that steps the engines, and its bridge to the event loop
    registry.py     the models by name, and the tokenizers
    http.py         the socket and its connections; guard.py: checks before any route
    page/           the playground's requests:
      playground.py its routes; inside.py: attention, predictions by layer; runs.py: curves
    background.py   threads for work that takes long
    counters.py     counters for Prometheus, at /metrics
"""
