"""bonsai/serving/api/answers.py: pieces of an answer, from events written by hand."""

import asyncio
from types import SimpleNamespace

import pytest

from bonsai.engine import Event
from bonsai.serving.api.answers import AnswerPiece, Choice, failed, merged, unless_gone
from bonsai.serving.worker import Failed, Stopped


def choice(prompt=(), **options) -> Choice:
    """The only choice of a plan for a model of bytes."""
    served = SimpleNamespace(token_bytes=lambda token: bytes([token]))
    plan = {"served": served, "prompts": [list(prompt)], "n": 1, "stops": (), "echo": False}
    return Choice(SimpleNamespace(**{**plan, "hidden": [0], **options}), 0)


def fed(made: Choice, data: bytes, finish: str | None = "length", **first) -> list[AnswerPiece]:
    """The pieces of one event per byte; the last has `finish`, the first what else is given."""
    pieces = []
    for i, token in enumerate(data):
        last = finish if i == len(data) - 1 else None
        pieces.append(made.feed(Event(None, token, finish=last, **(first if i == 0 else {}))))
    return pieces


def test_an_answer_is_its_tokens():
    pieces = fed(choice(), "aé!".encode())
    assert [p.text for p in pieces] == ["a", "", "é", "!"]
    assert [p.finish for p in pieces] == [None, None, None, "length"]
    (whole,) = merged(pieces)
    assert [t.id for t in whole.tokens] == [*"aé!".encode()]
    assert [t.offset for t in whole.tokens] == [0, 1, 1, 2]


def test_a_stop_string_ends_it_before_the_engine_does():
    made = choice(stops=["##"])
    pieces = fed(made, b"a##", None)
    assert [p.text for p in pieces] == ["a", "", ""] and pieces[-1].finish == "stop"
    assert made.done and made.completion_tokens == 3
    (whole,) = merged(pieces)
    assert [t.id for t in whole.tokens] == [ord("a")]  # those of the stop string are no text


def test_what_looked_like_a_stop_string_comes_at_the_end():
    pieces = fed(choice(stops=["##"]), b"a#")
    assert [p.text for p in pieces] == ["a", "#"] and pieces[-1].finish == "length"


def test_an_end_without_a_token():
    made = choice()
    piece = made.feed(Event(None, finish="stop"))
    assert (piece.text, piece.tokens, piece.finish) == ("", [], "stop")
    assert made.done and made.completion_tokens == 0


@pytest.mark.parametrize("scores", [None, [(None, None), (-1.0, [(98, -1.0)])]])
def test_an_echo_repeats_the_prompt_once_without_what_is_hidden(scores):
    made = choice(b"ab", echo=True, hidden=[0])
    (whole,) = merged(fed(made, b"cd", prompt_logprobs=scores))
    assert whole.text == "abcd" and [t.id for t in whole.tokens] == [*b"abcd"]
    assert whole.tokens[1].logprob == (scores and -1.0)
    assert made.completion_tokens == 2
    (hidden,) = merged(fed(choice(b"ab", echo=True, hidden=[1]), b"c"))
    assert hidden.text == "bc"


def test_a_prompt_may_end_within_a_character():
    first, *rest = "é".encode()
    (whole,) = merged(fed(choice([first]), bytes(rest)))
    assert whole.text == "é"


def test_pieces_of_one_choice_become_one():
    pieces = [
        AnswerPiece(1, "a"),
        AnswerPiece(0, "x", finish="stop"),
        AnswerPiece(1, "b", finish="length"),
    ]
    assert [(p.index, p.text, p.finish) for p in merged(pieces)] == [
        (1, "ab", "length"),
        (0, "x", "stop"),
    ]


def test_another_try_may_do_where_the_server_was_to_blame():
    stopped, wrong = failed(Stopped("out of memory")), failed(Failed("a bug"))
    assert (stopped.status, stopped.code, stopped.headers) == (503, "stopped", {"Retry-After": "5"})
    assert (wrong.status, wrong.code, wrong.headers) == (500, None, {})


@pytest.mark.parametrize("leaves", [True, False])
def test_the_leaving_of_a_client_ends_the_work(leaves):
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(0 if not leaves else 60)
            ended.append("done")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def receive() -> dict:
        await asyncio.sleep(0.05 if leaves else 60)
        return {"type": "http.disconnect"}

    assert asyncio.run(unless_gone(work(), receive)) == (not leaves)
    assert ended == ["cancelled" if leaves else "done"]
