"""What one connection may send and hold, and how the server ends: in this process, times short."""

import contextlib
import errno
import json
import socket
import time
from contextlib import contextmanager

import pytest
from helpers.server_in_process import answering, running, wait

from bonsai.serving.http import PIPELINED_BYTES, READ_BYTES, Connection, Process, listen
from bonsai.system.errors import UserError

START = {"type": "http.response.start", "status": 401, "headers": []}


@pytest.mark.parametrize(
    "host, number, setting",
    [
        ("192.0.2.1", errno.EADDRNOTAVAIL, "--host"),
        ("nowhere.invalid", socket.EAI_NONAME, "--host"),
        ("127.0.0.1", errno.EADDRINUSE, "--port"),
        ("127.0.0.1", errno.EACCES, "--port"),
    ],
)
def test_where_nothing_can_listen_the_setting_that_is_to_blame_is_named(
    monkeypatch, host, number, setting
):
    def fail(*args, **options):
        raise (socket.gaierror if number < 0 else OSError)(number, "the reason")

    monkeypatch.setattr(socket, "getaddrinfo" if number < 0 else "create_server", fail)
    line = rf"cannot listen on {host}:80 \(the reason\): choose another {setting}$"
    with pytest.raises(UserError, match=line):
        listen(host, 80)


async def refuse(receive, send) -> None:
    """An answer before the body was read, as to those without a key."""
    await send({**START, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


async def listen_to_all(receive, send) -> None:
    while (await receive()).get("more_body"):
        pass
    await refuse(receive, send)


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
WITHOUT_END = {
    "a trailer of many lines": (CHUNKED + b"1\r\na\r\n0\r\n", b"a: b\r\n" * 2000),
    "a trailer of one line": (CHUNKED + b"1\r\na\r\n0\r\na: ", b"b" * 10_000),
    "a note beside a chunk": (CHUNKED + b"1;a=", b"b" * 10_000),
    "a head of many lines": (b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 2000),
    "a head of one line": (b"GET / HTTP/1.1\r\na: ", b"b" * 10_000),
    "a path": (b"GET /", b"b" * 10_000),
    "nothing": (b"", b"\r\n" * 5000),
    "requests and no answers read": (b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 500),
}


@pytest.mark.parametrize("app", [refuse, listen_to_all])
@pytest.mark.parametrize("begin, more", WITHOUT_END.values(), ids=WITHOUT_END)
def test_what_has_no_end_is_cut_off(app, begin, more):
    with running(answering(app), send_seconds=0.5) as process:
        with socket.create_connection(("127.0.0.1", process.port), timeout=20) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sent = 0
            with pytest.raises(OSError):  # the server has closed it, or takes nothing more
                s.sendall(begin)
                while sent < 64e6:
                    s.sendall(more)
                    sent += len(more)
            assert sent < 64e6
        wait(lambda: not process.server_state.connections)


@pytest.mark.parametrize("form", ["heads", "bodies"])
def test_requests_that_wait_for_an_answer_take_little(form):
    """Who takes no answers fills no memory with further requests, whose turn never comes."""
    request = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: " + b"b" * 6000 + b"\r\n\r\n"
    if form == "bodies":
        request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6000\r\n\r\n" + b"b" * 6000
    with running(answering(send_much), send_seconds=4) as process:
        with socket.create_connection(("127.0.0.1", process.port), timeout=20) as s:
            s.sendall(request)
            wait(lambda: process.server_state.connections)
            (connection,) = process.server_state.connections
            with pytest.raises(OSError):  # the server has closed it
                for _ in range(1000):
                    s.sendall(request * 40)
        wait(lambda: not process.server_state.connections)
    waiting = [cycle for cycle, _ in connection.pipeline]
    heads = sum(len(value) for cycle in waiting for _, value in cycle.scope["headers"])
    assert 0 < heads + sum(len(cycle.body) for cycle in waiting) <= PIPELINED_BYTES


@pytest.mark.parametrize("request_bytes", [40, 6000, 1_000_000])
def test_nobody_takes_a_long_turn(monkeypatch, request_bytes):
    """What a client sends at once is read in parts, between which others are served."""
    parts, received = [], Connection.data_received

    def data_received(self, data: bytes) -> None:
        parts.append(len(data))
        received(self, data)

    monkeypatch.setattr(Connection, "data_received", data_received)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % request_bytes
    sent = (head + b"b" * request_bytes) * max(1, 100_000 // request_bytes)
    with running(answering(listen_to_all)) as process:
        address = ("127.0.0.1", process.port)
        # so many requests at once are refused
        with socket.create_connection(address, timeout=20) as s, contextlib.suppress(OSError):
            s.sendall(sent)
            s.recv(100)
        wait(lambda: not process.server_state.connections)
    assert 0 < max(parts) <= READ_BYTES


def test_small_answers_do_not_wait_for_receipts():
    """Head and body, and the tokens of a stream, are packets of their own."""
    with running(answering(refuse)) as process, asked(process, b"") as s:
        assert s.recv(1000)
        (connection,) = process.server_state.connections
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("sent", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200])
def test_what_is_no_request_is_answered_as_one(sent):
    """With an error as OpenAI's, and a name to ask after."""
    with (
        running(answering(refuse)) as process,
        socket.create_connection(("127.0.0.1", process.port), timeout=20) as s,
    ):
        s.sendall(sent)
        head, _, body = s.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and b"\nx-request-id: " in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_a_request_that_takes_too_long():
    with running(answering(refuse), head_seconds=0.3, body_seconds=0.3) as process:
        for begin in (b"", b"GET / HT", CHUNKED, CHUNKED + b"1\r\na\r\n0\r\na: b\r\n"):
            with socket.create_connection(("127.0.0.1", process.port), timeout=20) as s:
                s.sendall(begin)
                with pytest.raises(ConnectionError):
                    while s.recv(1000):
                        pass
                    raise ConnectionError


async def send_much(receive, send, chunks: int = 10_000) -> None:
    await send({**START, "status": 200})
    for i in range(chunks):
        await send(
            {"type": "http.response.body", "body": b"x" * 10_000, "more_body": i < chunks - 1}
        )


async def send_at_once(receive, send) -> None:
    await send({**START, "status": 200, "headers": [(b"content-length", b"20000000")]})
    await send({"type": "http.response.body", "body": b"x" * 20_000_000})


@contextmanager
def asked(process: Process, line: bytes = b"Connection: close\r\n"):
    """A connection that has sent a request."""
    with socket.create_connection(("127.0.0.1", process.port), timeout=20) as s:
        s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n")
        yield s


@pytest.mark.parametrize("app", [send_much, send_at_once])
@pytest.mark.parametrize("line", [b"Connection: close\r\n", b""])
def test_who_takes_nothing_is_cut_off(app, line):
    with running(answering(app), send_seconds=0.5) as process, asked(process, line):
        wait(lambda: process.server_state.connections)
        wait(lambda: not process.server_state.connections)


def test_who_is_slow_but_takes_something_is_not():
    async def app(receive, send) -> None:
        await send_much(receive, send, 1000)

    with running(answering(app), send_seconds=2) as process, asked(process) as s:
        size, end = 0, time.monotonic() + 5
        while part := s.recv(2**15):
            size += len(part)
            if time.monotonic() < end:
                time.sleep(0.1)
    assert size > 10_000_000
