"""YAML files that others made, as plain values: no object that a tag names is created."""

from pathlib import Path
from typing import Any

from bonsai.files.textfile import read_text
from bonsai.system.errors import UserError

# What the library raises for a value that does not fit its tag, such as `!!bool maybe`
WRONG_TAG = (ValueError, LookupError, AttributeError, TypeError)


def read_yaml(path: Path, what: str = "", nodes: bool = False) -> Any:
    """The file's value: dicts, lists, strings, numbers, dates. nodes: return yaml's tree of nodes
    instead, which may have any tags. what: the content's name in messages. Raises UserError if the
    file is not YAML."""
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
        raise UserError(f"{path} is not YAML{line}: {said}") from None
