"""Rows in the forms that are in use become conversations, and those tokens with a mask."""

import json

import numpy as np
import pytest

from bonsai.data.conversations import ConversationEncoder, conversation_text, messages_of
from bonsai.system.errors import UserError
from bonsai.tokenizers import ByteTokenizer, CharTokenizer
from bonsai.tokenizers.chat import TEMPLATES, ChatTemplate

PLAIN = TEMPLATES["plain"]
HI = [("user", "Hi"), ("assistant", "Hello")]
BRIEF = [("system", "Be brief"), *HI]
AGAIN = [{"role": "assistant", "content": "Hey", "weight": 1}]
CALL = [{"role": "assistant", "content": "", "tool_calls": [{"id": "c"}]}]
PART = [{"role": "user", "content": "Hi"}]
FORMS = [
    (
        {"messages": [{"role": role, "content": text} for role, text in BRIEF], "id": 5},
        BRIEF,
    ),
    (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        HI,
    ),
    (
        {"conversations": [{"role": "user", "content": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        HI,
    ),
    (
        {"messages": [{"role": r, "content": [{"type": "text", "text": t}]} for r, t in HI]},
        HI,
    ),
    ({"prompt": "Hi", "completion": "Hello"}, HI),
    ({"prompt": "Hi", "response": "Hello", "system": "Be brief"}, BRIEF),
    ({"question": "Hi", "answer": "Hello"}, HI),
    ({"instruction": "Hi", "input": "", "output": "Hello"}, HI),
    ({"instruction": "Hi", "context": None, "response": "Hello"}, HI),
    (
        {"instruction": "Add", "input": "1, 2", "output": "3"},
        [("user", "Add\n\n1, 2"), ("assistant", "3")],
    ),
    (
        {"messages": [{"role": r, "content": t, "weight": w} for (r, t), w in zip(HI, (None, 1))]},
        HI,
    ),
    (
        {"messages": [{"role": r, "content": t, "weight": 0} for r, t in HI] + AGAIN},
        [("user", "Hi", 0), ("assistant", "Hello", 0), ("assistant", "Hey")],
    ),
    # parquet gives every row all columns, and every message all keys
    (
        {
            "messages": [
                {"role": "user", "content": "Hi", "from": None, "value": None, "tool_calls": None},
                {"role": None, "content": None, "from": "gpt", "value": "Hello", "tool_calls": []},
            ]
        },
        HI,
    ),
    ({"messages": None, "prompt": "Hi", "completion": "Hello", "input": None}, HI),
]


@pytest.mark.parametrize("row, messages", FORMS)
def test_the_forms_of_a_conversation(row, messages):
    assert messages_of(row) == messages
    assert json.loads(conversation_text(PLAIN, row)) == [list(message) for message in messages]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "has none"),
        ({"text": "a"}, "this row has 'text'"),
        ({"prompt": "Hi"}, "this row has 'prompt'"),
        ({"messages": "Hi"}, "messages is no list of messages but 'Hi'"),
        ({"messages": ["Hi"]}, "a message is like"),
        ({"messages": [{"role": 1, "content": "Hi"}]}, "a message is like"),
        ({"messages": [{"role": "user"}]}, "holds no text but None"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, r"but \[{'type': 'im"),
        ({"prompt": PART, "completion": PART}, r"holds no text but \[{'role': 'user'"),
        ({"messages": CALL}, "has tool_calls, which the chat template cannot write"),
        ({"messages": [{**AGAIN[0], "weight": 0.5}]}, "weight of a message is 0 or 1, not 0.5"),
        ({"messages": [{**AGAIN[0], "weight": 0}]}, "the assistant says nothing"),
        ({"prompt": 5, "completion": "a"}, "holds no text but 5"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "no role 'tool': system, user, assis"),
        ({"messages": []}, "the assistant says nothing"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "the assistant says nothing"),
    ],
)
def test_what_is_no_conversation(row, words):
    with pytest.raises(UserError, match=words):
        conversation_text(PLAIN, row)


def test_the_developer_is_the_system_unless_the_template_knows_better():
    row = {
        "messages": [{"role": "developer", "content": "x"}, {"role": "assistant", "content": ""}]
    }
    assert json.loads(conversation_text(PLAIN, row))[0] == ["system", "x"]
    knows = ChatTemplate({**PLAIN.roles, "developer": ("D:", "\n")})
    assert json.loads(conversation_text(knows, row))[0] == ["developer", "x"]


def test_tokens_of_a_batch():
    tokenizer = ByteTokenizer()
    eot = tokenizer.eot
    encode = ConversationEncoder(tokenizer, PLAIN)
    batch = [(json.dumps(messages).encode(), True) for messages in (HI, [("assistant", "é")])]
    ids, size, mask = encode(batch)
    begin = [eot, *b"User:\nHi\n\nAssistant:\n"]
    learnt = [*b"Hello", eot]
    second = [*"é".encode(), eot]
    opening = [eot, *b"Assistant:\n"]
    assert ids.tolist() == begin + learnt + opening + second and ids.dtype == np.uint16
    expected = [0] * len(begin) + [1] * len(learnt) + [0] * len(opening) + [1] * len(second)
    assert mask.tolist() == expected and mask.dtype == np.uint8
    assert size == len("HiHello") + 2
    assert encode.summary == (
        f"2 conversations of {len(opening + second)} to {len(begin + learnt)} tokens, half of them "
        f"up to {len(begin + learnt)}; {sum(expected) / len(ids):.0%} of the tokens are the "
        "assistant's and have a loss"
    )


def test_an_answer_of_no_weight_is_context():
    row = {"messages": [{"role": "assistant", "content": "Hello", "weight": 0}, *AGAIN]}
    encode = ConversationEncoder(ByteTokenizer(), PLAIN)
    ids, _, mask = encode([(conversation_text(PLAIN, row).encode(), True)])
    assert ids[mask == 1].tolist() == [*b"Hey", ByteTokenizer.eot]
    assert b"Hello" in bytes(ids[ids < 256].tolist())


def test_conversations_end_as_documents_do_unless_the_template_sees_to_it():
    bare = ChatTemplate({"user": ("Q:", "\n"), "assistant": ("A:", "\n")})
    batch = [(json.dumps(HI).encode(), True)]
    ids, _, mask = ConversationEncoder(ByteTokenizer(), bare)(batch)
    assert ids.tolist()[-2:] == [*b"\n", ByteTokenizer.eot] and mask.tolist()[-2:] == [1, 0]
    chars = CharTokenizer.from_text("Q:\nA:HiHello")  # has no end of text
    assert chars.decode(ConversationEncoder(chars, bare)(batch).ids) == "Q:Hi\nA:Hello\n"
