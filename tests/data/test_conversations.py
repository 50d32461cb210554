"""Conversations become rows of tokens with a mask."""

import itertools
import json

import numpy as np
import pytest

from bonsai.data.conversations import ConversationEncoder
from bonsai.data.messages import conversation_text
from bonsai.engine.conversation import Conversation
from bonsai.tokenizers import ByteTokenizer, CharTokenizer
from bonsai.tokenizers.chat import TEMPLATES, ChatTemplate

PLAIN = TEMPLATES["plain"]
BARE = ChatTemplate({"user": ("Q:", "\n"), "assistant": ("A:", "\n"), "system": ("", "\n")})
HI = [("user", "Hi"), ("assistant", "Hello")]
AGAIN = [{"role": "assistant", "content": "Hey", "weight": 1}]
EOT = ByteTokenizer.eot


def encoded(encode: ConversationEncoder, *conversations: list) -> tuple[list, list]:
    """The rows of a batch as ids, and of each row those that have a loss."""
    batch = [(json.dumps(messages).encode(), True) for messages in conversations]
    ids, _, mask = encode(batch)
    ids, mask = (a.reshape(-1, encode.row_length) for a in (ids, mask))
    return ids.tolist(), [row[learnt == 1].tolist() for row, learnt in zip(ids, mask)]


def texts(rows: list) -> list[str]:
    """Rows of bytes as text, with # for the end of text."""
    return [bytes(35 if i == EOT else i for i in row).decode() for row in rows]


def test_tokens_of_a_batch():
    tokenizer = ByteTokenizer()
    encode = ConversationEncoder(tokenizer, PLAIN, 60)
    batch = [(json.dumps(messages).encode(), True) for messages in (HI, [("assistant", "é")])]
    ids, size, mask = encode(batch)
    begin = [EOT, *b"User:\nHi\n\nAssistant:\n"]
    learnt = [*b"Hello", EOT]
    second = [*"é".encode(), EOT]
    opening = [EOT, *b"Assistant:\n"]
    whole = begin + learnt + opening + second
    padding = 60 - len(whole)
    assert ids.tolist() == whole + [EOT] * padding and ids.dtype == np.uint16
    expected = [0] * len(begin) + [1] * len(learnt) + [0] * len(opening) + [1] * len(second)
    assert mask.tolist() == expected + [0] * padding and mask.dtype == np.uint8
    assert size == len("HiHello") + 2
    assert encode.summary == (
        f"2 conversations of {len(opening + second)} to {len(begin + learnt)} tokens, half of them "
        f"up to {len(begin + learnt)}; {sum(expected) / len(whole):.0%} of the tokens are the "
        "assistant's and have a loss\n"
        f"they fill 1 row of 60 tokens, {padding / 60:.0%} of which is padding"
    )


def test_rows_begin_with_conversations_and_hold_whole_ones():
    rng = np.random.default_rng(0)
    said = ["x" * n for n in rng.integers(1, 30, 200).tolist()]
    conversations = [[("user", "hm"), ("assistant", text)] for text in said]
    encode = ConversationEncoder(ByteTokenizer(), PLAIN, 100)
    rows, learnt = encoded(encode, *conversations)
    alone = [encoded(encode, each)[0][0] for each in conversations]
    alone = [texts([row])[0].rstrip("#") + "#" for row in alone]
    found = [part for row in texts(rows) for part in row.rstrip("#").split("##")]
    assert sorted(f"#{part.lstrip('#')}#" for part in found) == sorted(alone)
    assert all(row.startswith("#User:\nhm") for row in texts(rows)) and all(learnt)
    assert sum(len(row) for row in learnt) == sum(len(text) + 1 for text in said)


def test_an_answer_of_no_weight_is_context():
    row = {"messages": [{"role": "assistant", "content": "Hello", "weight": 0}, *AGAIN]}
    encode = ConversationEncoder(ByteTokenizer(), PLAIN, 60)
    rows, learnt = encoded(encode, json.loads(conversation_text(PLAIN, row)))
    assert learnt == [[*b"Hey", EOT]] and "Hello" in texts(rows)[0]


