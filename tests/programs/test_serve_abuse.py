"""What the server does when clients are wrong, hostile or gone: a clear answer, and it goes on."""

import gzip
import http.client
import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from helpers.made_model import knows_nothing
from helpers.server_process import open_files, server

from bonsai.files.access import allow_open_files

openai = pytest.importorskip("openai", reason="the openai client is not installed")

ASK = {"model": "m", "prompt": "One day", "max_tokens": 8, "temperature": 0}
KEY = "a secret key"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("abuse")
    knows_nothing(folder / "m", block_size=512)
    return folder


@pytest.fixture(scope="module")
def served(folder):
    limits = ["--max_queue=64", "--max_rows=32", "--max_tokens=500", "--max_batch=8"]
    with server(folder, "--out_dir=m", *limits, "--max_connections=2000") as running:
        yield running
        answer = running.post("/v1/completions", ASK)  # whatever was done to it
        assert answer.status_code == 200
        assert "Traceback" not in running.log.read_text(encoding="utf-8")


def refused(
    response: httpx.Response, status: int, param: str | None = None, hint: str = ""
) -> dict:
    """The error, which must have OpenAI's shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"].endswith("_error")
    assert error["message"] and "\n" not in error["message"]
    if param is not None:
        assert error["param"] == param, error
    assert hint in error["message"], error
    return error


# ---- requests that are wrong ----

WRONG = [
    ({"suffix": "x"}, "suffix", "not supported"),
    ({"best_of": 2}, "best_of", "not supported"),
    ({"best_of": True}, "best_of", "not supported"),
    ({"tools": [{"type": "function"}]}, "tools", "not supported"),
    ({"response_format": {"type": "json_object"}}, "response_format.type", "'text'"),
    ({"min_tokens": 5}, "min_tokens", "not supported"),
    ({"temprature": 1}, "temprature", "not supported"),
    ({"prompt": 5}, "prompt", "must be"),
    ({"prompt": None}, "prompt", "must be"),
    ({"prompt": []}, "prompt", "must be"),
    ({"prompt": [[]]}, "prompt", "must be"),
    ({"prompt": ["a", 5]}, "prompt", "must be"),
    ({"prompt": [1.5]}, "prompt", "must be"),
    ({"prompt": [True]}, "prompt", "must be"),
    ({"prompt": [257]}, "prompt", "outside the vocabulary of 257"),
    ({"prompt": [-1]}, "prompt", "outside the vocabulary"),
    ({"prompt": [2**70]}, "prompt", "outside the vocabulary"),
    ({"prompt": "a" * 513}, "prompt", "maximum context length is 512"),
    ({"prompt": [[1], [2] * 513]}, "prompt[1]", "maximum context length is 512"),
    ({"model": 5}, "model", ""),
    ({"model": None}, "model", ""),
    ({"max_tokens": -1}, "max_tokens", ""),
    ({"max_tokens": 1.5}, "max_tokens", ""),
    ({"max_tokens": "8"}, "max_tokens", ""),
    ({"max_tokens": 501}, "max_tokens", "500"),
    ({"temperature": "hot"}, "temperature", ""),
    ({"temperature": -0.1}, "temperature", ""),
    ({"top_p": -0.5}, "top_p", ""),
    ({"top_p": 1.01}, "top_p", ""),
    ({"top_k": -2}, "top_k", ""),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "from 1 to the context of 512"),
    ({"truncate_prompt_tokens": 513}, "truncate_prompt_tokens", "from 1 to the context of 512"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", ""),
    ({"min_p": 2}, "min_p", ""),
    ({"repetition_penalty": 0}, "repetition_penalty", ""),
    ({"presence_penalty": 3}, "presence_penalty", ""),
    ({"frequency_penalty": -3}, "frequency_penalty", ""),
    ({"n": 0}, "n", ""),
    ({"n": 33}, "n", "above 32"),
    ({"n": 17, "prompt": ["a", "b"]}, "n", "above 32"),
    ({"logprobs": 6}, "logprobs", ""),
    ({"logprobs": True}, "logprobs", ""),
    ({"stop": ""}, "stop", "1 to 256"),
    ({"stop": ["a"] * 17}, "stop", "up to 16"),
    ({"stop": [5]}, "stop", "up to 16"),
    ({"stop": "x" * 257}, "stop", "1 to 256"),
    ({"seed": 1.5}, "seed", ""),
    ({"seed": 2**63}, "seed", ""),
    ({"logit_bias": {"x": 1}}, "logit_bias", "not a token id"),
    ({"logit_bias": {"1": 101}}, "logit_bias", "-100 to 100"),
    ({"logit_bias": {"257": 1}}, "logit_bias", "vocabulary of 257"),
    ({"logit_bias": [1]}, "logit_bias", "object"),
    ({"stream": 1}, "stream", ""),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "not supported"),
    ({"echo": "yes"}, "echo", ""),
]


@pytest.mark.parametrize("change, param, hint", WRONG, ids=lambda v: str(v)[:40])
def test_wrong_values(served, change, param, hint):
    refused(served.post("/v1/completions", {**ASK, **change}), 400, param, hint)


def test_the_client_sees_what_is_wrong(served):
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="x")  # it repeats 429 and 5xx
    before = served.metric("responses_total")
    with pytest.raises(openai.BadRequestError) as e:
        client.completions.create(model="m", prompt="a", temperature=-1)
    assert e.value.param == "temperature" and "temperature" in e.value.message
    assert served.metric("responses_total") == before + 2  # that one and the metrics before it


def test_null_is_as_if_absent(served):
    names = (
        "max_tokens temperature top_p n stream logprobs echo stop seed logit_bias presence_penalty "
        "frequency_penalty user top_k min_p repetition_penalty stream_options"
    )
    body = {**{name: None for name in names.split()}, "model": "m", "prompt": "a"}
    answer = served.post("/v1/completions", body).json()
    assert answer["usage"]["completion_tokens"] <= 16 and len(answer["choices"]) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model"',
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"1" * 5000,
        b'{"model": "m", "prompt": "a", "temperature": NaN}',
        b'{"model": "m", "prompt": "a", "temperature": 1e999}',
        b'{"model": "m", "prompt": "a", "seed": 1' + b"0" * 5000 + b"}",
        b'{"model": "m", "prompt": "\\ud83d"}',
        b'{"model": "\\ud83d", "prompt": "a"}',
        b'{"\\ud83d": "m", "prompt": "a"}',
        b'{"model": "m", "prompt": ["a", "\\udc00"]}',
        b'{"model": "m", "prompt": "a", "stop": "\\ud83d"}',
    ],
    ids=lambda b: repr(b[:30]),
)
def test_malformed_bodies(served, body):
    headers = {"Content-Type": "application/json"}
    refused(served.http.post("/v1/completions", content=body, headers=headers), 400)


def test_other_content_types(served):
    """Forms and plain text are what another site's page could send without asking."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        body, headers = json.dumps(ASK), {"Content-Type": kind}
        refused(served.http.post("/v1/completions", content=body, headers=headers), 400)


