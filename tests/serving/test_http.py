"""What one connection may send and hold, and how the server ends: in this process, times short."""

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
from helpers.made_model import TEXT, knowing, knows_nothing, knows_text
from helpers.server_process import server as server_process

from bonsai.engine import Engine, SamplingParams
from bonsai.serving import http as serving_http
from bonsai.serving import worker as serving_worker
from bonsai.serving.app import Server, create_app
from bonsai.serving.http import Process, configured, listen
from bonsai.serving.registry import Served
from bonsai.serving.worker import Worker
from bonsai.system.errors import short_of_memory
from bonsai.tokenizers import ByteTokenizer


@contextmanager
def running(app, worker: Worker | None = None, grace: float = 0.3, **limits: float):
    """An app on a free port, in a thread: its Process; ended in the end."""
    sock = listen("127.0.0.1", 0)
    process = Process(configured(app, 8, **limits), worker or Worker([], 1), grace)
    process.port = sock.getsockname()[1]
    thread = threading.Thread(target=lambda: asyncio.run(process.serve(sockets=[sock])))
    thread.start()
    try:
        wait(lambda: process.started)
        yield process
    finally:
        process.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def wait(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def answering(handle):
    """An ASGI app: handle(receive, send) answers requests."""

    async def app(scope, receive, send):
        await handle(receive, send)

    return app


START = {"type": "http.response.start", "status": 401, "headers": []}


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


# ---- a server with a model ----


def model_server(block_size: int = 160, **options) -> Server:
    """One model that knows a text, named m; after it the same text again."""
    ids = [256, *TEXT.encode()] * 2
    model = knowing([ids], 257, block_size)
    served = Served("m", model, ByteTokenizer(), Engine(model, max_batch=4), 0)
    return Server({"m": served}, **options)


BODY = {"model": "m", "prompt": "One day", "max_tokens": 4000, "temperature": 0}
BODY |= {"ignore_eos": True, "n": 4}


def test_running_answers_are_told_that_the_server_stops(capfd):
    server = model_server(block_size=4096)
    half = {**BODY, "n": 2}  # of the engine's places: both answers are written side by side
    lines, answers = [], []

    def stream(url: str) -> None:
        with httpx.stream("POST", url, json={**half, "stream": True}, timeout=60) as r:
            for line in filter(None, r.iter_lines()):
                lines.append(line)

    def whole(url: str) -> None:
        answers.append(httpx.post(url, json=half, timeout=60))

    with running(create_app(server), server.worker) as process:
        url = f"http://127.0.0.1:{process.port}/v1/completions"
        threads = [threading.Thread(target=f, args=[url]) for f in (stream, whole)]
        for thread in threads:
            thread.start()
        wait(lambda: server.worker.running >= 4 and lines)
    for thread in threads:
        thread.join(20)
    assert len(lines) > 2 and lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2][6:])["error"]["message"] == "the server is stopping"
    assert answers[0].status_code == 503 and answers[0].json()["error"]["code"] == "stopped"
    assert "Traceback" not in "".join(capfd.readouterr())


def test_an_engine_that_has_died_is_known_at_once(monkeypatch, capfd):
    monkeypatch.setattr(serving_http, "LINGER", 1.5)
    server = model_server()

    def die() -> None:
        raise SystemExit("the engine's thread ends")

    with running(create_app(server), server.worker) as process:
        url = f"http://127.0.0.1:{process.port}"
        assert httpx.get(f"{url}/health").status_code == 200
        server.worker._commands.put(die)
        wait(lambda: server.worker.died is not None)
        health = httpx.get(f"{url}/health")
        assert health.status_code == 503 and "died" in health.json()["reason"]
        for path, body in (("v1/completions", BODY), ("inspect", {"model": "m", "prompt": "a"})):
            answer = httpx.post(f"{url}/{path}", json=body, timeout=20)
            assert answer.status_code == 503 and "died" in answer.json()["error"]["message"]
        wait(lambda: process.should_exit)  # by itself
    assert "the engine's thread ends" in capfd.readouterr().err


