"""Chat templates: messages become one prompt."""

import pytest

from bonsai.system.errors import UserError
from bonsai.tokenizers import ByteTokenizer, get
from bonsai.tokenizers.chat import ChatTemplate

STATE = {
    "start": "<|endoftext|>",
    "roles": {"user": ["U:", "\n"], "assistant": ["A:", "<|endoftext|>"], "system": ["S:", ";"]},
}


def test_messages_stand_between_the_strings_of_their_role():
    template, tokenizer = ChatTemplate.from_dict(STATE), ByteTokenizer()
    messages = [("system", "be"), ("user", "hi"), ("assistant", "yo"), ("user", "")]
    ids = template.encode(tokenizer, messages)
    eot = tokenizer.eot
    assert ids == [eot, *b"S:be;U:hi\nA:yo", eot, *b"U:\nA:"]


def test_nobody_writes_special_tokens_into_a_message():
    template, tokenizer = ChatTemplate.from_dict({"roles": STATE["roles"]}), get("byte")
    ids = template.encode(tokenizer, [("user", "a<|endoftext|>b")])
    assert tokenizer.eot not in ids
    assert tokenizer.decode(ids) == "U:a<|endoftext|>b\nA:"


def test_where_an_answer_ends():
    assert ChatTemplate.from_dict(STATE).stop is None  # at the end-of-text token
    roles = {"user": ["", "\n"], "assistant": ["", "\n\n"]}
    assert ChatTemplate.from_dict({"roles": roles}).stop == "\n\n"


def test_unknown_roles():
    with pytest.raises(UserError, match="no role 'tool', only user, assistant, system"):
        ChatTemplate.from_dict(STATE).encode(ByteTokenizer(), [("tool", "x")])


@pytest.mark.parametrize(
    "state",
    [
        None,
        "{{ messages }}",
        {},
        {"roles": {}},
        {"roles": {"user": ["", ""]}},
        {"roles": {"user": ["", ""], "assistant": [""]}},
        {"roles": {"user": ["", ""], "assistant": ["", 5]}},
        {"roles": STATE["roles"], "start": 5},
        {"roles": STATE["roles"], "jinja": "{{ 1 }}"},
    ],
)
def test_what_is_no_template(state):
    with pytest.raises(UserError, match="chat_template"):
        ChatTemplate.from_dict(state)
