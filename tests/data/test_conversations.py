"""Conversations become tokens with a mask."""

import json

import numpy as np

from bonsai.data.conversations import ConversationEncoder
from bonsai.data.messages import conversation_text
from bonsai.tokenizers import ByteTokenizer, CharTokenizer
from bonsai.tokenizers.chat import TEMPLATES, ChatTemplate

PLAIN = TEMPLATES["plain"]
HI = [("user", "Hi"), ("assistant", "Hello")]
AGAIN = [{"role": "assistant", "content": "Hey", "weight": 1}]


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
