"""Chat templates in Jinja, as other programs keep them: written, and read again without executing.

The templates that are read put strings around messages and do nothing else: one loop over the
messages, in which the role chooses the strings, and the beginning of an answer after it. These are
our own, ChatML (SmolLM2, older Qwen), Zephyr's and many others. They are taken apart by their
grammar, with Jinja's rules for blanks as transformers sets them (trim_blocks, lstrip_blocks); all
that is found in them are strings. What does anything more (tools, conditions on anything but the
role, filters, macros) is refused by naming it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from bonsai.system.errors import UserError
from bonsai.tokenizers.base import well_formed
from bonsai.tokenizers.chat import ChatTemplate

LONGEST = 100_000  # characters of a template; the longest in use have some 20,000
DEEPEST = 8  # blocks within blocks
USUAL = ("system", "user", "assistant")  # where a template takes any role


def jinja(chat: ChatTemplate) -> str:
    """The template that renders messages as ChatTemplate.encode does: as one text, in which a token
    may reach over the border of a message, and special tokens are found in messages too."""

    def text(words: str) -> str:  # a string of JSON is one of Jinja's, too
        return json.dumps(well_formed(words), ensure_ascii=False)

    parts = [f"{{{{ {text(chat.start)} }}}}{{% for message in messages %}}"]
    if chat.system is not None:
        before, after = chat.roles["system"]
        parts.append("{% if loop.first and messages[0]['role'] != 'system' %}")
        parts.append(f"{{{{ {text(before + chat.system + after)} }}}}{{% endif %}}")
    for i, (role, (before, after)) in enumerate(chat.roles.items()):
        parts.append(f"{{% {'elif' if i else 'if'} message['role'] == {text(role)} %}}")
        parts.append(f"{{{{ {text(before)} + message['content'] + {text(after)} }}}}")
    unknown = text(f"the roles of this model are {', '.join(chat.roles)}")
    parts.append(f"{{% else %}}{{{{ raise_exception({unknown}) }}}}{{% endif %}}{{% endfor %}}")
    first = text(chat.roles["assistant"][0])
    parts.append(f"{{% if add_generation_prompt %}}{{{{ {first} }}}}{{% endif %}}")
    return "".join(parts)


def read_jinja(source: str, tokens: Mapping[str, str] | None = None) -> ChatTemplate:
    """The template that renders as this Jinja does; for one of ours that is the inverse of `jinja`.

    tokens: what names such as eos_token stand for. Raises UserError for a template that does more
    than put strings around messages.
    """
    if len(source) > LONGEST:
        raise _refused(f"has {len(source):,} characters")
    nodes, _ = _Reader(parts_of(source), tokens or {}).nodes()
    return _template(nodes)


def _refused(what: str) -> UserError:
    return UserError(f"it {what}, and only those that put strings around messages are read")


# ---- text and tags ----

Words = list[str]  # of a tag; a string literal is a ' and its text; message.role is one word
Part = tuple[str, str | Words]
_OPEN = re.compile(r"\{([{%#])([-+]?)")
_END_OF_COMMENT = re.compile(r"[-+]?#\}")
_WORD = re.compile(r"""\s+|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\w+|[-+]?%\}|-?\}\}|[=!]=|.""", re.S)
_KEY = re.compile(r"'[A-Za-z_]\w*|\d+")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.S)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"} | {c: c for c in "\\'\""}


def parts_of(source: str) -> list[Part]:
    """("text", str), ("output", words) and ("block", words) in order, with blanks as Jinja has
    them."""
    source = re.sub(r"\r\n|\r", "\n", source).removesuffix("\n")
    parts: list[Part] = []
    at, line_begins, strip = 0, True, False
    while at < len(source):
        tag = _OPEN.search(source, at)
        text = source[at : tag.start() if tag else len(source)]
        if strip:
            text = text.lstrip()
        if tag and tag[2] == "-":
            text = text.rstrip()
        elif tag and tag[1] != "{" and not tag[2]:  # lstrip_blocks
            line = text.rfind("\n") + 1
            if (line or line_begins) and not text[line:].strip():
                text = text[:line]
        if text:
            parts.append(("text", text))
        if tag is None:
            break
        if tag[1] == "#":
            end = _END_OF_COMMENT.search(source, tag.end())
            if end is None:
                raise _refused("has a comment without an end")
        else:
            words, end = _words(source, tag)
            parts.append(("block" if tag[1] == "%" else "output", words))
        at, strip, line_begins = end.end(), end[0][0] == "-", False
        if tag[1] != "{" and end[0][0] not in "-+" and source.startswith("\n", at):  # trim_blocks
            at, line_begins = at + 1, True
    return parts


def _words(source: str, tag: re.Match) -> tuple[Words, re.Match]:
    """The words of a tag, and its end."""
    words: Words = []
    for word in _WORD.finditer(source, tag.end()):
        text = word[0]
        if text.endswith("%}" if tag[1] == "%" else "}}"):
            return _joined(words), word
        if text in ("'", '"'):
            break
        if text[0] in "'\"":
            words.append("'" + _ESCAPE.sub(_unescaped, text[1:-1]))
        elif not text.isspace():
            words.append(text)
    raise _refused(f"has {source[tag.start() : tag.start() + 40]!r}, which has no end")


def _unescaped(escape: re.Match) -> str:
    """The character of an escape in a string, of those that JSON's strings and Jinja's share."""
    name = escape[1]
    character = chr(int(name[1:], 16)) if len(name) == 5 else _ESCAPES.get(name)
    if character is None or well_formed(character) != character:
        raise _refused(f"has {escape[0]!r} in a string")
    return character


def _joined(words: Words) -> Words:
    """The words with each message['role'] and message.role as one word, message.role."""
    joined: Words = []
    rest = iter(range(len(words)))
    for i in rest:
        three = words[i : i + 3]
        of_a_name = bool(joined) and joined[-1][0].isalpha()
        if of_a_name and three[0] == "." and len(three) > 1 and three[1].isidentifier():
            joined[-1] += f".{three[1]}"
            next(rest)
        elif of_a_name and three[0] == "[" and three[2:] == ["]"] and _KEY.fullmatch(three[1]):
            joined[-1] += "." + three[1].removeprefix("'")
            next(rest), next(rest)
        else:
            joined.append(words[i])
    return joined


# ---- what the tags say ----

_LOOP = ["for", "message", "in", "messages"]
_PROMPT = ["add_generation_prompt"]
_LAST = (["loop.last", "and", *_PROMPT], [*_PROMPT, "and", "loop.last"])
_NO_SYSTEM = ["messages.0.role", "!=", "'system"]
_FIRST = ["loop.first", "and", *_NO_SYSTEM]
_NOT_SAID = (["not", *_PROMPT, "is", "defined"], [*_PROMPT, "is", "not", "defined"])
_UNSET = ["set", *_PROMPT, "=", "false"]
_ROLE, _CONTENT = "message.role", "message.content"


@dataclass
class _Value:
    """What differs from message to message."""

    name: str  # _ROLE or _CONTENT


@dataclass
class _Choice:
    branches: list[tuple[Words, list]]  # the condition, that of else is [], and what it leads to


@dataclass
class _Loop:
    nodes: list


class _Error:
    """raise_exception(...)"""


class _Reader:
    """Puts the parts of a template into a tree of strings, _Value, _Choice, _Loop and _Error."""

    def __init__(self, parts: list[Part], tokens: Mapping[str, str]):
        self.parts, self.tokens, self.at = parts, tokens, 0

    def nodes(self, *ends: str, depth: int = 0) -> tuple[list, Words]:
        """What comes before the next block that begins with one of `ends`, and that block."""
        found = []
        while self.at < len(self.parts):
            kind, value = self.parts[self.at]
            self.at += 1
            if kind == "text":
                found.append(value)
            elif kind == "output":
                found += self.output(value)
            elif value and value[0] in ends:
                if value[0] != "elif" and len(value) > 1:
                    raise _refused(f"has {_shown(value)}")
                return found, value
            elif value[:1] == ["if"] and len(value) > 1 and depth < DEEPEST:
                found.append(self.choice(value[1:], depth + 1))
            elif value == _LOOP and depth < DEEPEST:
                found.append(_Loop(self.nodes("endfor", depth=depth + 1)[0]))
            else:
                raise _refused(f"has {_shown(value)}")
        if ends:
            raise _refused(f"has no {ends[-1]}")
        return found, []

    def choice(self, condition: Words, depth: int) -> _Choice:
        following = self.parts[self.at : self.at + 2]
        if condition in _NOT_SAID and following == [("block", _UNSET), ("block", ["endif"])]:
            self.at += 2  # a prompt is not asked for unless it is: that changes nothing
            return _Choice([])
        branches = []
        while True:
            ends = ("elif", "else", "endif") if condition else ("endif",)
            inside, end = self.nodes(*ends, depth=depth)
            branches.append((condition, inside))
            if end == ["endif"]:
                return _Choice(branches)
            condition = end[1:]
            if end == ["elif"]:
                raise _refused("has an elif without a condition")

    def output(self, words: Words) -> list:
        """The strings and values that {{ }} puts together."""
        if words[:2] == ["raise_exception", "("] and words[3:] == [")"] and words[2][0] == "'":
            return [_Error()]
        if len(words) % 2 == 0 or not {*words[1::2]} <= {"+", "~"}:
            raise _refused(f"has {_shown(words, '{{', '}}')}")
        return [self.term(word, words) for word in words[::2]]

    def term(self, word: str, words: Words) -> "str | _Value":
        if word[0] == "'":
            return word[1:]
        if word in (_ROLE, _CONTENT):
            return _Value(word)
        if word in self.tokens:
            return self.tokens[word]
        raise _refused(f"has {_shown(words, '{{', '}}')}")


def _shown(words: Words, before: str = "{%", after: str = "%}") -> str:
    spelt = " ".join(f"{w}'" if w[0] == "'" else w for w in words)
    return f"{before} {ascii(spelt)[1:-1]:.60} {after}"


# ---- what the tree means ----


def _template(nodes: list) -> ChatTemplate:
    nodes = [node for node in nodes if node != _Choice([])]
    loops = [i for i, node in enumerate(nodes) if isinstance(node, _Loop)]
    if len(loops) != 1:
        raise _refused(f"has {'several' if loops else 'no'} loops over all messages")
    before, body, after = nodes[: loops[0]], nodes[loops[0]].nodes, nodes[loops[0] + 1 :]
    system = _taken(body, 0, _FIRST)
    if system is None:
        system = _taken(before, -1, _NO_SYSTEM)
    prompt = _taken(body, -1, *_LAST)
    if prompt is None:
        prompt = _taken(after, -1, _PROMPT)
    if after:
        raise _refused("has something after its messages")
    roles = _roles(body)
    if not {"user", "assistant"} <= roles.keys():
        raise _refused("does not say how a user's message, or an assistant's, is written")
    if prompt != roles["assistant"][0]:
        raise _refused("begins an answer otherwise than a message of the assistant's")
    state = {"start": _text(before), "roles": roles}
    if system is not None:
        first, last = roles.get("system", ("", ""))
        state["system"] = system.removeprefix(first).removesuffix(last)
        if "system" not in roles or first + state["system"] + last != system:
            raise _refused("begins otherwise than with a message of the system's")
    return ChatTemplate.from_dict(state)


def _taken(nodes: list, at: int, *conditions: Words) -> str | None:
    """The text that is there under one of these conditions, which is taken out of the nodes."""
    node = nodes[at] if nodes else None
    if not isinstance(node, _Choice) or len(node.branches) != 1:
        return None
    (condition, inside), *_ = node.branches
    if condition not in conditions:
        return None
    del nodes[at]
    return _text(inside)


def _text(nodes: list) -> str:
    """The text of nodes that are the same whatever the messages are."""
    if not all(isinstance(node, str) for node in nodes):
        raise _refused("has a condition, or a message, where there should be none")
    return "".join(nodes)


def _roles(body: list) -> dict[str, tuple[str, str]]:
    """What stands before and after the content of a message, by its role."""
    names = list(dict.fromkeys(_compared(body)))
    if (other := _said(body, None)) and None in other:
        names += [role for role in USUAL if role not in names]
    roles = {}
    for role in names:
        said = _said(body, role)
        if not said or not any(part is None or part for part in said):
            continue  # an error, or nothing
        if said.count(None) != 1:
            raise _refused(f"does not write each message of the role {role!a:.30} once")
        at = said.index(None)
        roles[role] = ("".join(said[:at]), "".join(said[at + 1 :]))
    return roles


def _compared(nodes: list) -> list[str]:
    """The roles that conditions name, in order."""
    found = []
    for node in nodes:
        for condition, inside in node.branches if isinstance(node, _Choice) else ():
            role, _ = _role_of(condition)
            found += [*([] if role is None else [role]), *_compared(inside)]
    return found


def _role_of(condition: Words) -> tuple[str | None, bool]:
    """The role that a condition compares with, and whether it asks for it; (None, True) of else."""
    if not condition:
        return None, True
    if len(condition) == 3 and condition[1] in ("==", "!="):
        left, sign, right = condition
        name = right if left == _ROLE else left if right == _ROLE else ""
        if name[:1] == "'":
            return name[1:], sign == "=="
    raise _refused(f"has {_shown(['if', *condition])}")


def _said(nodes: list, role: str | None) -> list[str | None] | None:
    """The strings of a message of a role (None: another than all that are named), with None in
    place of its content; None where that is an error."""
    found = []
    for node in nodes:
        if isinstance(node, _Error):
            return None
        if isinstance(node, _Loop):
            raise _refused("has a loop within a loop")
        if isinstance(node, _Value):
            found.append((role or "") if node.name == _ROLE else None)
        elif isinstance(node, str):
            found.append(node)
        for condition, inside in node.branches if isinstance(node, _Choice) else ():
            name, wanted = _role_of(condition)
            if not condition or (name == role) == wanted:
                more = _said(inside, role)
                if more is None:
                    return None
                found += more
                break
    return found