def test_the_engine_does_not_write_for_a_client_that_is_behind(monkeypatch):
    """And afterwards it goes on as if nothing had been."""
    monkeypatch.setattr(serving_worker, "MOST_UNSENT", 200)
    model = knowing([[256, *TEXT.encode()] * 2], 257, 400)
    params = SamplingParams(300, 1.0, seed=3)

    async def texts(after: bool) -> list[list[int]]:
        worker = Worker([Engine(model, max_batch=4)], 100)
        worker.start()
        stream = worker.submit(worker.engines[0], [list(b"One day")] * 2, params, 2)
        found: list[list[int]] = [[] for _ in range(4)]
        while stream.open or stream._events:
            before = -1
            while after and before != len(stream._events):  # until nothing more comes
                before = len(stream._events)
                await asyncio.sleep(0.3)
            assert before < 900
            for row, event in await stream.take():
                found[row].append(event.token)
        assert worker.finished == 4 and worker.running == worker.waiting == 0
        await asyncio.to_thread(worker.stop)
        return found

    assert asyncio.run(texts(True)) == asyncio.run(texts(False))


def test_a_stream_that_nobody_reads_ends():
    """With all that stands after it: its rows, its connection."""
    server = model_server(block_size=4096)
    with running(create_app(server), server.worker, send_seconds=0.5) as process:
        body = json.dumps({**BODY, "stream": True, "logprobs": 5}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1", process.port))
            s.sendall(head + body)
            wait(lambda: server.worker.running)
            wait(lambda: not server.worker.running and not process.server_state.connections, 60)


@pytest.mark.parametrize(
    "error, status, says",
    [
        (MemoryError(), 503, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 503, "out of memory"),
        (ZeroDivisionError("a bug"), 500, "the model failed"),
    ],
    ids=repr,
)
def test_a_step_that_fails_ends_its_answers_and_no_others(monkeypatch, capfd, error, status, says):
    server = model_server()
    step = Engine.step

    def fail_once(self):
        monkeypatch.setattr(Engine, "step", step)
        raise error

    with running(create_app(server), server.worker) as process:
        url = f"http://127.0.0.1:{process.port}/v1/completions"
        monkeypatch.setattr(Engine, "step", fail_once)
        answer = httpx.post(url, json=BODY, timeout=20)
        assert answer.status_code == status and says in answer.json()["error"]["message"]
        assert httpx.post(url, json={**BODY, "max_tokens": 3}, timeout=20).status_code == 200
    assert ("Traceback" in capfd.readouterr().err) == (status == 500)


# ---- the program ----

DIES = """
import runpy, sys
import bonsai.engine.scheduler as scheduler
def step(self):
    raise SystemExit("out of order")
scheduler.Engine.step = step
sys.argv = ["serve.py", *sys.argv[1:]]
runpy.run_path({path!r}, run_name="__main__")
"""


def test_without_memory_for_the_engines_thread(monkeypatch, capfd):
    """serve.py says it in one line: nothing is logged, and nothing is left running."""
    worker = Worker([], 1)

    def start():
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(worker._thread, "start", start)
    sock = listen("127.0.0.1", 0)
    process = Process(configured(answering(None), 8), worker)
    with pytest.raises(RuntimeError, match="new thread") as e, sock:
        asyncio.run(process.serve(sockets=[sock]))
    assert short_of_memory(e.value)
    assert capfd.readouterr() == ("", "")


def test_the_program_ends_when_its_engine_has_died(tmp_path):
    knows_text(tmp_path / "m")
    options = ["--out_dir=m"]
    with server_process(tmp_path, *options, code=DIES) as program:
        answer = program.post("/v1/completions", {"model": "m", "prompt": "a"})
        assert answer.status_code == 503
        assert program.http.get("/health").status_code == 503
        assert program.process.wait(30) == 1
        program.ended = True
    log = program.log.read_text()
    assert log.splitlines()[-1].startswith("error: the engine has died"), log


def test_too_little_memory(tmp_path):
    """In one line, whether it is short while a model is loaded or when a cache is made."""
    import resource

    from helpers.programs import assert_one_line_error, run_program

    knows_nothing(tmp_path / "m", block_size=200_000)
    limit = 6 * 2**30
    result = run_program(
        ["--out_dir=m", "--max_batch=4000", "--device=cpu", "--port=0"],
        tmp_path,
        program="serve.py",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert_one_line_error(result, "out of memory", "max_batch")
