"""bonsai/serving/registry.py: models by name, and what their tokens are in text."""

import os

import pytest
from helpers.made_model import knows_text
from helpers.server_in_process import model_server

from bonsai.serving.registry import load_served, parse_models, usable_tokenizers, written
from bonsai.system.errors import UserError
from bonsai.system.runtime import Runtime, setup
from bonsai.tokenizers.chat import TEMPLATES


def test_names_of_models():
    assert parse_models("a=b, c=d=e,") == {"a": "b", "c": "d=e"}


def test_a_path_of_a_model_may_have_commas(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run 1, of 2, big").mkdir()
    models = parse_models("a=run 1, of 2, big, b=run 1, of 2, big,c=d")
    assert models == {"a": "run 1, of 2, big", "b": "run 1, of 2, big", "c": "d"}


@pytest.mark.parametrize(
    "text, words",
    [
        ("a", "'a' is not name=PATH"),
        ("a=", "is not name=PATH"),
        ("=b", "is not name=PATH"),
        ("a=b,c,d=e", "'c' is not name=PATH"),
        ("a=b,a=c", "the name a is given twice"),
        ("caf\udce9=b", r"models: a name is not UTF-8 from '\\udce9' on"),
    ],
)
def test_what_is_no_list_of_models(text, words):
    with pytest.raises(UserError, match=words):
        parse_models(text)
    assert parse_models(" , ") == {}


def test_a_token_by_itself():
    served = model_server().models["m"]
    assert served.token_bytes(0xC3) == b"\xc3" and served.token_text(0xC3) == "bytes:\\xc3"
    assert served.token_text(97) == "a"
    assert (served.context, served.vocab_size, served.start) == (160, 257, [256])
    assert served.longest == len("<|endoftext|>")


def test_when_a_model_was_written(tmp_path):
    for i, name in enumerate(("a.pt", "b.pt", "log.txt")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (100 + i, 100 + i))
    assert written(str(tmp_path)) == 101 and written(str(tmp_path / "a.pt")) == 100
    assert written("gpt2") == 0 == written(str(tmp_path / "nowhere"))


def test_tokenizers_that_do_not_work_here_are_left_out():
    assert list(usable_tokenizers(["byte", "no such one"])) == ["byte"]


def test_steps_are_captured_where_they_can_be(tmp_path, monkeypatch):
    folder, runtime = str(knows_text(tmp_path / "out")), setup("cpu", "float32", False)
    assert load_served("memo", folder, runtime, 2).engine.captured is None
    monkeypatch.setattr(Runtime, "captures", True)
    assert load_served("memo", folder, runtime, 2).engine.captured is not None
    assert load_served("memo", folder, runtime, 2, capture=False).engine.captured is None
    assert load_served("memo", folder, runtime, 2, lookup=3).engine.captured is None


def test_a_model_is_loaded_with_all_that_it_needs(tmp_path, capsys):
    template = {"roles": {"user": ["", "\n"], "assistant": ["", "\n"]}}
    folder = knows_text(tmp_path / "out", chat_template=template)
    runtime = setup("cpu", "float32", False)
    served = load_served("memo", str(folder), runtime, max_batch=2)
    assert (served.name, served.vocab_size, served.chat.stop) == ("memo", 257, "\n")
    assert served.created > 0 and not served.model.training and served.ends == (256,)
    assert load_served("memo", str(folder), runtime, 2, "plain").chat == TEMPLATES["plain"]
    with pytest.raises(UserError, match="nowhere"):
        load_served("memo", str(tmp_path / "nowhere"), runtime, 2)
