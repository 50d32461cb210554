"""The HTTP server behind serve.py: an OpenAI-compatible API and the playground's data.

Read in this order:

    app.py          the routes, and how an error becomes JSON
    schemas.py      what a request may say
    completions.py  from a request to an answer, streamed or whole; chat.py: messages as a prompt
    textstream.py   token ids become text that is safe to send: whole characters, no stop string
    worker.py       the thread that steps the engines, and its bridge to the event loop
    registry.py     the models by name, and the tokenizers
    guard.py        what is refused before a route sees it: hosts, keys, sizes, slow clients
    inside.py, runs.py, metrics.py   attention and predictions by layer; training runs; counters
"""
