"""The examples in docstrings give what stands below them."""

import doctest
import importlib
from pathlib import Path

import pytest
from helpers.programs import ROOT
from helpers.shared_data import need_vocabulary

FOLDERS = ("bonsai", "benchmarks", "projects", "tests/helpers")
FILES = [ROOT / "configurator.py", ROOT / "model.py"]
FILES += sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
FILES = [path for path in FILES if ">>> " in path.read_text(encoding="utf-8")]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("tests.")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_examples_in_docstrings(path):
    if path.name == "gpt.py":
        need_vocabulary("gpt2")
    failed, tried = doctest.testmod(importlib.import_module(name_of(path)))
    assert tried and not failed  # what differs is in the output
