"""serve.py with OpenAI's own client: completions, streams, log-probabilities, models, chat."""

import json
import signal
import threading
import time

import httpx
import numpy as np
import pytest
from helpers.made_model import EOT, TEXT, knowing, knows_nothing, knows_text, save
from helpers.programs import ROOT, TINY, assert_one_line_error, run_program
from helpers.server_process import events, server
from helpers.tiny_data import make_dataset, write_meta

from bonsai.models.table import build_model, describe_model
from bonsai.runs.restore import load_checkpoint
from bonsai.tokenizers import ByteTokenizer, CharTokenizer, from_dict

openai = pytest.importorskip("openai", reason="the openai client is not installed")

FURTHER = ("top_k", "min_p", "repetition_penalty")  # settings that OpenAI's API does not have
ANSWERS = {"cat": "meow", "dog": "woof", "cow": "moo", "owl": "hoo"}
TEMPLATE = {"roles": {"user": ["Q: ", "\n"], "assistant": ["A: ", "\n"], "system": ["", "\n"]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three models: one that knows a text, one that knows nothing and whose texts have no end, one
    that chats; and a run of training."""
    folder = tmp_path_factory.mktemp("serving")
    knows_text(folder / "out-memo")
    knows_nothing(folder / "out-long", block_size=1024)
    chat_data(folder / "data" / "chat")
    options = ["--n_embd=64", "--block_size=64", "--dataset=chat", "--out_dir=out-run"]
    result = run_program([*TINY, *options], folder)
    assert result.rc == 0, result
    trained = load_checkpoint(folder / "out-run" / "ckpt.pt")  # the template came from meta.json
    tokenizer = from_dict(trained["tokenizer"])
    texts = [tokenizer.encode(talk(a, b)) for a in ANSWERS for b in ANSWERS]
    model = knowing(texts, tokenizer.vocab_size, block_size=64, lags=6)
    save(folder / "out-chat", model, tokenizer, chat_template=trained["chat_template"])
    return folder


def talk(*questions: str) -> str:
    return "".join(f"Q: {q}\nA: {ANSWERS[q]}\n" for q in questions)


def chat_data(folder) -> None:
    """Conversations, and the template that they follow, in meta.json."""
    text = talk(*ANSWERS) * 20
    tokenizer = CharTokenizer.from_text(text)
    ids = np.array(tokenizer.encode(text), dtype=np.uint16)
    make_dataset(folder, "meta")
    splits = {"train": ids, "val": ids}
    for name, part in splits.items():
        (folder / f"{name}.bin").write_bytes(part.tobytes())
    write_meta(
        folder,
        splits,
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer.to_dict(),
        chat_template=TEMPLATE,
    )


@pytest.fixture(scope="module")
def served(folder):
    models = "--models=memo=out-memo,long=out-long,chat=out-chat,org/chat=out-chat"
    options = [models, "--max_batch=4", "--origins=https://a.example,http://localhost:3000"]
    with server(folder, *options) as running:
        yield running


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="anything", max_retries=0)


@pytest.mark.parametrize("guess", ["lookup", "draft"])
def test_guesses_that_a_models_cache_does_not_allow_are_said(tmp_path, guess):
    fields = dict(n_layer=1, n_head=1, n_embd=64, block_size=64, vocab_size=257, patch_size=4)
    local = dict(local_layer=1, local_head=1, local_embd=16)
    model = build_model("megabyte", fields | local)
    save(tmp_path / "out", model, ByteTokenizer(), **describe_model(model, "megabyte"))
    with server(tmp_path, f"--{guess}=2") as running:
        assert f"model out: --{guess} is without effect" in running.log.read_text()


def complete(client, prompt="One day", **options):
    extra = {k: options.pop(k) for k in FURTHER if k in options}
    options = {"model": "memo", "temperature": 0, "max_tokens": 16, **options}
    return client.completions.create(prompt=prompt, extra_body=extra, **options)


def same(client, **options) -> list[str]:
    """The texts of a request, which must be the same when it is streamed."""
    whole = [c.text for c in complete(client, **options).choices]
    streamed = ["" for _ in whole]
    for chunk in complete(client, stream=True, **options):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == whole
    return whole


# ---- models ----


def test_models_are_listed(client):
    assert [m.id for m in client.models.list()] == ["memo", "long", "chat", "org/chat"]
    for listed in client.models.list():  # a name may have a slash
        assert client.models.retrieve(listed.id) == listed
    model = client.models.retrieve("memo")
    assert (model.id, model.object, model.owned_by) == ("memo", "model", "bonsai")
    assert model.created > 1e9
    for name in ("nobody", "out-memo", "../out-memo", "memo/", "org", "org/", "org/chat/x"):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)


def test_unknown_models_are_404(client):
    with pytest.raises(openai.NotFoundError) as e:
        complete(client, model="gpt-4")
    assert (e.value.code, e.value.param) == ("model_not_found", "model")
    assert "memo" in e.value.message


# ---- completions ----


def test_a_text_is_continued(client):
    answer = complete(client, "One day", max_tokens=200)
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion"
    assert answer.model == "memo" and answer.created > 1e9
    (choice,) = answer.choices
    assert choice.text == TEXT.removeprefix("One day")
    assert choice.finish_reason == "stop" and choice.index == 0 and choice.logprobs is None
    assert answer.usage.prompt_tokens == 7
    assert answer.usage.completion_tokens == len(choice.text.encode())
    assert answer.usage.total_tokens == 7 + answer.usage.completion_tokens


def test_sixteen_tokens_by_default(client):
    answer = client.completions.create(model="memo", prompt="One day", temperature=0)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 16


def test_every_kind_of_prompt(client):
    text = "One day"
    ids = list(text.encode())
    wanted = TEXT[7:23]
    assert complete(client, text).choices[0].text == wanted
    assert complete(client, ids).choices[0].text == wanted
    two = complete(client, [text, "to me."], max_tokens=4)
    assert [(c.index, c.text) for c in two.choices] == [(0, wanted[:4]), (1, " Zo\ufffd")]
    assert complete(client, [ids, ids]).usage.prompt_tokens == 14
    assert [c.text for c in complete(client, [ids, ids]).choices] == [wanted, wanted]


def test_an_empty_prompt_begins_a_text(client):
    answer = complete(client, "", max_tokens=7, echo=True)
    assert answer.choices[0].text == "One day"  # the end of text before it is not shown
    assert answer.usage.prompt_tokens == 1


def test_the_end_of_text_can_be_written(client):
    assert complete(client, "<|endoftext|>", max_tokens=7).choices[0].text == "One day"


def test_streams_give_the_same_text(client):
    assert same(client, prompt="One day", max_tokens=200) == [TEXT[7:]]
    assert len(set(same(client, prompt="One", temperature=1.5, seed=3, n=4))) > 1


def test_chunks_of_a_stream(client):
    options = {"max_tokens": 60, "temperature": 1, "seed": 1, "n": 2, "stream": True}
    chunks = list(complete(client, ["One", "to"], **options))
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.object == "text_completion" and chunk.usage is None for chunk in chunks)
    for index in range(4):
        reasons = [c.finish_reason for k in chunks for c in k.choices if c.index == index]
        assert reasons[-1] in ("stop", "length") and not any(reasons[:-1])


def test_usage_of_a_stream_on_request(client):
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 16
    assert all(chunk.choices and chunk.usage is None for chunk in chunks[:-1])


def test_characters_are_never_cut(served, client):
    """Byte tokens: an emoji is four of them, and a chunk never has a part of one."""
    body = {"model": "memo", "prompt": "Zoë saw", "temperature": 0, "max_tokens": 25}
    chunks = events(served.post("/v1/completions", {**body, "stream": True}))
    texts = [c["text"] for chunk in chunks for c in chunk["choices"]]
    assert "".join(texts) == " 漢字 and 😀👍 too;" and "\ufffd" not in "".join(texts)
    # what is cut off by max_tokens is shown as such at the end, streamed or not
    cut = complete(client, "Zoë saw 漢字 and", max_tokens=3).choices[0]
    assert cut.text == " \ufffd" and cut.finish_reason == "length"
    assert same(client, prompt="Zoë saw 漢字 and", max_tokens=3) == [" \ufffd"]


def test_a_prompt_that_ends_within_a_character(client):
    ids = list("漢字 and 😀".encode())[:-2]
    assert complete(client, ids, max_tokens=6).choices[0].text == "😀👍"
    assert complete(client, ids, max_tokens=6, echo=True).choices[0].text == "漢字 and 😀👍"


# ---- stopping ----


@pytest.mark.parametrize(
    "stop, text",
    [
        ("aab", " a cat said a"),  # in "aaab"
        (["nowhere", "said"], " a cat "),
        (["said aaab to", "aab"], " a cat said a"),  # ends first
        ("漢字", " a cat said aaab to me. Zoë saw "),
        ("👍", " a cat said aaab to me. Zoë saw 漢字 and 😀"),
        ([], " a cat said aaab"),
        (" a", ""),
    ],
)
def test_stop_strings(client, stop, text):
    limit = 16 if stop == [] else 100
    assert same(client, stop=stop, max_tokens=limit) == [text]
    if stop != []:
        assert complete(client, stop=stop, max_tokens=100).choices[0].finish_reason == "stop"


def test_what_looked_like_a_stop_string_is_given_at_the_end(client):
    assert same(client, stop="said nothing", max_tokens=11) == [" a cat said"]
    assert complete(client, stop="said nothing", max_tokens=11).choices[0].finish_reason == "length"


def test_a_stopped_row_gives_its_place_back(served, client):
    complete(client, stop="a", max_tokens=140, n=4)
    served.wait_until_idle()


# ---- sampling ----


def test_zero_is_a_value(client):
    """temperature 0 is greedy, top_k 0 is off, max_tokens 0 draws nothing, seed 0 is a seed."""
    assert len({complete(client, temperature=0).choices[0].text for _ in range(3)}) == 1
    free = {"temperature": 2.0, "seed": 5, "max_tokens": 30}
    assert complete(client, top_k=0, **free).choices == complete(client, **free).choices
    assert complete(client, top_k=1, **free).choices[0].text == TEXT[7:].encode()[:30].decode()
    answer = complete(client, max_tokens=0)
    assert answer.choices[0].text == "" and answer.choices[0].finish_reason == "length"
    zero = [complete(client, temperature=2.0, seed=0).choices[0].text for _ in range(2)]
    assert zero[0] == zero[1]


def test_seeds(client):
    def texts(seed):
        return [c.text for c in complete(client, temperature=2.0, seed=seed, n=3).choices]

    assert texts(7) == texts(7) and texts(7) != texts(8)
    assert len(set(texts(7))) == 3
    free = {complete(client, temperature=2.0).choices[0].text for _ in range(3)}
    assert len(free) == 3  # without a seed each request has its own


def test_n_samples_begin_with_that_of_one(client):
    three = complete(client, temperature=2.0, seed=7, n=3).choices
    assert complete(client, temperature=2.0, seed=7).choices[0].text == three[0].text
    two_prompts = complete(client, ["to me", "One day"], temperature=2.0, seed=7, n=3).choices
    assert [c.text for c in two_prompts[3:]] == [c.text for c in three]
    assert [c.index for c in two_prompts] == list(range(6))


def test_logit_bias(client):
    x, space = ord("x"), ord(" ")
    assert complete(client, logit_bias={str(x): 100}, max_tokens=5).choices[0].text == "xxxxx"
    assert not complete(client, logit_bias={str(space): -100}).choices[0].text.startswith(" ")


def test_penalties(client):
    """A strong bias towards x, a weaker one towards z, and what keeps x from being repeated."""
    bias = {"logit_bias": {str(ord("x")): 100, str(ord("z")): 75}, "max_tokens": 40}
    for nothing in ({}, {"presence_penalty": 2}, {"frequency_penalty": -2}):
        assert complete(client, **bias, **nothing).choices[0].text == "x" * 40
    assert set(complete(client, frequency_penalty=2, **bias).choices[0].text) == {"x", "z"}
    assert "z" in complete(client, repetition_penalty=50.0, **bias).choices[0].text


def test_filters(client):
    for options in ({"top_p": 1e-6}, {"min_p": 1.0}, {"top_k": 1}):
        text = complete(client, temperature=2.0, seed=1, **options).choices[0].text
        assert text == complete(client).choices[0].text, options


# ---- log-probabilities ----


def test_logprobs(client):
    answer = complete(client, "One day", logprobs=3, max_tokens=4).choices[0]
    lists = answer.logprobs
    assert lists.tokens == list(" a c") and lists.text_offset == [0, 1, 2, 3]
    for token, logprob, top in zip(lists.tokens, lists.token_logprobs, lists.top_logprobs):
        assert len(top) == 3 and top[token] == logprob == max(top.values()) <= 0
    sampled = complete(client, "One", logprobs=1, temperature=100, seed=1).choices[0].logprobs
    for token, logprob, top in zip(sampled.tokens, sampled.token_logprobs, sampled.top_logprobs):
        assert top[token] == logprob and len(top) in (1, 2)  # the chosen one is always among them
    none = complete(client, "One", logprobs=0, max_tokens=1).choices[0].logprobs
    assert len(none.top_logprobs[0]) == 1


def test_echo_scores_the_prompt(client):
    """max_tokens 0 with echo: log p of the prompt, nothing before its first token."""
    choice = complete(client, "One day", logprobs=1, max_tokens=0, echo=True).choices[0]
    lists = choice.logprobs
    assert choice.text == "One day" == "".join(lists.tokens) and choice.finish_reason == "length"
    assert lists.token_logprobs[0] is None and lists.top_logprobs[0] is None
    assert all(p > -0.5 for p in lists.token_logprobs[3:])  # it knows this text
    wrong = complete(client, "One dog", logprobs=1, max_tokens=0, echo=True).choices[0].logprobs
    assert wrong.token_logprobs[:5] == pytest.approx([None, *lists.token_logprobs[1:5]], abs=1e-4)
    assert wrong.token_logprobs[5] < -3 and "a" in wrong.top_logprobs[5]


def test_echo_and_answer_agree(client):
    """The score of a token is the same as answer and as prompt: what lm-eval relies on."""
    first = complete(client, "One day", logprobs=2, max_tokens=12).choices[0]
    both = complete(client, "One day" + first.text, logprobs=2, max_tokens=1, echo=True).choices[0]
    lists = both.logprobs
    assert len(lists.tokens) == len(lists.token_logprobs) == 7 + 12 + 1
    assert lists.token_logprobs[7:-1] == pytest.approx(first.logprobs.token_logprobs, abs=1e-4)
    assert lists.text_offset == list(range(20))


def test_logprobs_of_a_stream(client):
    options = {"logprobs": 2, "echo": True, "max_tokens": 40, "stop": "to", "seed": 2}
    whole = complete(client, "One", **options).choices[0]
    parts = [c for k in complete(client, "One", stream=True, **options) for c in k.choices]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [x for c in parts for x in getattr(c.logprobs, name)]
        assert joined == getattr(whole.logprobs, name), name
    assert "".join(whole.logprobs.tokens) == whole.text == "One day a cat said aaab "


def test_tokens_that_are_parts_of_characters(client):
    choice = complete(client, "and ", logprobs=1, max_tokens=4).choices[0]
    assert choice.text == "😀"
    assert choice.logprobs.tokens == ["bytes:\\xf0", "bytes:\\x9f", "bytes:\\x98", "bytes:\\x80"]
    assert choice.logprobs.text_offset == [0, 0, 0, 0]


def test_token_ids_on_request(served):
    body = {"model": "memo", "prompt": "One", "temperature": 0, "max_tokens": 4, "logprobs": 2}
    choice = served.post("/v1/completions", {**body, "return_token_ids": True}).json()["choices"][0]
    assert bytes(choice["token_ids"]).decode() == choice["text"] == " day"
    for ids, top in zip(choice["logprobs"]["top_token_ids"], choice["logprobs"]["top_logprobs"]):
        assert ids.keys() == top.keys()
        assert all(ord(text) == i for text, i in ids.items() if len(text) == 1 and i < 128)
    # with the prompt's they are the next prompt
    assert bytes(choice["prompt_token_ids"]).decode() == "One"
    ids = [*choice["prompt_token_ids"], *choice["token_ids"]]
    from_ids, from_text = (
        served.post("/v1/completions", {**body, "prompt": prompt}).json()["choices"][0]["text"]
        for prompt in (ids, "One day")
    )
    assert from_ids == from_text
    empty = served.post("/v1/completions", {**body, "prompt": "", "return_token_ids": True})
    assert empty.json()["choices"][0]["prompt_token_ids"] == [EOT]  # the beginning of a text
    plain = served.post("/v1/completions", body).json()["choices"][0]
    assert "token_ids" not in plain and "top_token_ids" not in plain["logprobs"]


def test_json_has_no_infinities(served):
    """A bias of -100 on all but one token: log p of the raw logits stays finite anyhow; what is
    minus infinity would be -9999."""
    from bonsai.serving.api.forms import clamp

    assert clamp(float("-inf")) == clamp(-1e30) == -9999.0 and clamp(-3.5) == -3.5
    body = {"model": "memo", "prompt": "One", "logprobs": 5, "echo": True, "temperature": 0}
    text = served.post("/v1/completions", body).text
    json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} in JSON"))


# ---- the context ----


def test_the_context_can_be_filled(client):
    full = [EOT] * 160
    answer = complete(client, full, max_tokens=10)
    assert answer.usage.completion_tokens == 1 and answer.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError) as e:
        complete(client, [EOT] * 161)
    assert e.value.code == "context_length_exceeded" and "160" in e.value.message
    with pytest.raises(openai.BadRequestError) as e:
        complete(client, "a" * 100_000)
    assert e.value.code == "context_length_exceeded"


@pytest.mark.parametrize("kind", ["tokens", "text"])
@pytest.mark.parametrize(
    "change, kept, answered",
    [
        ({"truncate_prompt_tokens": 3}, 3, 16),
        ({"truncate_prompt_tokens": 160, "max_tokens": 5}, 160, 1),
        ({"truncate_prompt_tokens": -1}, 160 - 16, 16),
        ({"truncate_prompt_tokens": -1, "max_tokens": 150}, 80, 81),
        ({"truncate_prompt_tokens": -1, "max_tokens": 0}, 160, 0),
    ],
)
def test_a_prompt_that_is_too_long_is_cut(client, kind, change, kept, answered):
    """The last tokens stay; what fits is left as it is by -1."""
    ids = list((500 * "a cat ").encode())
    prompt = ids if kind == "tokens" else bytes(ids).decode()
    extra = {"truncate_prompt_tokens": change["truncate_prompt_tokens"], "ignore_eos": True}
    options = {"max_tokens": change.get("max_tokens", 16), "temperature": 0, "echo": True}
    answer = client.completions.create(model="long", prompt=[1], max_tokens=1)  # unlike memo's
    assert answer.usage.prompt_tokens == 1
    answer = client.completions.create(model="memo", prompt=prompt, extra_body=extra, **options)
    assert answer.usage.prompt_tokens == kept and answer.usage.completion_tokens == answered
    assert answer.choices[0].text.startswith(bytes(ids[-kept:]).decode())
    if extra["truncate_prompt_tokens"] == -1:
        short = client.completions.create(model="memo", prompt="a cat", extra_body=extra, **options)
        assert short.usage.prompt_tokens == 5


def test_a_chat_that_is_too_long_is_cut(client):
    messages = [{"role": "user", "content": "cow"}, {"role": "assistant", "content": "moo"}] * 50
    messages += [{"role": "user", "content": "dog"}]
    options = {"model": "chat", "messages": messages, "temperature": 0}
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(**options)
    assert e.value.code == "context_length_exceeded" and e.value.param == "messages"
    options |= {"extra_body": {"truncate_prompt_tokens": -1}}
    answer = client.chat.completions.create(**options, max_completion_tokens=8)
    assert answer.choices[0].message.content == "woof" and answer.usage.prompt_tokens == 64 - 8
    assert client.chat.completions.create(**options).usage.prompt_tokens == 32


def test_a_server_that_cuts(folder):
    with server(folder, "--out_dir=out-memo", "--truncate") as running:
        body = {"model": "out-memo", "prompt": "a" * 5000, "max_tokens": 10}
        assert running.post("/v1/completions", body).json()["usage"]["prompt_tokens"] == 150
        body["truncate_prompt_tokens"] = 4
        assert running.post("/v1/completions", body).json()["usage"]["prompt_tokens"] == 4


# ---- chat ----


@pytest.mark.parametrize("question", ANSWERS)
def test_chat(client, question):
    messages = [{"role": "user", "content": question}]
    answer = client.chat.completions.create(model="chat", messages=messages, temperature=0)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.content == ANSWERS[question]
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"


def test_a_conversation(client):
    messages = [
        {"role": "user", "content": "cow"},
        {"role": "assistant", "content": "moo"},
        {"role": "user", "content": [{"type": "text", "text": "dog"}]},
    ]
    chunks = list(
        client.chat.completions.create(
            model="chat",
            messages=messages,
            temperature=0,
            stream=True,
            logprobs=True,
            top_logprobs=2,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    deltas = [c for chunk in chunks for c in chunk.choices]
    assert "".join(c.delta.content or "" for c in deltas) == "woof"
    assert deltas[-1].finish_reason == "stop"
    tokens = [t for c in deltas if c.logprobs for t in c.logprobs.content]
    assert "".join(t.token for t in tokens) == "woof"
    assert all(len(t.top_logprobs) == 2 for t in tokens) and tokens[0].bytes == [ord("w")]
    # Q: cow / A: moo / Q: dog / A:
    assert chunks[-1].usage.prompt_tokens == len("Q: cow\nA: moo\nQ: dog\nA: ")


def test_an_answer_is_sent_back(client):
    """As it came, which holds fields for what this server does not do."""
    messages = [{"role": "user", "content": "cow"}]
    for question in ("dog", "owl"):
        options = {"model": "chat", "messages": messages, "temperature": 0}
        messages.append(client.chat.completions.create(**options).choices[0].message)
        messages.append({"role": "user", "content": question})
    answer = client.chat.completions.create(model="chat", messages=messages, temperature=0)
    assert answer.choices[0].message.content == "hoo"
    again = [m if isinstance(m, dict) else m.model_dump() for m in messages]  # with every null
    assert again[1]["tool_calls"] is None
    whole = client.chat.completions.create(model="chat", messages=again, temperature=0)
    assert whole.choices == answer.choices and whole.usage == answer.usage


UNUSED = [
    {"n": 1},
    {"tools": []},
    {"tool_choice": "none"},
    {"parallel_tool_calls": True},
    {"response_format": {"type": "text"}},
    {"store": True},
    {"metadata": {"a": "b"}},
    {"best_of": 1},
    {"suffix": None},
    {"suffix": ""},
    {"anything": None},
    {"top_k": -1},
    {"stop": None},
    {"logit_bias": {}},
    {"logprobs": False},
    {"stream_options": None},
    {"stream_options": {"include_usage": False}},
    {"ignore_eos": False},
    {"service_tier": "auto"},
    {"use_beam_search": False},
    {"min_tokens": 0},
    {"stop_token_ids": []},
    {"skip_special_tokens": True},
]


@pytest.mark.parametrize("unused", UNUSED, ids=str)
def test_what_is_not_used_changes_nothing(served, unused):
    for path, body in (
        ("/v1/completions", {"model": "memo", "prompt": "One"}),
        (
            "/v1/chat/completions",
            {"model": "chat", "messages": [{"role": "user", "content": "cow"}]},
        ),
    ):
        plain, answer = (served.post(path, {**body, "seed": 1, **more}) for more in ({}, unused))
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"] == plain.json()["choices"]


@pytest.mark.parametrize(
    "change, param",
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.type"),
        ({"stream": True, "stream_options": {"x": True}}, "stream_options.x"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "tool_calls": [1]},
                ]
            },
            "messages[1].tool_calls",
        ),
        ({"messages": [{"role": "user", "content": "a", "colour": 1}]}, "messages[0].colour"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ],
    ids=lambda v: str(v)[:50],
)
def test_what_is_not_done_is_refused_by_its_name(served, change, param):
    messages = [{"role": "user", "content": "cow"}]
    answer = served.post("/v1/chat/completions", {"model": "chat", "messages": messages, **change})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


def test_what_may_be_asked_of_a_chat(client):
    """20 likeliest tokens, a developer's message, counts in every chunk."""
    messages = [{"role": "developer", "content": ""}, {"role": "user", "content": "cow"}]
    options = {"model": "chat", "messages": messages, "temperature": 0}
    answer = client.chat.completions.create(**options, logprobs=True, top_logprobs=20)
    most = min(20, client.models.retrieve("chat").vocab_size)
    assert most > 5  # what a completion may ask for
    assert all(len(t.top_logprobs) == most for t in answer.choices[0].logprobs.content)
    usage = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options=usage))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] > 0


