"""bonsai/serving/worker.py: what becomes of answers when the engine, a step or a client fails."""

import asyncio
import contextlib
import json
import socket
import threading
from dataclasses import replace

import httpx
import pytest
import torch
from helpers.made_model import TEXT, knowing
from helpers.server_in_process import answering, model_server, running, wait

from bonsai.engine import Engine, SamplingParams
from bonsai.serving import http as serving_http
from bonsai.serving import worker as serving_worker
from bonsai.serving.app import create_app
from bonsai.serving.http import Process, configured, listen
from bonsai.serving.worker import Worker
from bonsai.system.errors import short_of_memory

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


def end_thread(*args) -> None:
    raise SystemExit("the engine's thread ends")


def fail(*args) -> None:
    raise ZeroDivisionError("a bug")


def lose_gpu(*args) -> None:
    raise torch.AcceleratorError("CUDA error: device-side assert triggered")


WAYS_TO_DIE = {
    "with nothing to do": {},
    "in a step": {(Engine, "step"): end_thread},
    "in a step on a GPU that has failed": {(Engine, "step"): lose_gpu},
    "after a step that failed": {(Engine, "step"): fail, (Engine, "clear"): fail},
    "while a request is taken": {(Worker, "_submit"): fail},
    "while a row is ended": {(Worker, "_cancel"): fail},
}


@pytest.mark.parametrize("way", WAYS_TO_DIE)
@pytest.mark.parametrize("models", [1, 2])
def test_an_engine_that_has_died_is_known_at_once(monkeypatch, capfd, way, models):
    """By those who wait for it, a stream and a whole answer; by who comes then; by /health. The
    thread is that of all models."""
    monkeypatch.setattr(serving_http, "LINGER", 1.5)
    server, other = model_server(block_size=4096), model_server()
    if models == 2:
        (served,) = other.models.values()
        server = replace(server, models={**server.models, "other": served})
    last, answers = [], []

    def stream(url: str) -> None:
        with httpx.stream("POST", url, json={**BODY, "n": 2, "stream": True}, timeout=60) as r:
            last.extend([*filter(None, r.iter_lines())][-2:])

    def whole(url: str) -> None:
        answers.append(httpx.post(url, json={**BODY, "n": 2}, timeout=60))

    with running(create_app(server), server.worker) as process:
        url = f"http://127.0.0.1:{process.port}"
        assert httpx.get(f"{url}/health").status_code == 200
        asked = [stream, whole] if WAYS_TO_DIE[way] else []
        threads = [threading.Thread(target=f, args=[f"{url}/v1/completions"]) for f in asked]
        for thread in threads:
            thread.start()
        wait(lambda: server.worker.running == 2 * len(asked))
        for (owner, name), instead in WAYS_TO_DIE[way].items():
            monkeypatch.setattr(owner, name, instead)
        if not asked:
            server.worker._commands.put(end_thread)
        elif (Engine, "step") not in WAYS_TO_DIE[way]:  # one who comes, and leaves
            seconds = httpx.Timeout(20, read=0.3)
            with contextlib.suppress(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/completions", json=BODY, timeout=seconds)
        wait(lambda: server.worker.died is not None)
        health = httpx.get(f"{url}/health")
        assert health.status_code == 503 and "died" in health.json()["reason"]
        paths = {"v1/completions": {**BODY, "model": [*server.models][-1]}}
        for path, body in {**paths, "inspect": {"model": "m", "prompt": "a"}}.items():
            answer = httpx.post(f"{url}/{path}", json=body, timeout=20)
            assert answer.status_code == 503 and "died" in answer.json()["error"]["message"]
        for thread in threads:
            thread.join(20)
        wait(lambda: process.should_exit)  # by itself
    if asked:
        assert "died" in json.loads(last[0][6:])["error"]["message"] and last[1] == "data: [DONE]"
        assert [a.status_code for a in answers] == [503]
    assert capfd.readouterr().err.count("Traceback") >= 1


@pytest.mark.parametrize("seeded, rows", [(True, [0, 1, 0, 1, 2, 3]), (False, [0, 1, 2, 3, 4, 5])])
def test_the_rows_of_a_list_of_prompts(seeded, rows):
    """By these numbers the noise differs: between equal prompts, and without a seed between all."""
    model = knowing([[256, *TEXT.encode()] * 2], 257, 160)
    worker = Worker([Engine(model, max_batch=4)], 100)
    prompts = [list(b"One"), list(b"day"), list(b"One")]
    stream = worker.submit(worker.engines[0], prompts, SamplingParams(3, seed=3), 2, seeded)
    worker._commands.get()()  # as the engine's thread would do
    assert [request.row for request in stream._requests] == rows


def test_the_engine_does_not_write_for_a_client_that_is_behind(monkeypatch):
    """And afterwards it goes on as if nothing had been."""
    monkeypatch.setattr(serving_worker, "MOST_UNSENT", 200)
    model = knowing([[256, *TEXT.encode()] * 2], 257, 400)
    params = SamplingParams(300, 1.0, seed=3)

    async def texts(after: bool, capture: bool) -> list[list[int]]:
        worker = Worker([Engine(model, max_batch=4, capture=capture)], 100)
        worker.start()
        stream = worker.submit(worker.engines[0], [list(b"One day")] * 2, params, 2)
        rows: list[list[int]] = [[] for _ in range(4)]
        while stream.open or stream._events:
            before = -1
            while after and before != len(stream._events):  # until nothing more comes
                before = len(stream._events)
                await asyncio.sleep(0.3)
            assert before < 900
            for row, event in await stream.take():
                rows[row].append(event.token)
        assert worker.finished == 4 and worker.running == worker.waiting == 0
        await asyncio.to_thread(worker.stop)
        return rows

    want = asyncio.run(texts(False, False))
    assert asyncio.run(texts(True, False)) == want == asyncio.run(texts(True, True))


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
