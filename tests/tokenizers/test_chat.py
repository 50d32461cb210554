"""Chat templates: messages become one prompt."""

import re
from dataclasses import replace

import pytest

from bonsai.system.errors import UserError
from bonsai.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, MissingLibrary, get
from bonsai.tokenizers.bpe import BYTES
from bonsai.tokenizers.chat import TEMPLATES, ChatTemplate, missing_tokens, template_for

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


def test_a_conversation_without_a_system_begins_with_the_templates():
    template, tokenizer = ChatTemplate.from_dict({**STATE, "system": "be"}), ByteTokenizer()
    said = template.encode(tokenizer, [("system", "be"), ("user", "hi")])
    assert template.encode(tokenizer, iter([("user", "hi")])) == said
    ids, mask = template.encode_conversation(tokenizer, [("user", "hi"), ("assistant", "yo")])
    assert ids == [*said, *b"yo", tokenizer.eot] and sum(mask) == 3
    assert template.encode(tokenizer, []) == [tokenizer.eot, *b"A:"]
    assert ChatTemplate.from_dict(template.to_dict()) == template


def test_nobody_writes_special_tokens_into_a_message():
    template, tokenizer = ChatTemplate.from_dict({"roles": STATE["roles"]}), get("byte")
    ids = template.encode(tokenizer, [("user", "a<|endoftext|>b")])
    assert tokenizer.eot not in ids
    assert tokenizer.decode(ids) == "U:a<|endoftext|>b\nA:"


def test_where_an_answer_ends():
    assert ChatTemplate.from_dict(STATE).stop is None  # at the end-of-text token
    roles = {"user": ["", "\n"], "assistant": ["", "\n\n"]}
    assert ChatTemplate.from_dict({"roles": roles}).stop == "\n\n"


def test_the_token_that_ends_an_answer():
    bpe, eot = with_tokens("<|endoftext|>", "<|end|>"), ByteTokenizer.eot
    assert TEMPLATES["plain"].end_token(ByteTokenizer()) == eot
    assert TEMPLATES["tokens"].end_token(bpe) == bpe.special_tokens["<|end|>"] != bpe.eot
    for after, token in (("<|endoftext|>\n", eot), ("\n<|endoftext|>", None), ("", None)):
        template = ChatTemplate({"user": ("", ""), "assistant": ("", after)})
        assert template.end_token(ByteTokenizer()) == token
    assert TEMPLATES["tokens"].end_token(CharTokenizer.from_text("ab")) is None


def test_unknown_roles():
    with pytest.raises(UserError, match="no role 'tool', only user, assistant, system"):
        ChatTemplate.from_dict(STATE).encode(ByteTokenizer(), [("tool", "x")])


ROLES = STATE["roles"]


@pytest.mark.parametrize(("state", "fault"), [
    (None, "has no roles"),
    ("{{ messages }}", "has no roles"),
    ({}, "has no roles"),
    ({"roles": []}, "has no roles"),
    ({"roles": {}}, "has no role 'user'"),
    ({"roles": {"user": ["", ""]}}, "has no role 'assistant'"),
    ({"roles": {**ROLES, "user": [""]}}, "has a role 'user' that is not two texts"),
    ({"roles": {**ROLES, "user": ["", 5]}}, "has a role 'user' that is not two texts"),
    ({"roles": {**ROLES, "tool": "{}"}}, "has a role 'tool' that is not two texts"),
    ({"roles": {**ROLES, 5: ["", ""]}}, "has a role 5 that is not two texts"),
    ({"roles": ROLES, "start": 5}, "has a start that is no text"),
    ({"roles": ROLES, "system": None}, "has a system that is no text"),
    ({"roles": {k: ROLES[k] for k in ("user", "assistant")}, "system": "x"}, "no role 'system'"),
    ({"roles": ROLES, "jinja": "{{ 1 }}"}, "has 'jinja'"),
])  # fmt: skip
def test_what_is_no_template(state, fault):
    with pytest.raises(UserError, match=f"the chat_template .*{re.escape(fault)}.*; one is such"):
        ChatTemplate.from_dict(state)


# ---- to train on ----

MESSAGES = [("system", "be"), ("user", "hi"), ("assistant", "yo"), ("user", ""), ("assistant", "")]