def test_behind_the_end_of_a_text(client):
    options = {"model": "memo", "prompt": "as jam", "temperature": 0, "max_tokens": 10}
    assert client.completions.create(**options).choices[0].text == "."
    answer = client.completions.create(**options, extra_body={"ignore_eos": True})
    assert answer.choices[0].text == ".<|endoftext|>One day "


def test_chat_needs_a_template(client):
    messages = [{"role": "user", "content": "cat"}]
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(model="memo", messages=messages)
    assert e.value.code == "no_chat_template" and "/v1/completions" in e.value.message
    with pytest.raises(openai.BadRequestError, match="no role 'tool'"):
        messages = [{"role": "tool", "content": "cat"}]
        client.chat.completions.create(model="chat", messages=messages)


# ---- beside the API ----


def test_tokens(served):
    answer = served.post("/tokenize", {"text": "aé😀", "model": "memo"}).json()
    assert answer["tokenizer"] == "memo" and answer["count"] == answer["bytes"] == 7
    assert [t["bytes"] for t in answer["tokens"]] == [[b] for b in "aé😀".encode()]
    ids = [t["id"] for t in answer["tokens"]]
    assert served.post("/detokenize", {"tokens": ids, "model": "memo"}).json()["text"] == "aé😀"
    names = served.http.get("/tokenizers").json()
    assert {"byte", "memo", "long", "chat"} <= set(names)
    for name in names:
        answer = served.post("/tokenize", {"text": "cow", "tokenizer": name}).json()
        assert b"".join(bytes(t["bytes"]) for t in answer["tokens"]) == b"cow"
    for wrong in ({"text": "a", "tokenizer": "x"}, {"text": "€", "model": "chat"}):
        assert served.post("/tokenize", wrong).status_code == 400
    assert served.post("/detokenize", {"tokens": [999], "model": "memo"}).status_code == 400


