"""bonsai/tokenizers/jinja.py: what is written is read again, and what is read renders as Jinja."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bonsai.system.errors import UserError
from bonsai.tokenizers import get, well_formed
from bonsai.tokenizers.chat import TEMPLATES, ChatTemplate
from bonsai.tokenizers.jinja import LONGEST, jinja, parts_of, read_jinja

ODD = [
    "",
    "'",
    '"',
    "\\",
    "\\n",
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "{{ x }}",
    "{%- endfor -%}",
    "$",
]
ODD += ["\n", "\r\n", "\t\b\f\x00\x7f", "\u2028", "é", "😀", "\ud83d", "\\u0041", "<|im_end|>", " "]
words = st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=4)), max_size=5).map("".join)


@st.composite
def templates(draw) -> ChatTemplate:
    names = {"user", "assistant", *draw(st.lists(words, max_size=4))}
    system = draw(st.one_of(st.none(), words))
    names |= set() if system is None else {"system"}
    order = draw(st.permutations(sorted(names)))
    return ChatTemplate({r: (draw(words), draw(words)) for r in order}, draw(words), system)


def whole(template: ChatTemplate) -> ChatTemplate:
    """Without half characters, which no file can hold."""
    roles = {well_formed(r): tuple(map(well_formed, a)) for r, a in template.roles.items()}
    system = None if template.system is None else well_formed(template.system)
    return ChatTemplate(roles, well_formed(template.start), system)


@settings(max_examples=300, deadline=None)
@given(templates())
@example(ChatTemplate({"user": ("", ""), "assistant": ("", "")}))
@example(ChatTemplate({"assistant": ("a", ""), "": ("", "b"), "user": ("{% if %}", "'")}, "\n"))
def test_what_is_written_is_read_again(template):
    again = read_jinja(jinja(template))
    assert again == whole(template) and [*again.roles] == [*whole(template).roles]


# ---- as others write them ----

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
PLAIN_CHATML = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
    "{% endif %}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_AS_TEXT = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}
"""
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
HEADERS = """{{- bos_token -}}
{%- for message in messages -%}
    {# who speaks #}
    {%- if message.role != 'tool' -%}
        <|{{ message.role }}|>

{{ message["content"] ~ "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|assistant|>\\n\\n" -}}
{%- endif -%}
"""
WILD = {
    "SmolLM2": SMOLLM2,
    "ChatML": PLAIN_CHATML,
    "ChatML, as text": CHATML_AS_TEXT,
    "Zephyr": ZEPHYR,
    "blanks and a comment": HEADERS,
    **{f"our {name}": jinja(template) for name, template in TEMPLATES.items()},
}
TOKENS = {"eos_token": "</s>", "bos_token": "<s>"}
TALKS = [
    [("user", "Hi")],
    [("system", "Be {{ brief }}."), ("user", " Why?\n")],
    [("user", "{% So %}"), ("assistant", ""), ("user", "'")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
]


def rendered(source: str, talk: list[tuple[str, str]], prompt: bool = True) -> str:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = [{"role": role, "content": content} for role, content in talk]
    compiled = utils._compile_jinja_template(source)
    return compiled.render(messages=messages, add_generation_prompt=prompt, **TOKENS)


def encoded(template: ChatTemplate, talk: list[tuple[str, str]]) -> str:
    return get("byte").decode(template.encode(get("byte"), talk))


@pytest.mark.parametrize("name", WILD)
def test_what_is_read_renders_as_transformers_does(name):
    template = read_jinja(WILD[name], TOKENS)
    for talk in TALKS:
        assert encoded(template, talk) == rendered(WILD[name], talk)
    assert {"system", "user", "assistant"} <= template.roles.keys()
    again = jinja(template)  # as export.py writes it
    assert read_jinja(again) == template
    assert all(rendered(again, talk) == rendered(WILD[name], talk) for talk in TALKS)


def test_chatml_is_known():
    assert read_jinja(PLAIN_CHATML) == read_jinja(CHATML_AS_TEXT) == TEMPLATES["chatml"]
    smol = read_jinja(SMOLLM2)
    assert smol.roles == TEMPLATES["chatml"].roles and smol.system.endswith("by Hugging Face")


spaces = st.sampled_from(
    ["", "", " ", "\n", "\n  ", " \n\n ", "x", " x\n", "{# {{ #}", "{#- -#}\n"]
)
signs = st.sampled_from(["", "", "-", "+"])
strings = st.sampled_from(["'a'", '"\\n"', "'\n'", "' {% '", "'\\'}}'", "eos_token", "'\\u00e9'"])


@st.composite
def sources(draw) -> str:
    """A template with ChatML's statements, and blanks and signs of any kind between them."""

    def block(text: str) -> str:
        return f"{draw(spaces)}{{%{draw(signs)} {text} {draw(signs)}%}}"

    def out(*terms: str) -> str:
        sign = draw(st.sampled_from([" + ", "~", "+"]))
        return f"{{{{{draw(st.sampled_from(['', '-']))} {sign.join(terms)} {draw(minus)}}}}}"

    minus = st.sampled_from(["", "-"])
    before, a, b = draw(spaces), draw(strings), draw(strings)
    role, content = draw(st.sampled_from(["message.role", "message [ 'role' ]"])), "message.content"
    said = before + out(a, role, b, content, draw(strings)) + draw(spaces)
    prompt = before + out(a, "'assistant'", b) + draw(st.sampled_from(["", "{#- -#}", "{#\n#}\n"]))
    first = draw(spaces) + out(draw(strings)) if draw(st.booleans()) else ""
    parts = [first, block("for message in messages"), said, block("endfor")]
    parts += [
        "{% if add_generation_prompt ",
        draw(signs),
        "%}",
        prompt,
        "{%",
        draw(minus),
        "endif %}",
    ]
    return "".join(parts) + draw(st.sampled_from(["", "\n"]))


def test_blanks_are_those_of_jinja():
    """What is text between tags is the same; and what is read renders the same."""
    jinja2 = pytest.importorskip("jinja2", reason="jinja2 is not installed")
    lexer = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).lexer
    read = []

    @settings(max_examples=400, deadline=None)
    @given(sources())
    def check(source):
        texts = [text for _, kind, text in lexer.tokeniter(source, None) if kind == "data"]
        assert [text for kind, text in parts_of(source) if kind == "text"] == [*filter(None, texts)]
        try:
            template = read_jinja(source, TOKENS)
        except UserError:  # of another prompt, or with something after the messages
            return
        read.append(source)
        for talk in TALKS:
            assert encoded(template, talk) == rendered(source, talk)

    check()
    assert len(read) > 40


