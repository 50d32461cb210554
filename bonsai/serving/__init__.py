"""The HTTP server behind serve.py: an OpenAI-compatible API and the playground's data.

Read in this order:

    app.py          the routes, and how an error becomes JSON
    api/            OpenAI's requests and answers:
      schemas.py    what a request may say; bodies.py: from its bytes to that
      plans.py      from a request to what the engine is asked
      answers.py    the engine's events as pieces of text; forms.py: those as OpenAI's JSON
      faults.py     what a client is told of a fault
    worker.py       the thread that steps the engines, and its bridge to the event loop
    registry.py     the models by name, and the tokenizers
    http.py         the socket and its connections; guard.py: what is refused before a route
    page/           what the playground's page asks for:
      playground.py its routes; inside.py: attention, predictions by layer; runs.py: curves
    background.py   threads for what takes long
    counters.py     what Prometheus reads at /metrics
"""
