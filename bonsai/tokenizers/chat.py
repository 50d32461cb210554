"""Chat templates: how messages become one text, to train on and to answer.

A checkpoint carries its template as plain values under `chat_template`; train.py copies it there
from the meta.json of the data set, into which data/chat/prepare.py writes it:

    {"start": "<|endoftext|>",
     "roles": {"user": ["Q: ", "\\n"], "assistant": ["A: ", "\\n"], "system": ["", "\\n\\n"]}}

A `system` beside them is the system's message of conversations that begin without one. The prompt
is the start, each message between the two strings of its role, and then the first string
of the assistant's. The answer ends where the assistant's second string begins. There is nothing to
execute in it: a checkpoint from elsewhere cannot do more than choose these strings.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from bonsai.system.errors import UserError
from bonsai.tokenizers.base import EOT_TEXT, Tokenizer, UnknownText

EXAMPLE = '{"roles": {"user": ["Q: ", "\\n"], "assistant": ["A: ", "\\n"]}}'


@dataclass(frozen=True)
class ChatTemplate:
    roles: Mapping[str, tuple[str, str]]  # what stands before and after a message of the role
    start: str = ""  # what a conversation begins with
    system: str | None = None  # the system's message of a conversation that begins without one

    @classmethod
    def from_dict(cls, state: object) -> "ChatTemplate":
        """Raises UserError for what is not a template."""
        if fault := _fault(state):
            raise UserError(f"the chat_template {fault}; one is such as {EXAMPLE}")
        roles = {role: tuple(around) for role, around in state["roles"].items()}
        return cls(roles, state.get("start", ""), state.get("system"))

    @property
    def stop(self) -> str | None:
        """The string that ends an answer; None where only the end-of-text token does."""
        after = self.roles["assistant"][1]
        return None if after in ("", EOT_TEXT) else after

    def role_for(self, role: str) -> str:
        """The template's name for a role: OpenAI's newer models call the system's developer."""
        return "system" if role == "developer" and role not in self.roles else role

    def end_token(self, tokenizer: Tokenizer) -> int | None:
        """The special token with which the string that ends an answer begins, for programs that
        stop at tokens; None where that string is text."""
        after = self.roles["assistant"][1]
        with suppress(UnknownText):  # characters that the vocabulary lacks
            ids, as_text = _encode(tokenizer, after), tokenizer.encode(after)
            return ids[0] if ids[:1] != as_text[:1] else None
        return None

    def _checked(self, messages: Iterable[tuple]) -> list[tuple]:
        """The messages, after that of the system if they lack it."""
        messages = list(messages)
        if self.system is not None and messages and messages[0][0] != "system":
            messages.insert(0, ("system", self.system))
        for role, *_ in messages:
            if role not in self.roles:
                known = ", ".join(self.roles)
                raise UserError(f"this model's chat template has no role {role!r}, only {known}")
        return messages

    def to_dict(self) -> dict:
        """The inverse of from_dict."""
        roles = {role: list(around) for role, around in self.roles.items()}
        system = {} if self.system is None else {"system": self.system}
        return {"start": self.start, "roles": roles, **system}

    def encode(self, tokenizer: Tokenizer, messages: Iterable[tuple[str, str]]) -> list[int]:
        """The prompt for (role, content) messages, as tokens: the assistant's turn begins.

        Raises UserError for a role that the template does not have.
        """
        ids, _ = self.encode_conversation(tokenizer, messages)
        return ids + _encode(tokenizer, self.roles["assistant"][0])

    def text(self, messages: Iterable[tuple[str, str]], more: bool = True) -> str:
        """The prompt as one text, as other programs write it; there a message can contain special
        tokens. more: False if the last message is an answer that goes on.

        Raises UserError for a role that the template does not have.
        """
        messages = self._checked(messages)
        parts = [self.start]
        for role, content, *_ in messages:
            parts += [self.roles[role][0], content, self.roles[role][1]]
        return "".join([*parts, self.roles["assistant"][0]] if more else parts[:-1])

    def encode_conversation(
        self, tokenizer: Tokenizer, messages: Iterable[tuple]
    ) -> tuple[list[int], list[int]]:
        """(ids, mask) of (role, content) messages; the mask is 1 for what the assistant says and
        for the string that ends it, unless the message is (role, content, 0).

        Each piece is encoded by itself, the template's with special tokens and the messages'
        without: nobody can write an end of text, or another's turn, into a message.
        Raises UserError for a role that the template does not have.
        """
        ids = _encode(tokenizer, self.start)
        mask = [0] * len(ids)
        for role, content, *weight in self._checked(messages):
            before, after = (_encode(tokenizer, text) for text in self.roles[role])
            said = tokenizer.encode(content) + after
            ids += before + said
            learnt = int(role == "assistant" and 0 not in weight)
            mask += [0] * len(before) + [learnt] * len(said)
        return ids, mask