LOOP, SAID = "{% for message in messages %}", "{{ message['role'] + message['content'] }}"
PROMPT = "{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"
GOOD = LOOP + SAID + "{% endfor %}" + PROMPT
REFUSED = {
    "nothing": ("", "no loops"),
    "text": ("Hello", "no loops"),
    "two loops": (GOOD + LOOP + "{% endfor %}", "several loops"),
    "tools": (GOOD.replace("{% endfor", "{% if tools %}a{% endif %}{% endfor"), "if tools"),
    "a filter": (GOOD.replace("content']", "content'] | trim"), r"\| trim"),
    "a method": (GOOD.replace("content']", "content'].strip()"), "strip"),
    "a variable": ("{% set x = 1 %}" + GOOD, "set x = 1"),
    "a macro": ("{% macro a() %}{% endmacro %}" + GOOD, "macro"),
    "raw": ("{% raw %}{{ x }}{% endraw %}" + GOOD, "raw"),
    "an unknown name": ("{{ pad_token }}" + GOOD, "pad_token"),
    "an index that is a name": (GOOD.replace("'content'", "content"), "message . content|content"),
    "another item": (GOOD.replace("'content'", "'name'"), r"message\.name"),
    "a slice": (GOOD.replace("in messages", r"in messages[1:]"), "messages"),
    "a key of the loop": (LOOP.replace("%}", "recursive %}") + GOOD, "recursive"),
    "no prompt": (GOOD.replace(PROMPT, ""), "begins an answer otherwise"),
    "another prompt": (GOOD.replace("'assistant'", "'Assistant'"), "begins an answer otherwise"),
    "something at the end": (GOOD + "\n.", "something after"),
    "the content twice": (GOOD.replace("'] }}", "'] + message.content }}"), "once"),
    "no content": (GOOD.replace(" + message['content']", ""), "user's message"),
    "a user alone": (
        LOOP + "{% if message.role == 'user' %}" + SAID + "{% endif %}{% endfor %}" + PROMPT,
        "an assistant's",
    ),
    "a message of nobody's": ("{% if message.role == 'a' %}b{% endif %}" + GOOD, "a condition"),
    "an open string": (GOOD.replace("'assistant' ", "'assistant "), "no end"),
    "an open tag": (GOOD + "{% if", "no end"),
    "an open comment": (GOOD + "{# a", "comment without an end"),
    "an open block": (LOOP + SAID, "no endfor"),
    "an empty output": (GOOD + "{{ }}", r"\{\{"),
    "two strings side by side": (GOOD.replace("'assistant'", "'assis' 'tant'"), "assis"),
    "a sum without an end": (GOOD.replace("'assistant'", "'assistant' +"), "assistant"),
    "an escape by name": (GOOD.replace("'assistant'", r"'\N{DIGIT ONE}'"), "in a string"),
    "half a character": (GOOD.replace("'assistant'", r"'\ud83d'"), "in a string"),
    "a dict": ("{{ {'a': 'b'}['a'] }}" + GOOD, r"\{"),
    "an if without a condition": (GOOD.replace(SAID, "{% if %}" + SAID + "{% endif %}"), "if %"),
    "an elif without one": (
        GOOD.replace(SAID, "{% if message.role == 'a' %}{% elif %}" + SAID + "{% endif %}"),
        "elif",
    ),
    "an end too much": (GOOD + "{% endif %}", "endif"),
    "an end with words": (GOOD.replace("endfor", "endfor x"), "endfor x"),
    "a system that is none": (
        "{% if messages[0]['role'] != 'system' %}Be kind{% endif %}" + GOOD,
        "otherwise than with a message of the system",
    ),
    "an error for all": (GOOD.replace(SAID, "{{ raise_exception('no') }}"), "user's message"),
    "code": ("{{ cycler.__init__.__globals__.os.popen('id').read() }}" + GOOD, "cycler"),
    "nested": ("{% if message.role == 'a' %}" * 50 + GOOD, "if message"),
    "too long": (GOOD + "{# " + "a" * LONGEST + " #}", "characters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_more_is_refused_by_name(name):
    assert read_jinja(GOOD).roles["user"] == ("user", "")
    source, hint = REFUSED[name]
    with pytest.raises(UserError, match=hint) as e:
        read_jinja(source)
    assert "\n" not in str(e.value) and len(str(e.value)) < 200


@pytest.mark.parametrize(
    "part", ["{{", "{%", "{#", "'", '"', "\\", "{{ '", "{% if a %}", "[a", ".", "\n "]
)
def test_long_nonsense_is_refused_at_once(part):
    start = time.monotonic()
    for source in (part * (LONGEST // len(part)), "{{ " + part * (LONGEST // len(part) - 9)):
        with pytest.raises(UserError):
            read_jinja(source)
    assert time.monotonic() - start < 20


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([GOOD[i : i + 7] for i in range(0, len(GOOD), 7)] + ODD)))
def test_nonsense_is_one_line(parts):
    try:
        read_jinja("".join(parts))
    except UserError as e:
        assert "\n" not in str(e)
