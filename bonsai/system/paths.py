"""Paths as users give them; standard library only, as the configurator needs it."""

import os
from pathlib import Path

from bonsai import ROOT
from bonsai.system.values import expand_path


def resolve_path(path: str | os.PathLike[str]) -> Path:
    """`path` from the working directory, or from the repository root if it only exists there."""
    path = Path(expand_path(path))
    return path if path.exists() or not (ROOT / path).exists() else ROOT / path
