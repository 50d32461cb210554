"""bonsai/serving/api/schemas.py: fields one by one, at the ends of their ranges."""

import typing

import pytest
from pydantic import ValidationError

from bonsai.serving.api.schemas import (
    LONGEST_STOP,
    MOST_BIASES,
    MOST_STOPS,
    MOST_TOKENS,
    UNUSED,
    ChatRequest,
    CompletionRequest,
    Message,
    check_logit_bias,
    check_prompt,
    check_stop,
    check_tokens,
    is_text,
    is_unused,
)


def test_texts_are_what_utf8_can_hold():
    assert is_text("") and is_text("\U0001f600") and not is_text("\ud83d") and not is_text(b"a")


@pytest.mark.parametrize(
    "given, prompts",
    [
        ("", [""]),
        (["a", ""], ["a", ""]),
        ([0, 5], [[0, 5]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_four_kinds_of_prompt(given, prompts):
    assert check_prompt(given) == prompts


@pytest.mark.parametrize("given", [[], [[]], [1, "a"], [True], [[1], []], [[1.0]], "\ud83d", None])
def test_no_kind_of_prompt(given):
    with pytest.raises(ValueError, match="prompt must be"):
        check_prompt(given)


def test_stop_strings():
    assert check_stop(None) == [] and check_stop("a") == ["a"]
    longest = ["x" * LONGEST_STOP] * MOST_STOPS
    assert check_stop(longest) == longest
    for wrong in ("", ["a", ""], ["x" * (LONGEST_STOP + 1)], ["a"] * (MOST_STOPS + 1), [1], {}):
        with pytest.raises(ValueError, match="stop"):
            check_stop(wrong)


def test_biases():
    assert check_logit_bias(None) == {} and check_logit_bias({"7": -100, "0": 1.5}) == {
        7: -100.0,
        0: 1.5,
    }
    for wrong in ({"-1": 1}, {"²": 1}, {"٣": 1}, {"1" * 10: 1}, {"": 1}):
        with pytest.raises(ValueError, match="is not a token id"):
            check_logit_bias(wrong)
    for bias in (100.5, float("nan"), True, "1", None):
        with pytest.raises(ValueError, match="from -100 to 100"):
            check_logit_bias({"1": bias})
    with pytest.raises(ValueError, match="up to"):
        check_logit_bias(dict.fromkeys(map(str, range(MOST_BIASES + 1)), 0))


def test_token_ids():
    assert check_tokens([0, 2**31 - 1]) == [0, 2**31 - 1]
    for wrong in ([2**31], [-1], [True], [1.0], "1", [0] * (MOST_TOKENS + 1)):
        with pytest.raises(ValueError, match="token"):
            check_tokens(wrong)


@pytest.mark.parametrize("name", UNUSED)
def test_a_field_that_asks_for_nothing_is_left_out(name):
    """And one that asks for something is not, unless no answer could depend on it."""
    assert is_unused(name, None)
    nothing = UNUSED[name]
    for value in nothing or ():
        assert is_unused(name, value)
    assert is_unused(name, "something else") == (nothing is None)


def test_true_is_not_one_and_false_is_not_zero():
    assert not is_unused("best_of", True) and not is_unused("priority", False)
    assert not is_unused("no such field", 1) and not is_unused("no such field", False)


@pytest.mark.parametrize("nothing", [None, "", [], {}])
def test_what_is_empty_asks_for_nothing(nothing):
    assert is_unused("no such field", nothing) and is_unused("tools", nothing)
    assert is_unused("web_search_options", nothing) == (nothing is None)
    assert Message(role="user", content="a", reasoning=nothing).text == "a"
    part = {"type": "text", "text": "a", "cache_control": nothing}
    assert Message(role="user", content=[part]).text == "a"


def test_the_best_of_as_many_as_are_given():
    body = {"model": "m", "prompt": "a"}
    assert CompletionRequest(**body, n=3, best_of=3).n == 3
    for wrong in ({"n": 3, "best_of": 4}, {"n": 1, "best_of": True}, {"best_of": 2}):
        with pytest.raises(ValidationError, match="extra_forbidden"):
            CompletionRequest(**body, **wrong)


# What OpenAI's API does and this one does not, whatever the value.
NOT_HERE = {"audio", "functions", "moderation", "suffix", "tools", "web_search_options"}


@pytest.mark.parametrize("path, model", [("", CompletionRequest), (".chat", ChatRequest)])
def test_every_field_of_openais_client_is_known(path, model):
    """One that a release of it adds is to be done, to be unused, or to be refused on purpose."""
    types = pytest.importorskip(f"openai.types{path}.completion_create_params")
    fields = typing.get_type_hints(types.CompletionCreateParamsBase)
    assert {"model", "stream_options"} <= set(fields)
    assert set(fields) <= {*model.model_fields, *UNUSED, *NOT_HERE, "stream"}


def test_an_unknown_field_is_refused_and_one_without_use_is_not():
    body = {"model": "m", "prompt": "a"}
    assert CompletionRequest(**body, best_of=1, store=True).prompt == ["a"]
    assert CompletionRequest(**body, logprobs=False).logprobs is None
    with pytest.raises(ValidationError, match="extra_forbidden"):
        CompletionRequest(**body, temprature=1)


def test_a_message_is_a_string_or_parts():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert Message(role="user", content="ab").text == Message(role="user", content=parts).text
    assert Message(role="assistant", content=None).text == ""
    for content in (None, 5, {}):
        with pytest.raises(ValidationError, match="must be a string, or a list of parts"):
            Message(role="user", content=content)