def test_a_compressed_body_is_called_one(served):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    body = gzip.compress(json.dumps(ASK).encode())
    answer = served.http.post("/v1/completions", content=body, headers=headers)
    refused(answer, 400, hint="Content-Encoding: gzip is not read")
    headers["Content-Encoding"] = "identity"
    body = json.dumps(ASK).encode()
    assert served.http.post("/v1/completions", content=body, headers=headers).status_code == 200


def test_unknown_paths_and_methods(served):
    for path in ("/nothing", "/v1/nothing", "/v1", "/docs", "/..%2f..%2fetc/passwd"):
        refused(served.http.get(path), 404)
        refused(served.post(path, {}), 404)
    refused(served.http.get("/v1/completions"), 405)
    refused(served.http.delete("/v1/models"), 405)


# ---- sizes ----


def test_a_body_of_10_mb(served):
    body = json.dumps({**ASK, "prompt": "a" * 10_000_000}).encode()
    headers = {"Content-Type": "application/json"}
    before = psutil.Process(served.process.pid).memory_info().rss
    for _ in range(5):
        error = refused(served.http.post("/v1/completions", content=body, headers=headers), 413)
        assert error["code"] == "body_too_large"
    chunks = (body[i : i + 65536] for i in range(0, len(body), 65536))  # of unknown length
    refused(served.http.post("/v1/completions", content=chunks, headers=headers), 413)
    assert psutil.Process(served.process.pid).memory_info().rss - before < 100e6


