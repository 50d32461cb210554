"""bonsai/serving/app.py: every route and every error is JSON, asked without a socket."""

import asyncio
import json

import httpx
import jinja2
import pytest
from helpers.server_in_process import model_server

from bonsai.serving.api.faults import ApiError
from bonsai.serving.app import PAGE_HEADERS, create_app, open_path
from bonsai.serving.page import playground
from bonsai.serving.worker import Worker
from bonsai.system.errors import UserError
from bonsai.tokenizers import BPETokenizer
from bonsai.tokenizers.bpe import BYTES
from bonsai.tokenizers.chat import ChatTemplate

JSON = {"Content-Type": "application/json"}
PAGE = "<title>bonsai</title>"


@pytest.fixture
def web(tmp_path):
    """A page of two files, and a file beside it that is none of the server's."""
    (tmp_path / "web" / "js").mkdir(parents=True)
    (tmp_path / "web" / "index.html").write_text(PAGE)
    (tmp_path / "web" / "js" / "a.js").write_text("1")
    (tmp_path / "secret").write_text("secret")
    return tmp_path / "web"


def ask(server, method: str, path: str, **options) -> httpx.Response:
    """One request; the engine's thread runs meanwhile."""
    server.worker = Worker(server.worker.engines, 16)

    async def one() -> httpx.Response:
        server.worker.start()
        transport = httpx.ASGITransport(create_app(server), raise_app_exceptions=False)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                return await http.request(method, path, **options)
        finally:
            await asyncio.to_thread(server.worker.stop)

    return asyncio.run(one())


@pytest.fixture(scope="module")
def server():
    return model_server()


def test_models_are_described(server):
    (model,) = ask(server, "GET", "/v1/models").json()["data"]
    assert model["id"] == "m" and model["context_length"] == 160 and model["chat"] is False
    assert model["parameters"] == server.models["m"].model.num_params()
    assert ask(server, "GET", "/v1/models/m").json() == model
    missing = ask(server, "GET", "/v1/models/org/other")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


def test_a_model_is_found_in_a_table_of_names(server):
    assert server.find(None) is server.find("m")
    for name in ("../m", "", "m\n" * 300):
        with pytest.raises(ApiError, match="only m") as e:
            server.find(name)
        assert "\n" not in e.value.message and len(e.value.message) < 500


def test_a_completion_and_a_chat(server):
    body = {"model": "m", "prompt": "One", "max_tokens": 4, "temperature": 0}
    answer = ask(server, "POST", "/v1/completions", json=body)
    assert answer.status_code == 200 and answer.json()["choices"][0]["text"] == " day"
    assert server.metrics.prompt_tokens["m"] >= 3
    chat = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    refused = ask(server, "POST", "/v1/chat/completions", json=chat)
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "no_chat_template"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_equal_prompts_get_different_samples(server, monkeypatch, path):
    """Of a batch, with a seed or without; a seeded prompt is written as it would be alone."""
    template = ChatTemplate.from_dict(TEMPLATE)
    monkeypatch.setattr(server.models["m"], "chat", template)

    def texts(prompts: list[str], **body) -> list[str]:
        asked = {"model": "m", "max_tokens": 24, "temperature": 3, **body}
        if "chat" in path:
            asked |= {"messages": [{"role": "user", "content": prompts[0]}], "n": len(prompts)}
        else:
            asked |= {"prompt": prompts}
        choices = ask(server, "POST", path, json=asked).json()["choices"]
        return [c["text"] if "text" in c else c["message"]["content"] for c in choices]

    for body in ({}, {"seed": 7}, {"seed": -1}):
        assert len({*texts(["a"] * 4, **body)}) == 4
        assert (texts(["a"], **body) == texts(["a"], **body)) == (body == {"seed": 7})
    if path == "/v1/completions":
        assert texts(["b", "a", "a"], seed=7)[1:] == texts(["a", "a"], seed=7)
        assert texts(["b", "a"], seed=7)[1] == texts(["a"], seed=7)[0]


@pytest.mark.parametrize(
    "method, path, words",
    [
        ("POST", "/completions", "did you mean /v1/completions? A client's base_url ends in /v1"),
        ("POST", "/v1/v1/chat/completions", "did you mean /v1/chat/completions?"),
        ("POST", "/v1/completions/", "did you mean /v1/completions?"),
        ("GET", "/models", "did you mean /v1/models?"),
        ("POST", "/v1/responses", "/v1/chat/completions, /v1/completions and /v1/models are here"),
        ("POST", "/v1/embeddings", "/openapi.json lists the rest"),
        ("GET", "/v1/completions", "this path takes POST, not GET"),
        ("DELETE", "/v1/models/m", "this path takes GET, not DELETE"),
        ("PUT", "/health", "this path takes GET, not PUT"),
    ],
)
def test_a_wrong_path_says_which_one_is_right(server, method, path, words):
    assert words in ask(server, method, path).json()["error"]["message"]


