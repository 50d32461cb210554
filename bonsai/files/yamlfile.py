"""YAML files of others, as plain values: nothing that a tag names is made."""

from pathlib import Path
from typing import Any

from bonsai.files.textfile import read_text
from bonsai.system.errors import UserError

WRONG_TAG = (ValueError, LookupError, AttributeError, TypeError)  # `!!bool maybe`, in the library


def read_yaml(path: Path, what: str = "", nodes: bool = False) -> Any:
    """What a file holds: dicts, lists, words, numbers, dates; nodes: yaml's tree of them, tags of
    any kind in it. what: the file's content, for messages. Raises UserError for what is no YAML."""
    try:
        import yaml
    except ImportError:
        raise UserError(f"{path} needs PyYAML: pip install pyyaml") from None
    text = read_text(path, what)
    try:
        return yaml.compose(text, yaml.SafeLoader) if nodes else yaml.safe_load(text)
    except (yaml.YAMLError, *WRONG_TAG, RecursionError) as e:
        place = getattr(e, "problem_mark", None)
        line = f" in line {place.line + 1}" if place else ""
        said = " ".join(f"{getattr(e, 'problem', e)}".split())
        said = "it is nested too deep" if isinstance(e, RecursionError) else said
        raise UserError(f"{path} is no YAML{line}: {said}") from None