def test_large_bodies_of_the_right_kind(served):
    """3 MB that are parsed and refused, quickly."""
    begun = time.monotonic()
    for change in (
        {"prompt": [1] * 1_000_000},
        {"prompt": ["a"] * 500_000},
        {"prompt": [[1]] * 500_000},
        {"prompt": "a" * 3_000_000},
        {"logit_bias": {str(i): 1 for i in range(200_000)}},
        {"logit_bias": {"x" * 3_000_000: 1}},
        {"stop": ["a"] * 500_000},
    ):
        refused(served.post("/v1/completions", {**ASK, **change}), 400)
    messages = [{"role": "user", "content": 5}] * 80_000
    refused(served.post("/v1/chat/completions", {"model": "m", "messages": messages}), 400)
    assert time.monotonic() - begun < 120  # each would take minutes if it were looked at whole


def test_others_do_not_wait_for_large_bodies(served):
    """They took seconds of the event loop, in which nobody else was served."""
    keys = {f"k{i}": 1 for i in range(300_000)}
    few = {f"k{i}": 1 for i in range(19_000)}
    bodies = [
        ("/v1/completions", {**ASK, **keys}),
        ("/v1/completions", {**ASK, **few}),
        ("/v1/completions", {**ASK, "logit_bias": keys}),
        ("/v1/completions", {**ASK, "prompt": ["a"] * 299_000}),
        ("/v1/completions", {**ASK, "prompt": [["a"]] * 299_000}),
        ("/v1/completions", {**ASK, "prompt": ["a" * 500] * 32, "echo": True, "logprobs": 5}),
        ("/v1/chat/completions", {"model": "m", "messages": [5] * 299_000}),
        ("/v1/chat/completions", {"model": "m", "messages": [few]}),
        ("/detokenize", {"tokens": ["a"] * 100_000}),
        ("/detokenize", {"tokens": [1] * 200_000}),
        ("/detokenize", {"tokens": [1] * 100_000}),
        ("/tokenize", {"prompt": "a" * 3_900_000}),
        ("/tokenize", {"prompt": "a" * 1_200_000}),
        ("/inspect", {"model": "m", "prompt": "a" * 3_900_000}),
    ]
    headers, statuses, longest = {"Content-Type": "application/json"}, [], {}
    health = http.client.HTTPConnection(*served.address, timeout=60)

    def ask(path: str, content: bytes) -> None:
        asking = http.client.HTTPConnection(*served.address, timeout=120)
        asking.request("POST", path, content, headers)
        with asking.getresponse() as answer:
            statuses.append(answer.status)
            answer.read()

    for path, body in bodies:
        thread = threading.Thread(target=ask, args=[path, json.dumps(body).encode()])
        thread.start()
        wait = 0.0
        while thread.is_alive():
            begun = time.monotonic()
            health.request("GET", "/health")
            with health.getresponse() as answer:
                assert answer.status == 200 and answer.read()
            wait = max(wait, time.monotonic() - begun)
        longest[path, str(body)[-60:]] = wait
    assert sorted(set(statuses)) == [200, 400] and len(statuses) == len(bodies)
    assert max(longest.values()) < 2, longest  # 0.1 on a machine that does nothing else


def test_an_endless_head(served):
    with socket.create_connection(served.address, timeout=30) as s:
        s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        with pytest.raises(OSError):  # the server closes it
            for _ in range(1000):
                s.sendall(b"X-Long: " + b"x" * 8000 + b"\r\n")
            assert s.recv(1) != b""
            raise AssertionError("8 MB of headers were taken")


