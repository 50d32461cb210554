"""Rows in the forms that are in use become conversations."""

import json

import pytest

from bonsai.data.messages import conversation_text, messages_of
from bonsai.system.errors import UserError
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
