"""bonsai/serving/api/forms.py: pieces as OpenAI's JSON, whole and as events."""

import asyncio
import json
import math
from types import SimpleNamespace

from bonsai.engine import SamplingParams
from bonsai.serving.api.answers import AnswerPiece, TokenInfo
from bonsai.serving.api.faults import ApiError
from bonsai.serving.api.forms import LOWEST, ChatForm, CompletionForm, Writer, clamp
from bonsai.serving.counters import AnswerTimer, Metrics


class Answer:
    """One that gives these pieces; an exception among them is raised."""

    def __init__(self, plan, *pieces):
        self.plan, self.given, self.closed = plan, pieces, False

    async def pieces(self):
        for piece in self.given:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def usage(self) -> dict:
        return {"total_tokens": 7}

    def close(self) -> None:
        self.closed = True


def plan(logprobs: int | None = None, rows: int = 1, want_ids: bool = False):
    def text(token: int) -> str:
        return chr(token) if token < 200 else "bytes:?"

    served = SimpleNamespace(name="m", token_text=text, token_bytes=lambda i: bytes([i]))
    params = SamplingParams(4, logprobs=logprobs)
    prompts = [[65]] * rows
    named = {"served": served, "params": params, "rows": rows, "n": 1}
    return SimpleNamespace(**named, prompts=prompts, want_ids=want_ids)


def written(form, *pieces, **options) -> tuple[list, Answer, Metrics]:
    """The events of a stream, those with JSON parsed."""
    answer, metrics = Answer(form.plan, *pieces), Metrics()

    async def collect() -> bytes:
        return b"".join(
            [e async for e in Writer(answer, form, **options).events(AnswerTimer(metrics))]
        )

    lines = [line for line in asyncio.run(collect()).split(b"\n\n") if line]
    assert all(line.startswith(b"data: ") for line in lines)
    return (
        [x if x == b"[DONE]" else json.loads(x) for x in (line[6:] for line in lines)],
        answer,
        metrics,
    )


def whole(form, *pieces) -> dict:
    answer = Answer(form.plan, *pieces)
    body = json.loads(asyncio.run(Writer(answer, form).whole(AnswerTimer(Metrics()))))
    assert answer.closed
    return body


def test_json_has_no_infinities():
    assert clamp(-math.inf) == clamp(-1e30) == LOWEST and clamp(-3.5) == -3.5
    assert clamp(None) is None


TOKENS = [
    TokenInfo(66, None, None, 0),
    TokenInfo(67, -0.5, [(68, -0.1), (67, -0.5), (200, -2.0), (201, -math.inf)], 1),
]


def test_logprobs_of_a_completion_are_four_lists():
    """Of two tokens that look alike the likelier one stands; the drawn one always does."""
    form = CompletionForm(plan(logprobs=3))
    logprobs = form.choice(AnswerPiece(0, "BC", TOKENS, "stop"), chunk=False)["logprobs"]
    assert logprobs["tokens"] == ["B", "C"] and logprobs["text_offset"] == [0, 1]
    assert logprobs["token_logprobs"] == [None, -0.5]
    assert logprobs["top_logprobs"] == [None, {"D": -0.1, "C": -0.5, "bytes:?": -2.0}]
    below = form.logprobs([TokenInfo(69, -9.0, [(68, -0.1)])])
    assert below["top_logprobs"] == [{"D": -0.1, "E": -9.0}]


def test_logprobs_of_a_chat_are_one_list():
    choice = ChatForm(plan(logprobs=2)).choice(AnswerPiece(0, "C", TOKENS[1:]), chunk=False)
    (token,) = choice["logprobs"]["content"]
    assert (token["token"], token["logprob"], token["bytes"]) == ("C", -0.5, [67])
    assert [t["logprob"] for t in token["top_logprobs"]] == [-0.1, -0.5, -2.0, LOWEST]
    assert choice["message"] == {"role": "assistant", "content": "C", "refusal": None}


def test_ids_on_request_those_of_the_prompt_once():
    form = CompletionForm(plan(logprobs=3, want_ids=True, rows=2))
    first = form.choice(AnswerPiece(1, "C", TOKENS[1:]), chunk=True)
    assert (first["token_ids"], first["prompt_token_ids"]) == ([67], [65])
    assert first["logprobs"]["top_token_ids"] == [{"D": 68, "C": 67, "bytes:?": 200}]
    again = form.choice(AnswerPiece(1, "C", TOKENS[1:]), chunk=True)
    assert "prompt_token_ids" not in again and again["token_ids"] == [67]


def test_a_whole_answer_is_all_of_its_pieces():
    pieces = (
        [AnswerPiece(1, "x"), AnswerPiece(0, "a")],
        [AnswerPiece(0, "b", finish="stop")],
        [AnswerPiece(1, "", [], "length")],
    )
    body = whole(CompletionForm(plan(rows=2)), *pieces)
    texts = [(c["index"], c["text"], c["finish_reason"]) for c in body["choices"]]
    assert texts == [(0, "ab", "stop"), (1, "x", "length")]
    assert body["object"] == "text_completion" and body["id"].startswith("cmpl-")
    assert (body["model"], body["usage"]) == ("m", {"total_tokens": 7})


def test_a_stream_of_a_chat():
    """A role for each choice, what is new, the counts if asked for, and an end."""
    pieces = [AnswerPiece(0, "a")], [AnswerPiece(0, "", [], "stop")]
    events, answer, metrics = written(ChatForm(plan()), *pieces, include_usage=True)
    *chunks, done = events
    assert done == b"[DONE]" and answer.closed and metrics.duration.counts[0] == 1
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({c["id"] for c in chunks}) == 1
    deltas = [c["choices"][0]["delta"] for c in chunks[:-1]]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "a"}, {}]
    assert [c["usage"] for c in chunks] == [None, None, None, {"total_tokens": 7}]
    assert chunks[-1]["choices"] == []


def test_counts_so_far_in_every_chunk():
    events, *_ = written(
        CompletionForm(plan()), [AnswerPiece(0, "a")], include_usage=True, continuous=True
    )
    assert [c["usage"] for c in events[:-1]] == [{"total_tokens": 7}] * 2
    events, *_ = written(CompletionForm(plan()), [AnswerPiece(0, "a")])
    assert "usage" not in events[0] and len(events) == 2


def test_an_error_in_a_stream_is_its_last_event():
    error = ApiError(503, "the server is stopping", code="stopped")
    events, answer, metrics = written(CompletionForm(plan()), [AnswerPiece(0, "a")], error)
    assert events[1]["error"]["code"] == "stopped" and events[2] == b"[DONE]"
    assert answer.closed and sum(metrics.duration.counts) == 0
