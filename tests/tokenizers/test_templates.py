"""bonsai/tokenizers/templates.py: a chat template by its name, from a file, or of a folder."""

import json

import pytest

from bonsai.system.errors import UserError
from bonsai.tokenizers import BPETokenizer, ByteTokenizer
from bonsai.tokenizers.chat import TEMPLATES
from bonsai.tokenizers.jinja import jinja
from bonsai.tokenizers.templates import find_template

CHATML = BPETokenizer.train(["ab" * 9], 270, special_tokens=("<|im_start|>", "<|im_end|>"))
OWN = {"roles": {"user": ["Q: ", "\n"], "assistant": ["A: ", "\n"]}, "start": ""}


def test_by_name_file_or_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_template("plain", ByteTokenizer()) == TEMPLATES["plain"]
    (tmp_path / "own.json").write_text(json.dumps(OWN))
    (tmp_path / "meta.json").write_text(json.dumps({"name": "chat", "chat_template": OWN}))
    for name in ("own.json", "meta.json"):
        assert find_template(name, ByteTokenizer()).to_dict() == OWN
    (tmp_path / "chat_template.jinja").write_text(jinja(TEMPLATES["chatml"]))
    for name in ("chatml", str(tmp_path), "chat_template.jinja"):
        assert find_template(name, CHATML) == TEMPLATES["chatml"]


@pytest.mark.parametrize(("name", "content", "hint"), [
    ("chatml", "", r"<\|im_start\|>, which is no special token"),
    ("gone.json", "", "gone.json"),
    ("a.json", "[", "a.json is not valid JSON"),
    ("a.json", "[" * 9999, "a.json is not valid JSON"),
    ("a.json", "{}", "the chat_template has no roles; one is such as {"),
    ("a.json", '{"chat_template": "{{ x }}"}', "a.json has a chat template in Jinja: name its fol"),
    ("a.gguf", "", "a.gguf is a model, which --init_from= reads"),
    ("folder/chat_template.jinja", "{{ tools }}", r"it has \{\{ tools \}\}, and only"),
    ("folder/chat_template.jinja", "{{ eos_token }}", "its folder says what eos_token is"),
    ("a.json", json.dumps({"roles": {"user": ["", ""], "assistant": ["", ""]}}), "ends no answer"),
    (".", "", "has no chat template"),
    ("folder", "{{ tools }}", r"of folder is not supported: it has \{\{ tools \}\}"),
])  # fmt: skip
def test_what_is_none_is_one_line(tmp_path, monkeypatch, name, content, hint):
    monkeypatch.chdir(tmp_path)
    for file in ("a.json", "a.gguf"):
        (tmp_path / file).write_text(content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "chat_template.jinja").write_text(content)
    with pytest.raises(UserError, match=hint) as e:
        find_template(name, ByteTokenizer())
    assert "\n" not in str(e.value)