# ---- who may ask ----


def test_foreign_hosts_and_origins(served):
    for host in (
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "10.0.0.7",
        "[",
    ):
        error = refused(served.http.get("/health", headers={"Host": host}), 403)
        assert error["code"] == "host_not_allowed"
    # without a name: the checks of load balancers, and no browser
    for host in ("localhost", "127.0.0.1:1", "LOCALHOST:8000", "[::1]:8000", ""):
        assert served.http.get("/health", headers={"Host": host}).status_code == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://[", "x"):
        headers = {"Origin": origin}
        error = refused(served.post("/v1/completions", ASK, headers=headers), 403)
        assert error["code"] == "origin_not_allowed"
    own = {"Origin": served.url}
    answer = served.post("/v1/completions", ASK, headers=own)
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("given", [KEY, "FILE:key.txt"])
def test_api_keys(folder, given):
    (folder / "key.txt").write_text(KEY + "\n")
    with server(folder, "--out_dir=m", f"--api_key={given}", "--hosts=gpu.example") as running:
        paths = ("/v1/models", "/metrics", "/runs", "/tokenizers", "/openapi.json", "/nothing")
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {KEY}"}):
            for path in paths:
                assert refused(running.http.get(path, headers=headers), 401)["code"] == (
                    "invalid_api_key"
                )
            refused(running.post("/v1/completions", ASK, headers=headers), 401)
        good = {"Authorization": f"Bearer {KEY}"}
        assert running.http.get("/v1/models", headers=good).status_code == 200
        assert running.http.get("/nothing", headers=good).status_code == 404
        assert running.http.get("/health").status_code == 200  # for watchdogs
        assert running.http.get("/health", headers={"Host": "gpu.example"}).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{running.url}/v1", api_key="x").models.list()
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY)
        assert [m.id for m in client.models.list()] == ["m"]
        assert KEY not in running.log.read_text()


def test_a_warning_beyond_loopback(folder):
    with server(folder, "--out_dir=m", "--host=0.0.0.0") as running:
        assert "warning" in running.log.read_text()
        port = running.address[1]
        for host in (f"127.0.0.1:{port}", f"10.0.0.7:{port}", socket.gethostname()):
            answer = httpx.get(f"http://127.0.0.1:{port}/health", headers={"Host": host})
            assert answer.status_code == 200, host
        foreign = httpx.get(f"http://127.0.0.1:{port}/health", headers={"Host": "evil.example"})
        refused(foreign, 403)
        running.url = f"http://127.0.0.1:{port}"


# ---- clients that vanish, stall, or come in crowds ----


def test_a_client_that_vanishes(served):
    """Its texts end, whether they were streamed or waited for, and those that had not begun too."""
    body = json.dumps({**ASK, "max_tokens": 500, "n": 16}).encode()
    for stream in (b"true", b"false"):
        before = served.metric("rows_cancelled_total")
        with socket.create_connection(served.address) as s:
            part = body[:-1] + b', "stream": ' + stream + b"}"
            head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(part)
            s.sendall(head + part)
            served.wait_for("rows_waiting")  # eight run at once
        served.wait_until_idle(5)
        assert served.metric("rows_cancelled_total") == before + 16


def test_a_body_that_never_comes(served):
    with socket.create_connection(served.address) as s:
        s.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
        )
        assert served.post("/v1/completions", ASK).status_code == 200  # others do not wait


