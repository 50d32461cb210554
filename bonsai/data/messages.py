"""Conversations as rows of files have them, in the common formats.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    {"prompt": "Hi", "completion": "Hello"}
    {"instruction": "Translate to French", "input": "Hello", "output": "Bonjour"}

Readers pass a conversation on as the JSON of its messages, so that it is split into train and val
by its text, like any other document.
"""

import json

from bonsai.system.errors import UserError
from bonsai.tokenizers.chat import ChatTemplate

Message = tuple[str, str] | tuple[str, str, int]  # role, content, 0 where it is not learnt

# Fields of a question, of what it is about (where the row has that), and of the answer.
PAIRS = (
    ("prompt", "input", "completion"),
    ("prompt", "input", "response"),
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
    ("question", "context", "answer"),
)
ROW_FIELDS = ("messages", "conversations", "system", *dict.fromkeys(sum(PAIRS, ())))
CALLS = ("tool_calls", "function_call")  # what a message asks of a tool; no template writes it
SHAREGPT = {"human": "user", "gpt": "assistant"}  # its roles, where they are not ours
FORMS = "messages, conversations, prompt and completion, instruction and output"


def messages_of(row: dict) -> list[Message]:
    """The messages of a row: (role, content), or (role, content, 0) where OpenAI's weight says that
    an answer is not to be learnt. Raises UserError for what is no conversation."""
    for field in ("messages", "conversations"):
        if row.get(field) is not None:
            if not isinstance(row[field], list):
                raise UserError(f"{field} is no list of messages but {row[field]!r:.40}")
            return [_message(each) for each in row[field]]
    for question, about, answer in PAIRS:
        if row.get(question) is not None and row.get(answer) is not None:
            asked = [_text(row[question]), _text(row.get(about) or "")]
            pair = [("user", "\n\n".join(filter(None, asked))), ("assistant", _text(row[answer]))]
            system = _text(row.get("system") or "")
            return [("system", system), *pair] if system else pair
    names = ", ".join(map(repr, row)) or "none"
    raise UserError(f"a conversation has the fields {FORMS}; this row has {names:.200}")


def _message(message: object) -> Message:
    if isinstance(message, dict):
        role, content, other = (message.get(key) for key in ("role", "content", "value"))
        role = message.get("from") if role is None else role  # .parquet has all keys everywhere
        if isinstance(role, str):
            if call := next(filter(message.get, CALLS), None):
                raise UserError(f"a message has {call}, which the chat template cannot write")
            said = SHAREGPT.get(role, role), _text(other if content is None else content)
            return said if _weight(message.get("weight")) else (*said, 0)
    raise UserError(f'a message is like {{"role": "user", "content": "Hi"}}, not {message!r:.40}')


def _weight(weight: object) -> bool:
    """Whether a message is learnt."""
    if weight not in (None, 0, 1):
        raise UserError(f"the weight of a message is 0 or 1, not {weight!r:.40}")
    return weight != 0


def _text(content: object) -> str:
    """A content: a text, or OpenAI's list of parts that are texts."""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        parts = [part.get("text") if part.get("type") == "text" else None for part in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else content
    if not isinstance(content, str):
        raise UserError(f"a message holds no text but {content!r:.40}")
    return content


def conversation_text(template: ChatTemplate, row: dict) -> str:
    """The messages of a row as JSON. Raises UserError for roles that the template does not have,
    and where the assistant says nothing."""
    messages = messages_of(row)
    for i, (role, *said) in enumerate(messages):
        role = template.role_for(role)
        messages[i] = (role, *said)
        if role not in template.roles:
            raise UserError(f"the chat template has no role {role!r}: {', '.join(template.roles)}")
    if not any(role == "assistant" and len(said) == 1 for role, *said in messages):
        raise UserError("the assistant says nothing that could be learnt")
    return json.dumps(messages, ensure_ascii=False)
