"""Files of prompts and messages, answered side by side."""

import json

import pytest
import torch
from helpers.made_model import knowing

from bonsai.engine import Engine, SamplingParams
from bonsai.engine.prompt_file import answer_jobs, job_params, prompt_of, read_jobs
from bonsai.system.errors import UserError
from bonsai.tokenizers import ByteTokenizer
from bonsai.tokenizers.chat import TEMPLATES, ChatTemplate

CODER = ByteTokenizer()
SAYS = {"cat": "meow", "dog": "woof", "cow": "moo", "owl": "hoo"}
LINES = ChatTemplate({"user": ("Q:", "\n"), "assistant": ("A:", "\n")})
GREEDY = SamplingParams(30, temperature=0)


def messages(*questions: str) -> list[dict]:
    pairs = ((("user", q), ("assistant", SAYS[q])) for q in questions)
    said = [{"role": role, "content": text} for pair in pairs for role, text in pair]
    return said[:-1]


def engine_of(template: ChatTemplate, **options) -> Engine:
    """Of a model that knows what each animal says, whatever was said before."""
    talks = [[("user", q), ("assistant", SAYS[q])] for q in SAYS]
    texts = [template.encode_conversation(CODER, a + b)[0] for a in talks for b in talks]
    return Engine(knowing(texts, CODER.vocab_size, 160, lags=22), 3, **options)


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("template", [TEMPLATES["plain"], LINES], ids=["token", "string"])
def test_messages_are_answered_to_where_the_template_ends_them(template, capture):
    """By the end-of-text token, or by a string, behind which nothing is kept."""
    jobs = [{"messages": messages(q), "id": i} for i, q in enumerate(SAYS)]
    jobs.insert(1, {"messages": messages("cat", "owl"), "n": 2})
    engine, told = engine_of(template, capture=capture), []
    answers = list(answer_jobs(engine, CODER, jobs, GREEDY, 1, template, told.append))
    assert [a["text"] for a in answers] == ["meow", "hoo", "hoo", "woof", "moo", "hoo"]
    assert {a["finish"] for a in answers} == {"stop"} and sum(told) == 6
    assert [(a.get("id"), a["row"]) for a in answers] == [
        (0, 0), (None, 0), (None, 1), (1, 0), (2, 0), (3, 0),
    ]  # fmt: skip
    assert [a["tokens"] for a in answers] == [len(a["text"]) for a in answers]  # of bytes
    assert not engine.busy


def test_a_prompt_that_stands_there_again_gets_further_samples():
    """As if it had been asked once for all of them; with another seed it begins anew."""

    def texts(*jobs: dict) -> list[str]:
        hot = SamplingParams(20, temperature=3.0)
        return [a["text"] for a in answer_jobs(engine_of(LINES), CODER, [*jobs], hot)]

    job = {"prompt": "Q:cat"}
    at_once = texts({**job, "n": 3})
    assert len({*at_once}) == 3 and texts(job, {**job, "n": 2}) == at_once
    other = {**job, "seed": 5}
    assert texts(job, other)[1:] == texts(other)


def test_prompts_stand_beside_messages():
    """A prompt is continued, whatever the template says; a short answer ends by its length."""
    jobs = [{"prompt": "Q:cat\nA:"}, {"messages": messages("cat")}]
    jobs.append({"messages": messages("cat"), "max_new_tokens": 2})
    found = list(answer_jobs(engine_of(LINES), CODER, jobs, GREEDY, 1, LINES))
    assert found[0]["text"].startswith("meow\nQ:") and found[0]["tokens"] == 30
    assert (found[1]["text"], found[1]["finish"]) == ("meow", "stop")
    assert (found[2]["text"], found[2]["finish"]) == ("me", "length")


def test_further_tokens_end_an_answer_but_no_continuation():
    bare = ChatTemplate({**LINES.roles, "assistant": ("A:", "")})
    jobs = [{"prompt": "Q:cat\nA:"}, {"messages": messages("cat")}]
    found = list(answer_jobs(engine_of(LINES), CODER, jobs, GREEDY, 1, bare, ends=(ord("\n"),)))
    assert found[0]["text"].startswith("meow\nQ:") and found[0]["tokens"] == 30
    assert (found[1]["text"], found[1]["finish"]) == ("meow", "stop")


def test_all_mistakes_come_before_the_first_answer():
    engine = engine_of(LINES)
    with pytest.raises(UserError, match="prompt 2: the model has no chat template"):
        answer_jobs(engine, CODER, [{"prompt": "a"}, {"messages": messages("cat")}], GREEDY)
    tool = [{"role": "tool", "content": "a"}]
    with pytest.raises(UserError, match=r"prompt 1: .* no role 'tool'"):
        answer_jobs(engine, CODER, [{"messages": tool}], GREEDY, 1, LINES)
    with pytest.raises(UserError, match=r"prompt 1: .*200 tokens"):
        answer_jobs(engine, CODER, [{"prompt": "a" * 200}], GREEDY)
    assert not engine.busy


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({"messages": [{"role": "user"}]}, "line 1: a message holds no text"),
        ({"messages": ["Hi"]}, "line 1: a message is like"),
        ({"messages": "Hi"}, "line 1: it must be an object"),
        ({"prompt": 5}, "line 1: it must be an object"),
        ({"messages": [], "top_p": 2}, "line 1: top_p=2"),
    ],
)
def test_what_is_no_job(tmp_path, job, words):
    (tmp_path / "in.jsonl").write_text(json.dumps(job))
    with pytest.raises(UserError, match=words):
        read_jobs(tmp_path / "in.jsonl", GREEDY, print)


def test_a_job_has_settings_of_its_own():
    params = job_params({"prompt": "a", "temperature": 0.5, "n": 3}, SamplingParams(7))
    assert (params.temperature, params.max_new_tokens) == (0.5, 7)
    assert prompt_of({"prompt": ""}, CODER, None) == [CODER.eot]
    assert prompt_of({"messages": messages("cat")}, CODER, LINES) == [*b"Q:cat\nA:"]
    developer = {"messages": [{"role": "developer", "content": "x"}]}  # as newer clients say
    assert b"System:\nx" in CODER.decode_bytes(prompt_of(developer, CODER, TEMPLATES["plain"]))


def test_rows_draw_what_they_draw_alone():
    torch.manual_seed(0)
    engine = engine_of(LINES)
    params = SamplingParams(9, temperature=3.0, top_k=50)
    jobs = [{"prompt": "Q:cat\nA:", "n": 3}, {"prompt": "Q:", "seed": 5}]
    together = list(answer_jobs(engine, CODER, jobs, params))
    alone = list(answer_jobs(engine, CODER, jobs[1:], params))
    assert together[3] == alone[0] and len({a["text"] for a in together[:3]}) > 1