@pytest.mark.parametrize("name", [*TEMPLATES, "of this file"])
def test_what_is_learnt_is_what_is_drawn(name):
    """The prompt for an answer is what stands before it in training; from there to the end of the
    answer the mask is 1, and elsewhere 0."""
    template = TEMPLATES.get(name) or ChatTemplate.from_dict(STATE)
    roles = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|im_start|>", "<|im_end|>")
    tokenizer = with_tokens("<|endoftext|>", *roles)
    ids, mask = template.encode_conversation(tokenizer, MESSAGES)
    assert len(ids) == len(mask)
    expected = [0] * len(ids)
    for turn, (role, content) in enumerate(MESSAGES):
        if role == "assistant":
            prompt = template.encode(tokenizer, MESSAGES[:turn])
            end = tokenizer.encode(template.roles[role][1], allow_special=True)
            answer = [*tokenizer.encode(content), *end]
            assert ids[: len(prompt) + len(answer)] == prompt + answer
            expected[len(prompt) : len(prompt) + len(answer)] = [1] * len(answer)
    assert mask == expected and 0 < sum(mask) < len(mask)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_as_one_text(name):
    """Its tokens are the prompt's, unless tokens reach over a border; an answer can go on."""
    template, coder = replace(TEMPLATES[name], system="be"), with_bytes(TEMPLATES[name])
    for talk in (MESSAGES, MESSAGES[:2], MESSAGES[1:2], []):
        ids = coder.encode(template.text(talk), allow_special=True)
        assert ids == template.encode(coder, talk)
    goes_on = coder.encode(template.text(MESSAGES[1:3], more=False), allow_special=True)
    assert goes_on == template.encode(coder, MESSAGES[1:2]) + coder.encode("yo")
    with pytest.raises(UserError, match="no role 'tool'"):
        template.text([("tool", "x")])


def with_bytes(template: ChatTemplate) -> BPETokenizer:
    """Without merges, so that no token reaches over the border of a message."""
    strings = [template.start, *(text for around in template.roles.values() for text in around)]
    names = dict.fromkeys(name for text in strings for name in re.findall(r"<\|\w+\|>", text))
    return BPETokenizer(BYTES, None, {name: 256 + i for i, name in enumerate(names)})


def with_tokens(*special: str) -> BPETokenizer:
    return BPETokenizer.train(
        ["User:\nhi\n\nAssistant: S:;U:A:yobe" * 9], 300, special_tokens=special
    )


def test_roles_are_tokens_where_the_vocabulary_has_them():
    roles = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    assert template_for(with_tokens("<|endoftext|>", *roles)) == TEMPLATES["tokens"]
    assert template_for(with_tokens("<|endoftext|>", *roles[:3])) == TEMPLATES["plain"]
    assert template_for(ByteTokenizer()) == TEMPLATES["plain"]
    chatml = ("<|im_start|>", "<|im_end|>")
    assert template_for(with_tokens(*chatml)) == TEMPLATES["chatml"]
    assert template_for(with_tokens("<|endoftext|>", *roles, *chatml)) == TEMPLATES["tokens"]
    for tokenizer in (with_tokens(*roles), CharTokenizer.from_text("User:")):
        with pytest.raises(UserError, match=r"the tokenizer has no <\|endoftext\|>"):
            template_for(tokenizer)
    assert {*missing_tokens(TEMPLATES["tokens"], ByteTokenizer())} == {*roles}
    plain = BPETokenizer([*BYTES, *(b"<|im_start|>"[:n] for n in range(2, 13))], None, {})
    assert len(plain.encode("<|im_start|>")) == 1  # a token that any message may hold
    assert "<|im_start|>" in missing_tokens(TEMPLATES["chatml"], plain)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_survives_json(name):
    template = TEMPLATES[name]
    assert ChatTemplate.from_dict(template.to_dict()) == template


def test_a_vocabulary_that_cannot_be_loaded_is_no_lack_of_tokens(monkeypatch):
    """GPT-2's is downloaded once: the error is that of the download."""

    def missing(*arguments, **options):
        raise MissingLibrary("cannot load the vocabulary")

    tokenizer = ByteTokenizer()
    monkeypatch.setattr(tokenizer, "encode", missing)
    for template in TEMPLATES.values():
        with pytest.raises(MissingLibrary):
            missing_tokens(template, tokenizer)
    with pytest.raises(MissingLibrary):
        template_for(tokenizer)
    with pytest.raises(MissingLibrary):
        TEMPLATES["tokens"].end_token(tokenizer)
