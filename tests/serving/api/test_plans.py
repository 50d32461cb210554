"""bonsai/serving/api/plans.py: what the engine is asked for, from what a request says."""

import asyncio

import pytest
from helpers.server_in_process import model_server

from bonsai.serving.api.faults import ApiError
from bonsai.serving.api.plans import INLINE, Cut, Limits, plan_chat, plan_completion
from bonsai.serving.api.schemas import ChatRequest, CompletionRequest
from bonsai.system.errors import UserError
from bonsai.tokenizers.chat import ChatTemplate

CONTEXT, EOT = 160, 256
TEMPLATE = {"roles": {"user": ["U:", "\n"], "assistant": ["A:", "\n"], "system": ["S:", "\n"]}}


@pytest.fixture(scope="module")
def model():
    """A byte model with a context of 160 tokens, and a chat template."""
    served = model_server(CONTEXT).models["m"]
    served.chat = ChatTemplate.from_dict(TEMPLATE)
    return served


def plan(model, prompt="One", limits=None, **body):
    request = CompletionRequest(model="m", prompt=prompt, **body)
    return asyncio.run(plan_completion(model, request, limits or Limits()))


def chat(model, *texts: str, limits=None, **body):
    messages = [{"role": "user", "content": text} for text in texts]
    request = ChatRequest(model="m", messages=messages, **body)
    return asyncio.run(plan_chat(model, request, limits or Limits()))


def refused(make, *args, **options) -> ApiError:
    with pytest.raises(ApiError) as e:
        make(*args, **options)
    assert e.value.status == 400
    return e.value


def test_what_a_request_leaves_out(model):
    made = plan(model)
    assert made.prompts == [list(b"One")] and (made.n, made.rows, made.prompt_tokens) == (1, 1, 3)
    assert made.params.max_new_tokens == 16 and not made.echo and not made.want_ids
    assert (
        chat(model, "hi").params.max_new_tokens == CONTEXT
    )  # a chat's answer may fill the context
    assert chat(model, "hi", limits=Limits(tokens=9)).params.max_new_tokens == 9


def test_zero_is_a_value(model):
    made = plan(model, max_tokens=0, temperature=0, logprobs=0, seed=0)
    assert (made.params.max_new_tokens, made.params.temperature, made.params.logprobs) == (0, 0, 0)


def test_top_p_0_is_greedy_and_seed_minus_1_is_random(model):
    """As in OpenAI's API, whose range begins at 0, and as in vLLM and llama.cpp."""
    made = plan(model, top_p=0, temperature=0.8)
    assert (made.params.top_p, made.params.temperature) == (1.0, 0.0)
    for seed, seeded in ((None, False), (-1, False), (0, True), (-2, True)):
        first, second = (plan(model, seed=seed) for _ in range(2))
        assert first.seeded is seeded and (first.params == second.params) is seeded


def test_the_words_by_which_clients_know_a_context_that_is_too_short(model):
    """LiteLLM looks for them."""
    for error in (refused(plan, model, "x" * 999), refused(chat, model, "x" * 999)):
        assert "this model's maximum context length is 160 tokens" in error.message


def test_an_empty_prompt_is_the_beginning_of_a_text(model):
    made = plan(model, ["", "a"])
    assert made.prompts == [[EOT], [ord("a")]]
    assert list(made.hidden) == [1, 0]  # a token that nobody sent is not shown
    assert plan(model, "a<|endoftext|>").prompts == [[ord("a"), EOT]]


def test_rows_are_prompts_times_n(model):
    assert plan(model, ["a", "b"], n=2, limits=Limits(rows=4)).rows == 4
    assert refused(plan, model, ["a", "b"], n=3, limits=Limits(rows=5)).param == "n"
    assert refused(plan, model, max_tokens=9, limits=Limits(tokens=8)).param == "max_tokens"


def test_prompts_that_do_not_fit(model):
    assert plan(model, [[7] * CONTEXT]).prompt_tokens == CONTEXT
    for prompt in ([7] * (CONTEXT + 1), "a" * (CONTEXT + 1), "a" * 100_000):
        error = refused(plan, model, prompt)
        assert error.code == "context_length_exceeded" and f"{CONTEXT} tokens" in error.message
    for token in (257, -1):
        assert f"token {token} is outside" in refused(plan, model, [1, token]).message
    assert refused(plan, model, logit_bias={"257": 1}).param == "logit_bias"


