"""What the tests of the engine share."""

from bonsai.engine import generate


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