def test_answers_are_the_same_beside_others(served):
    """Alone, in a crowd, streamed, or going on after a neighbour was cancelled."""
    asks = [
        {
            **ASK,
            "temperature": 1.0,
            "seed": seed,
            "max_tokens": 5 + 3 * seed,
            "prompt": "One day"[: 1 + seed % 7],
        }
        for seed in range(24)
    ]

    def ask(body: dict) -> str:
        while True:
            answer = served.post("/v1/completions", body, timeout=120)
            if answer.status_code == 200:
                return answer.json()["choices"][0]["text"]
            assert answer.status_code == 429
            time.sleep(0.1)

    def streamed(body: dict) -> str:
        text = ""
        with served.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as r:
            for line in r.iter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
        return text

    def leave(seed: int) -> None:
        body = {**ASK, "temperature": 1.0, "seed": seed, "max_tokens": 400, "stream": True}
        with served.http.stream("POST", "/v1/completions", json=body) as r:
            next(r.iter_bytes())

    alone = [ask(body) for body in asks]
    with ThreadPoolExecutor(16) as pool:
        leavers = [pool.submit(leave, seed) for seed in range(6)]
        crowd = list(pool.map(ask, asks))
        streams = list(pool.map(streamed, asks[:16]))
        for leaver in leavers:
            leaver.result()
    assert crowd == alone
    assert streams == alone[:16]


def test_a_full_queue_is_429(served):
    """What does not fit is told when to come back; what was accepted is answered."""
    body = {**ASK, "n": 16, "max_tokens": 30, "temperature": 1}

    def ask(i: int) -> httpx.Response:
        return served.post("/v1/completions", body, timeout=120)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    statuses = [a.status_code for a in answers]
    assert set(statuses) == {200, 429}, statuses
    for answer in answers:
        if answer.status_code == 429:
            assert refused(answer, 429)["code"] == "queue_full"
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
    served.wait_until_idle()
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=10)
    with ThreadPoolExecutor(8) as pool:  # OpenAI's client waits as it is told

        def patient(i: int):
            return client.completions.create(model="m", prompt="One", max_tokens=8, n=16)

        assert all(len(a.choices) == 16 for a in pool.map(patient, range(8)))


def test_a_thousand_connections_that_never_read(served):
    """Streams that nobody takes, and connections that say nothing: others are still answered."""
    allow_open_files(1500)  # of this process
    files = open_files(served.process.pid)
    body = json.dumps({**ASK, "max_tokens": 300, "logprobs": 5, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    sockets = []
    try:
        for i in range(1000):
            s = socket.create_connection(served.address, timeout=30)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sockets.append(s)
            if i % 2:
                s.sendall(request if i % 4 == 1 else request[: random.randrange(len(request))])
        assert served.http.get("/health", timeout=30).status_code == 200
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=30)
        answer = client.completions.create(model="m", prompt="One day", max_tokens=4, temperature=0)
        assert answer.usage.completion_tokens == 4
    finally:
        for s in sockets:
            s.close()
    served.wait_until_idle(30)
    end = time.monotonic() + 30
    while open_files(served.process.pid) > files + 20:
        assert time.monotonic() < end, "connections stay open"
        time.sleep(0.2)


def test_more_connections_than_allowed(folder):
    with server(folder, "--out_dir=m", "--max_connections=20") as running:
        running.http.close()  # its own connection
        sockets = [socket.create_connection(running.address, timeout=10) for _ in range(40)]
        for s in sockets[25:]:
            answer = s.recv(4096)
            assert answer.startswith(b"HTTP/1.1 503 ") and b'"error"' in answer
            s.close()
        for s in sockets[:25]:
            s.close()
        time.sleep(0.5)
        assert httpx.get(f"{running.url}/health").status_code == 200


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/models/m", "/metrics", "/"])
def test_head_is_get_without_a_body(served, path):
    whole, head = served.http.get(path), served.http.request("HEAD", path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]


def test_what_clients_get_wrong_fills_no_log(served):
    """They are answered; also one that asks for a websocket, without advice to install anything."""
    before = served.log.read_text(encoding="utf-8")
    upgrade = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
    for request in (
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"GET\r\n\r\n",
        upgrade + b"Upgrade: websocket\r\n\r\n",
    ):
        for _ in range(3):
            with socket.create_connection(served.address) as s:
                s.sendall(request)
                assert s.recv(1000).startswith(b"HTTP/1.1")
    assert served.log.read_text(encoding="utf-8") == before