class Few:
    """The byte tokenizer without one of its characters."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def encode(self, text, allow_special=False):
        if "z" in text:
            raise UserError("'z' is not in this vocabulary")
        return self.tokenizer.encode(text, allow_special)


@pytest.mark.parametrize(
    "prompt, param",
    [
        ("z", "prompt"),
        (["z"], "prompt"),
        (["a", "z"], "prompt[1]"),
        ([[1], [2, 999]], "prompt[1]"),
        ([999], "prompt"),
        (["a", "b", "a" * (CONTEXT + 1)], "prompt[2]"),
        (["a", "a" * 100_000], "prompt[1]"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_the_prompt_that_is_wrong_is_named(model, monkeypatch, prompt, param):
    monkeypatch.setattr(model, "tokenizer", Few(model.tokenizer))
    assert refused(plan, model, prompt).param == param


@pytest.mark.parametrize(
    "wrong, param",
    [
        ({"role": "tool", "content": "a"}, "messages[2].role"),
        ({"role": "User", "content": "a"}, "messages[2].role"),
        ({"role": "user", "content": "az"}, "messages[2].content"),
    ],
)
def test_the_message_that_is_wrong_is_named(model, monkeypatch, wrong, param):
    monkeypatch.setattr(model, "tokenizer", Few(model.tokenizer))
    messages = [{"role": "user", "content": "a" * 300}, {"role": "user", "content": "b"}, wrong]
    body = ChatRequest(model="m", messages=messages)
    with pytest.raises(ApiError) as e:
        asyncio.run(plan_chat(model, body, Limits(truncate=True)))
    assert e.value.status == 400 and e.value.param == param


def test_a_long_text_is_encoded_beside_the_loop(model):
    """With the same tokens: the last of them."""
    text = "abc" * INLINE
    made = plan(model, text, truncate_prompt_tokens=5)
    assert made.prompts == [list(b"bcabc")]


@pytest.mark.parametrize(
    "asked, max_tokens, kept",
    [
        (None, 16, 300),
        (7, 16, 7),
        (-1, 16, CONTEXT - 16),
        (-1, 150, CONTEXT // 2),
        (-1, 0, CONTEXT),
    ],
)
def test_how_much_of_a_prompt_is_kept(model, asked, max_tokens, kept):
    body = CompletionRequest(model="m", prompt="a", truncate_prompt_tokens=asked)
    cut = Cut.of(model, body, max_tokens, Limits())
    ids = list(range(300))
    assert cut(ids) == ids[-kept:] and cut(ids[:3]) == ids[:3]
    if asked is None:
        assert Cut.of(model, body, max_tokens, Limits(truncate=True)).keep == CONTEXT - max_tokens


def test_a_cut_longer_than_the_context(model):
    for asked in (0, CONTEXT + 1):
        assert refused(plan, model, truncate_prompt_tokens=asked).param == "truncate_prompt_tokens"


def test_messages_stand_in_the_template(model):
    made = chat(model, "hi", "you", stop="!", max_completion_tokens=3, max_tokens=9)
    assert made.prompts == [list(b"U:hi\nU:you\nA:")]
    assert made.stops == ["!", "\n"] and made.params.max_new_tokens == 3
    body = ChatRequest(model="m", messages=[{"role": "developer", "content": "be"}])
    assert asyncio.run(plan_chat(model, body, Limits())).prompts == [list(b"S:be\nA:")]


def test_the_last_messages_of_a_long_chat_stay(model):
    assert refused(chat, model, "a" * 999).param == "messages"
    made = chat(model, "b" * 999, "hi", truncate_prompt_tokens=-1, max_tokens=20)
    assert len(made.prompts[0]) == CONTEXT - 20
    assert bytes(made.prompts[0]).endswith(b"b\nU:hi\nA:")


def test_what_belongs_together(model):
    assert refused(chat, model, "a", top_logprobs=2).param == "top_logprobs"
    assert chat(model, "a", logprobs=True).params.logprobs == 0
    options = {"stream_options": {"include_usage": True}}
    assert refused(plan, model, **options).param == "stream_options"
    assert plan(model, stream=True, **options).rows == 1


def test_a_model_without_a_template_does_not_chat(model):
    plain = model_server(CONTEXT).models["m"]
    assert refused(chat, plain, "a").code == "no_chat_template"


def test_a_chat_ends_at_further_tokens_too(model, monkeypatch):
    monkeypatch.setattr(model, "ends", (EOT, 7))
    asked = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    for more, stops in (({}, {EOT, 7}), ({"ignore_eos": True}, set())):
        found = asyncio.run(plan_chat(model, ChatRequest(**asked, **more), Limits()))
        assert {*found.params.stop_tokens} == stops
    assert {*plan(model).params.stop_tokens} == {EOT}
