"""What is refused before a route sees it, without a server: times are short here."""

import asyncio
from collections import Counter

import pytest

from bonsai.serving.guard import Guard, GuardLimits, host_name

SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")]}


def guarded(app, **limits) -> Guard:
    return Guard(app, GuardLimits(**limits), "", (), False, (), Counter())


async def whole_body():
    return {"type": "http.request", "body": b"", "more_body": False}


async def never(*_):
    await asyncio.sleep(1000)


def within(seconds: float, coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, seconds))


def test_a_client_that_takes_nothing_is_given_up():
    ended = []

    async def app(scope, receive, send):
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        finally:
            ended.append(True)

    guard = guarded(app, send_seconds=0.2)
    within(5, guard(SCOPE, whole_body, never))
    assert ended and not guard.sending


def test_a_client_that_is_slow_but_reads_is_not():
    sent = []

    async def app(scope, receive, send):
        for i in range(8):
            await send({"type": "http.response.body", "body": b"%d" % i, "more_body": i < 7})

    async def slowly(message):
        await asyncio.sleep(0.1)
        sent.append(message["body"])

    within(5, guarded(app, send_seconds=0.4)(SCOPE, whole_body, slowly))
    assert b"".join(sent) == b"01234567"


def test_a_cancelled_answer_is_not_mistaken_for_a_slow_client():
    guard = guarded(lambda *_: never(), send_seconds=60)

    async def cancel():
        task = asyncio.ensure_future(guard(SCOPE, whole_body, never))
        await asyncio.sleep(0.05)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        within(5, cancel())
    assert not guard.sending


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


def test_names_of_hosts():
    found = [host_name(h) for h in ("a.b:80", "A", "[::1]:80", "[::1", "", ":80", "1.2.3.4")]
    assert found == ["a.b", "a", "::1", "::1", "", "", "1.2.3.4"]
