"""bonsai/serving/api/bodies.py: a body is read within bounds, and its first mistake is named."""

import json

import pytest

from bonsai.serving.api.bodies import MOST_PARTS, MOST_VALUES, field_name, parse, takes
from bonsai.serving.api.faults import ApiError
from bonsai.serving.api.schemas import ChatRequest, CompletionRequest


def refused(body: bytes, model=CompletionRequest) -> ApiError:
    with pytest.raises(ApiError) as e:
        parse(body, model)
    assert e.value.status == 400 and "\n" not in e.value.message
    return e.value


def test_a_body_is_read():
    body = {"model": "m", "prompt": ["a,[{", '"\\"'], "temperature": 0}
    for data in (json.dumps(body).encode(), b"\xef\xbb\xbf" + json.dumps(body).encode()):
        request = parse(data, CompletionRequest)
        assert (request.prompt, request.temperature, request.n) == (body["prompt"], 0, None)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b'{"n": NaN}', b'{"n": Infinity}', b'{"a": ' + b"[" * 15_000],
    ids=lambda v: str(v[:12]),
)
def test_what_is_no_json(body):
    assert refused(body).code == "invalid_json"


def test_more_than_any_good_request_has_is_not_read():
    for body in (
        b"[" + b"1," * (MOST_VALUES + 1) + b"1]",
        b"[" * (MOST_PARTS + 1),
        b"{" + b'"a" :\n1,' * (MOST_PARTS + 1) + b'"b":1}',
    ):
        assert "the body has more than" in refused(body).message


def test_what_stands_in_strings_is_not_counted():
    text = ',[{"\\' * (MOST_VALUES + 1)
    body = json.dumps({"model": "m", "prompt": text}).encode()
    assert parse(body, CompletionRequest).prompt == [text]


TOOL = {"role": "tool", "tool_call_id": "1", "content": "a"}
GOOD = {"model": "m", "messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    "body, param, words",
    [
        ([], None, "the body must be a JSON object"),
        ({**GOOD, "tools": [1]}, "tools", "as the models here call no tools: leave it out"),
        ({**GOOD, "modalities": ["audio"]}, "modalities", "answers are texts: leave it out"),
        ({**GOOD, "best_of": 3}, "best_of", "'best_of' is not supported: leave it out"),
        ({**GOOD, "min_tokens": 3}, "min_tokens", "'min_tokens' is not supported: leave it out"),
        ({**GOOD, "temprature": 1}, "temprature", "did you mean temperature?"),
        (
            {**GOOD, "messages": [*GOOD["messages"], TOOL]},
            "messages[1].tool_call_id",
            "call no tools",
        ),
        (
            {**GOOD, "response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.type",
            "ask for JSON in the prompt",
        ),
        ({**GOOD, "é": 1}, "é", r"'\xe9' is not supported"),
        ({**GOOD, "messages": []}, "messages", "at least 1"),
        ({**GOOD, "model": 5}, "model", "whole characters"),
        (
            {**GOOD, "messages": [{"role": "user", "content": [{"type": "x"}]}]},
            "messages[0].content[0].type",
            "'text'",
        ),
    ],
)
def test_the_innermost_field_is_named(body, param, words):
    error = refused(json.dumps(body).encode(), ChatRequest)
    assert words in error.message and error.message.isascii()
    assert error.param == param


def test_names_of_fields_have_an_end():
    assert field_name(()) == "" and field_name(("a", 0, 1, "b")) == "a[0][1].b"
    assert len(field_name(("a", *["b" * 300] * 3))) == 100


def test_the_schema_of_a_route_stands_alone():
    for model in (CompletionRequest, ChatRequest):
        text = json.dumps(takes(model))
        assert "$ref" not in text and "$defs" not in text
    body = takes(ChatRequest)["requestBody"]["content"]["application/json"]["schema"]
    assert {"model", "messages"} <= set(body["required"])
