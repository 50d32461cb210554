"""Paths as users give them; standard library only, as the configurator needs it."""

import os
from collections.abc import Sequence
from pathlib import Path

from bonsai import ROOT
from bonsai.system.values import expand_path


def resolve_path(path: str | os.PathLike[str]) -> Path:
    """`path` from the working directory, or from the repository root if it only exists there."""
    path = Path(expand_path(path))
    return path if path.exists() or not (ROOT / path).exists() else ROOT / path


def split_paths(text: str, bases: Sequence[Path] = (Path(), ROOT)) -> list[str]:
    """The paths of a setting that takes several between commas. One that is there, from any of the
    bases, is one path, whatever commas are in it."""
    if text and any(os.path.exists(base / expand_path(text)) for base in bases):
        return [text]
    return [path for path in map(str.strip, text.split(",")) if path]