@pytest.mark.parametrize(
    "method, path, status",
    [("GET", "/nowhere", 404), ("GET", "/v1/completions", 405), ("GET", "/runs/a?from=x", 400)],
)
def test_every_error_is_json(server, method, path, status):
    answer = ask(server, method, path)
    assert answer.status_code == status and answer.json()["error"]["message"]


TEMPLATE = {"roles": {"user": ["Q: ", "\n"], "assistant": ["A: ", "\n"]}}


@pytest.mark.parametrize("eot", ["<|endoftext|>", "</s>"])
def test_what_a_harness_asks_of_the_tokenizer(server, monkeypatch, eot):
    """The texts that it names are tokens, whatever a vocabulary calls them."""
    served = server.models["m"]
    assert ask(server, "GET", "/tokenizer_info").json()["chat_template"] is None
    monkeypatch.setattr(served, "tokenizer", BPETokenizer(BYTES, None, {eot: 256}, eot=eot))
    monkeypatch.setattr(served, "chat", ChatTemplate.from_dict(TEMPLATE))
    info = ask(server, "GET", "/tokenizer_info").json()
    for name in ("eos_token", "bos_token"):
        body = {"prompt": info[name], "add_special_tokens": False}
        assert ask(server, "POST", "/tokenize", json=body).json()["tokens"] == [256]
    messages = [{"role": "user", "content": "hi"}]
    template = jinja2.Template(info["chat_template"])
    assert template.render(messages=messages, add_generation_prompt=True) == "Q: hi\nA: "


@pytest.mark.parametrize(
    "field, text, wrong",
    [
        ("prompt", "a" * 1_200_000, None),
        ("prompt", "a" * 1_200_001, "send it in parts"),
        ("prompt", "漢" * 400_001, "send it in parts"),  # three tokens each
        ("text", "a" * 200_001, "longer than 200,000"),
    ],
    ids=lambda v: v[:12] if isinstance(v, str) else None,
)
def test_texts_to_tokenize_have_a_length(server, field, text, wrong):
    """Before a tokenizer sees them: while its list is made, no other thread runs."""
    answer = ask(server, "POST", "/tokenize", content=json.dumps({field: text}), headers=JSON)
    if wrong:
        assert answer.status_code == 400 and wrong in answer.json()["error"]["message"]
        assert answer.json()["error"]["param"] == field
    else:
        assert answer.status_code == 200 and answer.json()["count"] >= len(text)


def test_the_field_that_cannot_be_looked_into(server, monkeypatch):
    def refuse(*args):
        raise UserError("Megabyte models cannot be inspected")

    monkeypatch.setattr(playground, "inspect_prompt", refuse)
    answer = ask(server, "POST", "/inspect", json={"model": "m", "prompt": "a"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "model"


def test_a_bug_of_ours_is_a_500_that_tells_nothing(server, monkeypatch):
    monkeypatch.setattr(server.metrics, "text", None)
    answer = ask(server, "GET", "/metrics")
    assert answer.status_code == 500 and "NoneType" not in answer.text
    assert answer.json()["error"]["message"] == "the server failed; see its log"


def test_health_says_whether_the_engines_run(server):
    assert ask(server, "GET", "/health").json() == {"status": "ok"}


def test_the_page_is_served_with_its_headers_and_nothing_beside_it(server, web, monkeypatch):
    monkeypatch.setattr(server, "web", web)
    page = ask(server, "GET", "/")
    assert page.status_code == 200 and page.text == PAGE
    assert {k: page.headers[k] for k in PAGE_HEADERS} == PAGE_HEADERS
    for path in ("/%2e%2e/secret", "/js/%2e%2e/%2e%2e/secret", "/js"):
        assert ask(server, "GET", path).status_code == 404
    assert ask(server, "POST", "/").status_code in (404, 405)


def test_paths_that_need_no_key(web):
    assert set(open_path(web)) == {"/", "/health", "/index.html", "/js/a.js"}
    assert open_path(None) == ("/", "/health")


def test_other_sites_may_ask_where_they_are_named(server, monkeypatch):
    headers = {"Origin": "https://a.example"}
    monkeypatch.setattr(server, "origins", ("https://a.example",))
    allowed = ask(server, "GET", "/health", headers=headers)
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    before = {**headers, "Access-Control-Request-Method": "POST", "X-Request-Id": "mine"}
    asked = ask(server, "OPTIONS", "/v1/completions", headers=before)
    assert asked.status_code == 200 and asked.headers["x-request-id"] == "mine"
    monkeypatch.setattr(server, "origins", ())
    refused = ask(server, "GET", "/health", headers=headers)
    assert "access-control-allow-origin" not in refused.headers
