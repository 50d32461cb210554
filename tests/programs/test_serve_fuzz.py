"""Random requests: whatever comes, the answer is 200 or a 4xx of the right shape, never a 5xx."""

import json
import string

import pytest
from helpers.made_model import knows_text
from helpers.server_process import ServerProcess, refuse, server
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

ROUTES = {
    "/v1/completions": {
        "prompt", "max_tokens", "temperature", "top_p", "n", "stream", "stream_options", "logprobs",
        "echo", "stop", "seed", "logit_bias", "presence_penalty", "frequency_penalty", "user",
        "top_k", "min_p", "repetition_penalty", "return_token_ids", "model", "ignore_eos",
        "truncate_prompt_tokens", "response_format",
    },
    "/v1/chat/completions": {
        "messages", "max_tokens", "max_completion_tokens", "temperature", "stream", "logprobs",
        "top_logprobs", "stop", "n", "model", "truncate_prompt_tokens", "tools",
    },
    "/tokenize": {"text", "prompt", "model", "tokenizer"},
    "/detokenize": {"tokens", "model", "tokenizer"},
    "/inspect": {"model", "prompt"},
}  # fmt: skip

ALWAYS = {  # what a route cannot do without
    "/v1/completions": {"prompt": "One"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "One"}]},
    "/tokenize": {},
    "/detokenize": {"tokens": [1]},
    "/inspect": {"prompt": "One"},
}

text = st.text(max_size=12)
surrogates = st.text(st.characters(categories=["Cs", "Ll"]), max_size=3)
numbers = st.one_of(
    st.integers(-5, 30), st.integers(), st.floats(), st.sampled_from([0, -1, 2**63, 1e308, 1e-320])
)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | text | surrogates,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=8,
)
ids = st.lists(st.integers(0, 256), min_size=1, max_size=12)
likely = {
    "model": st.sampled_from(["m", "chat", "chat", "x"]),
    "prompt": st.one_of(text, st.lists(text, max_size=3), ids, st.lists(ids, max_size=3)),
    "max_tokens": st.integers(0, 12),
    "max_completion_tokens": st.integers(0, 12),
    "temperature": st.floats(0, 3),
    "top_p": st.floats(0, 1, exclude_min=True),
    "min_p": st.floats(0, 1),
    "top_k": st.integers(-1, 300),
    "ignore_eos": st.booleans(),
    "truncate_prompt_tokens": st.integers(-1, 70),
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}, {}]),
    "tools": st.sampled_from([[], None, [{}]]),
    "n": st.integers(1, 4),
    "stream": st.booleans(),
    "stream_options": st.sampled_from([{"include_usage": True}, {"include_usage": False}, {}]),
    "logprobs": st.one_of(st.integers(0, 5), st.booleans()),
    "top_logprobs": st.integers(0, 20),
    "echo": st.booleans(),
    "stop": st.one_of(text, st.lists(st.text("ab e", min_size=1, max_size=3), max_size=4)),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "logit_bias": st.dictionaries(st.integers(0, 260).map(str), st.floats(-100, 100), max_size=4),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.01, 10),
    "return_token_ids": st.booleans(),
    "messages": st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "user", "x"]), "content": text}
        ),
        min_size=1,
        max_size=3,
    ),
    "text": text,
    "tokens": ids,
    "tokenizer": st.sampled_from(["byte", "m", "gpt2", "nothing"]),
}


@st.composite
def requests(draw) -> tuple[str, dict]:
    """A route and a body: mostly fields it has with likely values, now and then any JSON."""
    path = draw(st.sampled_from(sorted(ROUTES)))
    body = {"model": "chat", **ALWAYS.get(path, {})}
    for name in draw(st.sets(st.sampled_from(sorted(ROUTES[path])), max_size=6)):
        wild = draw(st.integers(0, 14)) == 0
        body[name] = draw(json_values if wild else likely.get(name, json_values))
    if draw(st.integers(0, 20)) == 0:
        body[draw(st.sampled_from(["suffix", "best_of", "tools"]) | text)] = draw(json_values)
    return path, body


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    template = {"roles": {"user": ["Q:", "\n"], "assistant": ["A:", "\n"]}}
    knows_text(folder / "m", block_size=64)
    knows_text(folder / "chat", block_size=64, chat_template=template)
    with server(folder, "--models=m=m,chat=chat", "--max_tokens=64") as running:
        yield running
        assert "Traceback" not in running.log.read_text(encoding="utf-8")


def check(served: ServerProcess, path: str, body: object) -> int:
    content = json.dumps(body)  # surrogates and NaN as Python writes them
    headers = {"Content-Type": "application/json"}
    answer = served.http.post(path, content=content, headers=headers)
    assert answer.status_code in (200, 400, 404, 413, 429), (answer.status_code, answer.text)
    lines = [answer.text]
    if answer.headers["content-type"].startswith("text/event-stream"):
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        assert lines.pop() == "[DONE]", answer.text
    for line in lines:
        value = json.loads(line, parse_constant=refuse)
        if answer.status_code != 200:
            assert set(value["error"]) == {"message", "type", "param", "code"}
        else:
            assert "error" not in value
    return answer.status_code


def fuzz(served: ServerProcess, examples: int) -> dict[int, int]:
    """How many of the requests got which status."""
    statuses: dict[int, int] = {}

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(requests())
    def run(request) -> None:
        status = check(served, *request)
        statuses[status] = statuses.get(status, 0) + 1

    run()
    return statuses


def test_random_requests(served):
    statuses = fuzz(served, 300)
    assert statuses[200] > 60 and statuses[400] > 30, statuses
    served.wait_until_idle()


@pytest.mark.slow
def test_five_thousand_random_requests(served):
    statuses = fuzz(served, 5000)
    print(statuses)
    assert sum(statuses.values()) >= 5000
    assert min(statuses[200], statuses[400]) > 500, statuses
    served.wait_until_idle()


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]),
    path=st.text(string.printable.replace("#", ""), max_size=20),
    body=st.binary(max_size=30),
)
def test_random_paths(served, method, path, body):
    import httpx

    try:
        answer = served.http.request(method, "/" + path, content=body)
    except httpx.InvalidURL:
        return
    assert answer.status_code < 500
    assert answer.status_code == 200 or "error" in answer.json()


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200))
def test_random_bytes_on_the_line(served, data):
    import socket

    with socket.create_connection(served.address, timeout=5) as s:
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while part := s.recv(4096):
                answer += part
        except ConnectionError:
            pass
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer
    assert served.http.get("/health").status_code == 200
