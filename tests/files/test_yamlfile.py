"""bonsai/files/yamlfile.py: plain values, or one line that says where they end."""

import builtins

import pytest
from helpers.errors import one_line

pytest.importorskip("yaml")
from bonsai.files.yamlfile import read_yaml
from bonsai.system.errors import UserError


def test_plain_values_and_nodes(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("\ufeffa: [1, x]\nb: !function os.abort\n", encoding="utf-8")
    tree = read_yaml(path, nodes=True)  # a tag is a word in it
    assert [(key.value, value.tag) for key, value in tree.value][1] == ("b", "!function")
    path.write_text("a: [1, x]\n")
    assert read_yaml(path) == {"a": [1, "x"]}


@pytest.mark.parametrize("text, said", [
    ("a: 1\nb: [\n", "a.yaml is not YAML in line 3: expected"),
    ("a: !function os.abort\n", "a.yaml is not YAML in line 1: could not determine a constructor"),
    ("a: 2020-13-45\n", "a.yaml is not YAML: month must be"),
    ("[" * 3000, "a.yaml is not YAML: it is nested too deep"),
    ("a: \x01\n", "a.yaml is not YAML: "),
    ("--- 1\n--- 2\n", "a.yaml is not YAML in line 2: "),
    *((f"a: !!{tag}\n", "a.yaml is not YAML: ") for tag in ("int ''", "bool x", "timestamp x")),
], ids=str)  # fmt: skip
def test_what_is_no_yaml_is_one_line(tmp_path, text, said):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as e:
        read_yaml(path)
    assert said in one_line(e)


def test_a_missing_file_and_a_missing_library(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot read the tasks .*none.yaml"):
        read_yaml(tmp_path / "none.yaml", "the tasks")
    real = builtins.__import__

    def without(name, *args, **options):
        if name == "yaml":
            raise ImportError
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install pyyaml"):
        read_yaml(tmp_path / "none.yaml")