def test_a_harness_leaves_the_tokenizer_to_the_server(served):
    """What lm-evaluation-harness' local-completions asks with tokenizer_backend=remote."""
    info = served.http.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|endoftext|>"

    def encode(text: str) -> list[int]:
        body = {"prompt": text, "add_special_tokens": False}
        return served.post("/tokenize", body).json()["tokens"]

    assert encode(info["eos_token"]) == encode(info["bos_token"]) == [EOT]
    context, rest = encode("One day"), encode(" a cat")
    assert served.post("/detokenize", {"tokens": context}).json()["prompt"] == "One day"
    body = {"model": "memo", "prompt": [context + rest, context + encode(" a dog")]}
    body |= {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    right, wrong = (c["logprobs"] for c in served.post("/v1/completions", body).json()["choices"])
    scores = [sum(c["token_logprobs"][len(context) : -1]) for c in (right, wrong)]
    assert scores[0] > -1 and scores[1] < -10
    greedy = zip(
        right["token_logprobs"][len(context) : -1], right["top_logprobs"][len(context) : -1]
    )
    assert all(logprob == max(top.values()) for logprob, top in greedy)
    asked = {"model": "memo", "prompt": ["One day"], "max_tokens": 99, "temperature": 0}
    asked |= {"stop": ["nowhere", "me", "x", "y", "z", info["eos_token"]], "seed": 1234}
    answer = served.post("/v1/completions", asked).json()
    assert answer["choices"][0]["text"] == " a cat said aaab to "
    other = served.http.get("/tokenizer_info", params={"model": "chat"}).json()
    assert other["eos_token"] is None and other["model_max_length"] == 64


def test_pages_of_other_sites(served):
    """Those of --origins may ask, and read the answer; a browser asks before, without a key."""
    body = {"model": "memo", "prompt": "One", "max_tokens": 1}
    asked = {"Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization, content-type, x-stainless-os"
    for origin in ("https://a.example", "http://localhost:3000"):
        before = served.http.options("/v1/completions", headers={"Origin": origin, **asked})
        assert (
            before.status_code == 200
            and "x-stainless-os" in (before.headers["access-control-allow-headers"])
        )
        for wanted, change in ((200, {}), (400, {"n": 0})):
            headers = {"Origin": origin}
            answer = served.post("/v1/completions", {**body, **change}, headers=headers)
            assert answer.status_code == wanted
            assert answer.headers["access-control-allow-origin"] == origin
    for origin in ("https://b.example", "http://a.example", "https://a.example:444", "null"):
        answer = served.post("/v1/completions", body, headers={"Origin": origin})
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
        before = served.http.options("/v1/completions", headers={"Origin": origin, **asked})
        assert before.status_code == 400


def test_every_answer_has_a_request_id(served, client):
    ids = [served.http.get(path).headers["x-request-id"] for path in ("/health", "/nothing", "/")]
    assert len(set(ids)) == 3 and all(ids)
    assert complete(client)._request_id
    for given, kept in (("mine-1", True), ("a b", False), ("x" * 200, False)):
        answer = served.http.get("/health", headers={"X-Request-Id": given})
        assert (answer.headers["x-request-id"] == given) == kept


def test_inspect(served):
    answer = served.post("/inspect", {"model": "memo", "prompt": "One day"}).json()
    assert "".join(t["text"] for t in answer["tokens"]) == "One day" and answer["cut"] is False
    assert len(answer["attention"]) == 2 and len(answer["attention"][0]) == 4
    for layer in answer["attention"]:
        for head in layer:
            assert [len(row) for row in head] == list(range(1, 8))
            assert all(abs(sum(row) - 1) < 1e-3 for row in head)
    assert len(answer["layers"]) == 3 and all(len(layer) == 10 for layer in answer["layers"])
    assert answer["layers"][-1][0]["text"] == " " and answer["layers"][-1][0]["p"] > 0.5
    long = served.post("/inspect", {"model": "memo", "prompt": "x" * 300}).json()
    assert long["cut"] is True and len(long["tokens"]) == 128


def test_runs(served):
    # the repository may have runs of its own
    (run,) = (r for r in served.http.get("/runs").json() if r["name"] == "out-run")
    assert run["name"] == run["path"] == "out-run" and run["step"] == 20
    assert run["max_iters"] == 20 and run["settings"]["n_embd"] == 64 and run["val_loss"] > 0
    first = served.http.get("/runs/out-run").json()
    assert first["rows"][0]["iter"] == 0 and first["next"] > 20
    rest = served.http.get("/runs/out-run", params={"from": first["next"] - 3}).json()
    assert rest["rows"] == first["rows"][-3:] and rest["next"] == first["next"]
    for wrong in ("nobody", "%2e%2e", "%2e%2e%2fout-run", "out-memo"):
        assert served.http.get(f"/runs/{wrong}").status_code == 404


def test_metrics(served, client):
    before = served.metric("generated_tokens_total")
    complete(client, max_tokens=7)
    assert served.metric("generated_tokens_total") == before + 7
    text = served.http.get("/metrics").text
    assert "# TYPE bonsai_first_token_seconds histogram" in text
    assert 'bonsai_responses_total{path="/v1/completions",status="200"}' in text
    assert "One day" not in text


def test_health(served):
    assert served.http.get("/health").json() == {"status": "ok"}


def test_the_api_describes_itself(served):
    paths = served.http.get("/openapi.json").json()["paths"]
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/tokenize"} <= set(paths)


def test_prompts_are_not_logged(served, client):
    complete(client, "One secret")
    served.post("/v1/completions", {"model": "memo", "prompt": 5, "user": "a secret"})
    assert "secret" not in served.log.read_text(encoding="utf-8")


def test_the_page_and_what_is_not_there(served):
    """Files of web/ with headers that keep others' scripts out; never a file from elsewhere."""
    page = served.http.get("/")
    if not (ROOT / "web" / "index.html").exists():
        assert page.status_code == 404 and "error" in page.json()
        return
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in ("/../serve.py", "/%2e%2e/serve.py", "/..%2fserve.py", "//etc/passwd"):
        missing = served.http.get(path)
        assert missing.status_code == 404 and "error" in missing.json(), path


# ---- starting ----


@pytest.mark.parametrize(
    "options, hint",
    [
        (["--out_dir=nowhere"], "nowhere"),
        (["--models=a"], "name=PATH"),
        (["--models=a=out-memo,a=out-memo"], "twice"),
        (["--out_dir=out-memo", "--max_batch=0"], "max_batch"),
        (["--out_dir=out-memo", "--host=no.such.host.invalid"], "cannot listen"),
        (["--out_dir=out-memo", "--port=70000"], "port"),
        (["--out_dir=out-memo", "--origins=example.org"], "https://example.org"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_mistakes_at_the_start(folder, options, hint):
    result = run_program(["--device=cpu", *options], folder, program="serve.py")
    assert result.rc in (1, 2) and "Traceback" not in result.stderr, result
    assert hint in result.stderr.splitlines()[-1], result


def test_a_port_that_is_taken(folder, served):
    options = ["--out_dir=out-memo", f"--port={served.address[1]}", "--device=cpu"]
    result = run_program(options, folder, program="serve.py")
    assert result.rc == 1 and "cannot listen" in result.stderr, result


@pytest.mark.parametrize(
    "number, times", [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 1)]
)
def test_the_end(folder, number, times):
    """Ctrl-C in the middle of an answer, once or impatiently: it ends, and so does the server."""
    body = {"model": "out-long", "prompt": "a", "max_tokens": 1000, "stream": True}
    got = []

    def ask(running) -> None:
        try:
            with running.http.stream("POST", "/v1/completions", json=body) as response:
                for part in response.iter_bytes():
                    got.append(part)
        except httpx.TransportError:
            pass  # the connection was closed

    with server(folder, "--out_dir=out-long") as running:
        thread = threading.Thread(target=ask, args=[running])
        thread.start()
        end = time.monotonic() + 30
        while not got:
            assert time.monotonic() < end
            time.sleep(0.02)
        for _ in range(times):
            running.process.send_signal(number)
            time.sleep(0.1)
        assert running.process.wait(30) == 0
        thread.join(20)
        assert not thread.is_alive()
        running.ended = True
    log = running.log.read_text()
    assert "stopped" in log and "Traceback" not in log and "Cancel" not in log
    assert times == 2 or b"".join(got).endswith(b"data: [DONE]\n\n")


DIES = """
import runpy, sys
import bonsai.engine.scheduler as scheduler
def step(self):
    raise SystemExit("out of order")
scheduler.Engine.step = step
sys.argv = ["serve.py", *sys.argv[1:]]
runpy.run_path({path!r}, run_name="__main__")
"""


def test_the_program_ends_when_its_engine_has_died(tmp_path):
    knows_text(tmp_path / "m")
    options = ["--out_dir=m"]
    with server(tmp_path, *options, code=DIES) as program:
        answer = program.post("/v1/completions", {"model": "m", "prompt": "a"})
        assert answer.status_code == 503
        assert program.http.get("/health").status_code == 503
        assert program.process.wait(30) == 1
        program.ended = True
    log = program.log.read_text()
    assert log.splitlines()[-1].startswith("error: the engine has died"), log


def test_too_little_memory(tmp_path):
    """In one line, whether it is short while a model is loaded or when a cache is made."""
    import resource  # not on Windows

    knows_nothing(tmp_path / "m", block_size=200_000)
    limit = 6 * 2**30
    result = run_program(
        ["--out_dir=m", "--max_batch=4000", "--device=cpu", "--port=0"],
        tmp_path,
        program="serve.py",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert_one_line_error(result, "out of memory", "max_batch")
