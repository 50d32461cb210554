"""What is refused before a route sees it, without a server: times are short here."""

import asyncio
from collections import Counter

import pytest

from bonsai.serving.guard import Guard, GuardLimits, host_name

SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")]}


def guarded(app, **limits) -> Guard:
    return Guard(app, GuardLimits(**limits), "", (), False, (), Counter())


async def never(*_):
    await asyncio.sleep(1000)


def within(seconds: float, coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, seconds))


def test_bodies_that_do_not_end_are_bounded_together():
    """What small ones need is always there, and what was taken is given back."""

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def check():
        guard = guarded(app, body_bytes=200_000, bodies=3, body_seconds=30)
        statuses = []

        async def send(message):
            statuses.append(message.get("status"))

        def body(size: int, ends: bool):
            parts = [b"x" * 50_000] * (size // 50_000)

            async def receive():
                if parts:
                    last = ends and len(parts) == 1
                    return {"type": "http.request", "body": parts.pop(), "more_body": not last}
                return await never()

            return receive

        waiting = [
            asyncio.ensure_future(guard(SCOPE, body(150_000, False), send)) for _ in range(40)
        ]
        await asyncio.sleep(0.1)
        assert guard.held <= 600_000 and statuses.count(503) >= 36
        await guard(SCOPE, body(50_000, True), send)
        assert 200 in statuses
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert guard.held == 0

    within(20, check())


def test_a_body_that_never_comes():
    sent = []

    async def send(message):
        sent.append(message)

    within(5, guarded(None, body_seconds=0.1)(SCOPE, never, send))
    assert sent[0]["status"] == 408 and (b"connection", b"close") in sent[0]["headers"]


def test_an_endless_body():
    """The rest of a body that is too large is dropped, but not forever."""
    sent, read = [], []

    async def more():
        read.append(1)
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    async def send(message):
        sent.append(message)

    within(5, guarded(None, body_bytes=1000)(SCOPE, more, send))
    assert sent[0]["status"] == 413 and 1 < len(read) < 20


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),  # the health check of a load balancer, in HTTP/1.0
        ({"host": "localhost:8000"}, 200),
        ({"host": "localhost", "origin": "http://localhost"}, 200),
        ({"host": "a.org"}, 403),
        ({"host": ":80"}, 403),
        ({"origin": "null"}, 403),  # equal to the host's name only because neither has one
        ({"origin": "http://a.org"}, 403),
    ],
)
def test_a_request_without_a_host_is_not_from_a_browser(headers, status):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request"}

    pairs = [(k.encode(), v.encode()) for k, v in headers.items()]
    within(5, guarded(app)({**SCOPE, "headers": pairs}, receive, send))
    assert sent[0]["status"] == status


def test_names_of_hosts():
    names = [host_name(h) for h in ("a.b:80", "A", "[::1]:80", "[::1", "", ":80", "1.2.3.4")]
    assert names == ["a.b", "a", "::1", "::1", "", "", "1.2.3.4"]