def _fault(state: object) -> str:
    """Why this is not what ChatTemplate.to_dict returns; '' if it is."""
    if not isinstance(state, dict) or not isinstance(state.get("roles"), dict):
        return "has no roles"
    for key in state:
        if key not in ("start", "roles", "system"):
            return f"has {key!r}"
    for key in ("start", "system"):
        if not isinstance(state.get(key, ""), str):
            return f"has a {key} that is no text"
    for role in ("user", "assistant", *(["system"] if "system" in state else [])):
        if role not in state["roles"]:
            return f"has no role {role!r}"
    for role, around in state["roles"].items():
        pair = isinstance(around, list | tuple) and len(around) == 2
        if not pair or not all(isinstance(text, str) for text in (role, *around)):
            return f"has a role {role!r} that is not two texts, before and after a message"
    return ""


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """A string of the template, in which special tokens are recognised."""
    return tokenizer.encode(text, allow_special=True) if text else []


TEMPLATES = {
    # For any vocabulary with an end-of-text token. A message cannot contain that token, so only the
    # model itself can end an answer.
    "plain": ChatTemplate(
        {
            "system": ("System:\n", "\n\n"),
            "user": ("User:\n", "\n\n"),
            "assistant": ("Assistant:\n", EOT_TEXT),
        },
        start=EOT_TEXT,
    ),
    # For a vocabulary with these special tokens: no message can impersonate another role, either.
    "tokens": ChatTemplate(
        {role: (f"<|{role}|>", "<|end|>") for role in ("system", "user", "assistant")},
        start=EOT_TEXT,
    ),
    # The most common one of other projects, for vocabularies with its two tokens.
    "chatml": ChatTemplate(
        {
            role: (f"<|im_start|>{role}\n", "<|im_end|>\n")
            for role in ("system", "user", "assistant")
        }
    ),
}


def template_for(tokenizer: Tokenizer) -> ChatTemplate:
    """The safest of TEMPLATES that the tokenizer can write. Raises UserError if there is none."""
    for name in ("tokens", "chatml", "plain"):
        if not (missing := missing_tokens(TEMPLATES[name], tokenizer)):
            return TEMPLATES[name]
    raise UserError(
        f"the tokenizer has no {missing[0]}: give a template without it, or another one"
    )


def missing_tokens(template: ChatTemplate, tokenizer: Tokenizer) -> list[str]:
    """The strings like <|user|> of a template that are no special token of the tokenizer's."""
    strings = [template.start, *(text for around in template.roles.values() for text in around)]
    names = dict.fromkeys(name for text in strings for name in re.findall(r"<\|\w+\|>", text))
    return [name for name in names if not _is_special(tokenizer, name)]


def _is_special(tokenizer: Tokenizer, name: str) -> bool:
    """Whether it is a token that no text becomes, unless special tokens are asked for."""
    try:
        ids = _encode(tokenizer, name)
        return len(ids) == 1 and ids != tokenizer.encode(name)
    except UnknownText:  # a vocabulary of characters without one of these
        return False