def test_conversations_end_as_documents_do_unless_the_template_sees_to_it():
    rows, learnt = encoded(ConversationEncoder(ByteTokenizer(), BARE, 15), HI)
    assert texts(rows) == ["Q:Hi\nA:Hello\n##"] and texts(learnt) == ["Hello\n"]
    rows, learnt = encoded(ConversationEncoder(ByteTokenizer(), BARE, 13), HI)  # no room for that
    assert texts(rows) == ["Q:Hi\nA:Hello\n"] and texts(learnt) == ["Hello\n"]
    chars = CharTokenizer.from_text("Q:\nA:HiHello")  # has no end of text
    rows, learnt = encoded(ConversationEncoder(chars, BARE, 14), HI)
    assert chars.decode(rows[0][:13]) == "Q:Hi\nA:Hello\n" and chars.decode(learnt[0]) == "Hello\n"


def long(*answers: str, system: str = "") -> list:
    """A conversation of questions "q" with these answers."""
    turns = ((("user", "q"), ("assistant", text)) for text in answers)
    return [*([("system", system)] if system else []), *itertools.chain(*turns)]


@pytest.mark.parametrize(
    ("conversation", "rows", "said"),
    [
        # in front of questions, into as few parts as it takes, each with the system message
        (long("a", "b", "c"), ["Q:q\nA:a\nQ:q\nA:b\n", "Q:q\nA:c\n"], "cut in front of questions"),
        (long("a", "b", system="S"), ["S\nQ:q\nA:a\n", "S\nQ:q\nA:b\n"], "into 2 parts"),
        (long("aaaaaaa", "b", "c"), ["Q:q\nA:aaaaaaa\n", "Q:q\nA:b\nQ:q\nA:c\n"], "into 2 parts"),
        ([*long("a", "b"), *long("c")[1:]], ["Q:q\nA:a\n", "Q:q\nA:b\nA:c\n"], "into 2 parts"),
        ([*long("aaaaaaaa"), ("user", "more")], ["Q:q\nA:aaaaaaaa\n"], ""),
        # an answer that is too long ends with its row, and only it
        (long("a" * 20, "b"), ["Q:q\nA:aaaaaaaaaa", "Q:q\nA:b\n"], "1 lost answers, or ends"),
        ([("user", "q" * 20), *HI[1:], *long("b")], ["Q:q\nA:b\n"], "1 lost answers"),
        ([("user", "q" * 20), *HI[1:]], [], "1 left out: their questions leave no room"),
        ([("user", "q"), ("assistant", "a" * 20, 0), *long("b")], ["Q:q\nA:b\n"], ""),
    ],
)
def test_what_is_longer_than_a_row(conversation, rows, said):
    encode = ConversationEncoder(ByteTokenizer(), BARE, 16)
    ids, learnt = encoded(encode, conversation)
    assert [text.rstrip("#") for text in texts(ids)] == rows
    assert all(learnt) and len(learnt) == len(rows)
    assert said in encode.summary
    for words in ("lost", "left out"):
        assert (words in encode.summary) == (words in said)


def test_the_templates_own_system_message_is_counted_once_in_a_part():
    said = ChatTemplate(BARE.roles, system="S")
    rows, _ = encoded(ConversationEncoder(ByteTokenizer(), said, 18), long("a", "b", "c"))
    assert sorted(texts(rows)) == ["S\nQ:q\nA:a\nQ:q\nA:b\n", "S\nQ:q\nA:c\n########"]


def test_a_part_begins_as_a_prompt_does_when_the_oldest_messages_are_dropped():
    turns = [("one", "1"), ("two", "2"), ("three", "3"), ("four", "4"), ("five", "5")]
    messages = [("system", "S")]
    for question, answer in turns:
        messages += [("user", question), ("assistant", answer)]
    rows, _ = encoded(ConversationEncoder(ByteTokenizer(), BARE, 24), messages)
    talk = Conversation(BARE, ByteTokenizer(), context=14, answer=4, system="S")
    prompts = []
    for question, answer in turns:
        prompts.append(texts([talk.ask(question)])[0])
        list(talk.answer(answer.encode()))
    begun = [row[: row.index("A:") + 2] for row in texts(rows)]
    assert begun == ["S\nQ:one\nA:", "S\nQ:three\nA:", "S\nQ:four\nA:"]
    assert set(begun) < set(prompts)
