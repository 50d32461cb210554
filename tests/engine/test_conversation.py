"""A conversation: what the model is asked, what is remembered, what is forgotten."""

import pytest

from bonsai.engine.conversation import Conversation
from bonsai.system.errors import UserError
from bonsai.tokenizers import ByteTokenizer
from bonsai.tokenizers.chat import ChatTemplate

CODER = ByteTokenizer()
ROLES = {"user": ("U:", ";"), "assistant": ("A:", "."), "system": ("S:", "!")}
TEMPLATE = ChatTemplate(ROLES, start="<|endoftext|>")


def talk(context=100, answer=20, template=TEMPLATE, system="") -> Conversation:
    return Conversation(template, CODER, context, answer, system)


def asked(conversation: Conversation, text: str) -> str:
    return CODER.decode(conversation.ask(text)).removeprefix("<|endoftext|>")


def answered(conversation: Conversation, text: str, rest=()) -> str:
    return "".join(conversation.answer([*text.encode(), *rest]))


def test_turns_follow_each_other():
    conversation = talk(system="Hm")
    assert asked(conversation, "Hi") == "S:Hm!U:Hi;A:"
    assert answered(conversation, "Hello.U:not said") == "Hello"
    assert asked(conversation, "So?") == "S:Hm!U:Hi;A:Hello.U:So?;A:"
    assert answered(conversation, "no end", [None]) == "no end"  # None: a stop token was drawn
    assert asked(conversation, "") == "S:Hm!U:Hi;A:Hello.U:So?;A:no end.U:;A:"


def test_no_token_is_drawn_beyond_the_end_of_an_answer():
    conversation, drawn = talk(), iter(b"Hello.more")
    conversation.ask("Hi")
    assert "".join(conversation.answer(drawn)) == "Hello"
    assert bytes(drawn) == b"more"


def test_an_answer_that_is_broken_off_is_remembered_as_far_as_it_went():
    conversation = talk()
    conversation.ask("Hi")
    answer = conversation.answer(b"Hello.")
    assert [next(answer), next(answer)] == ["H", "e"]
    answer.close()  # Ctrl-C
    assert asked(conversation, "So?") == "U:Hi;A:He.U:So?;A:"
    assert asked(conversation, "Well?") == "U:Hi;A:He.U:Well?;A:"  # nothing was answered to So?


def test_the_oldest_turns_are_forgotten_and_the_system_is_not():
    conversation = talk(context=40, answer=10, system="Hm")
    for turn in range(5):
        prompt = conversation.ask(f"{turn}" * 5)
        assert len(prompt) <= 30 and CODER.decode(prompt).count("S:Hm!") == 1
        assert CODER.decode(prompt).endswith(f"{turn}" * 5 + ";A:")
        answered(conversation, "ok.")
    assert [text for role, text in conversation.messages if role == "user"] == ["33333", "44444"]


def test_a_message_that_is_too_long_was_not_said():
    conversation = talk(context=30, answer=25)
    assert len(conversation.ask("x" * 20)) > 15  # alone it may take the room of the answer
    answered(conversation, "ok.")
    with pytest.raises(UserError, match="a prompt of 56 tokens, and the model sees 30"):
        conversation.ask("y" * 50)
    assert "x" * 20 in conversation.messages[0][1] and len(conversation.messages) == 2


def test_a_system_needs_a_place_in_the_template():
    roles = {role: around for role, around in ROLES.items() if role != "system"}
    with pytest.raises(UserError, match="no role 'system'"):
        talk(template=ChatTemplate(roles), system="Hm")
