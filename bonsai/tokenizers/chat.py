"""Chat templates: how messages become one prompt.

A checkpoint carries its template as plain values under `chat_template`; train.py copies it there
from the meta.json of the data set:

    {"start": "<|endoftext|>",
     "roles": {"user": ["Q: ", "\\n"], "assistant": ["A: ", "\\n"], "system": ["", "\\n\\n"]}}

The prompt is the start, each message between the two strings of its role, and then the first string
of the assistant's. The answer ends where the assistant's second string begins. There is nothing to
execute in it: a checkpoint from elsewhere cannot do more than choose these strings.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bonsai.system.errors import UserError
from bonsai.tokenizers import EOT_TEXT, Tokenizer

EXAMPLE = '{"roles": {"user": ["Q: ", "\\n"], "assistant": ["A: ", "\\n"]}}'


@dataclass(frozen=True)
class ChatTemplate:
    roles: Mapping[str, tuple[str, str]]  # what stands before and after a message of the role
    start: str = ""  # what a conversation begins with

    @classmethod
    def from_dict(cls, state: object) -> "ChatTemplate":
        """Raises UserError for what is not a template."""
        good = (
            isinstance(state, dict)
            and set(state) <= {"start", "roles"}
            and isinstance(state.get("start", ""), str)
            and isinstance(state.get("roles"), dict)
            and {"user", "assistant"} <= set(state["roles"])
            and all(
                isinstance(role, str)
                and isinstance(around, list | tuple)
                and len(around) == 2
                and all(isinstance(text, str) for text in around)
                for role, around in state["roles"].items()
            )
        )
        if not good:
            raise UserError(f"a chat_template has roles (and a start), such as {EXAMPLE}")
        roles = {role: tuple(around) for role, around in state["roles"].items()}
        return cls(roles, state.get("start", ""))

    @property
    def stop(self) -> str | None:
        """The string that ends an answer; None where only the end-of-text token does."""
        after = self.roles["assistant"][1]
        return None if after in ("", EOT_TEXT) else after

    def encode(self, tokenizer: Tokenizer, messages: Iterable[tuple[str, str]]) -> list[int]:
        """The prompt for (role, content) messages, as tokens.

        Each piece is encoded by itself, the template's with special tokens and the messages'
        without: nobody can write an end of text, or another's turn, into a message.
        Raises UserError for a role that the template does not have.
        """
        ids: list[int] = []

        def add(text: str, special: bool) -> None:
            if text:
                ids.extend(tokenizer.encode(text, allow_special=special))

        add(self.start, True)
        for role, content in messages:
            if role not in self.roles:
                known = ", ".join(self.roles)
                raise UserError(f"this model's chat template has no role {role!r}, only {known}")
            before, after = self.roles[role]
            add(before, True)
            add(content, False)
            add(after, True)
        add(self.roles["assistant"][0], True)
        return ids
