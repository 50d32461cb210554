"""What the benchmarks share."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from bonsai.system.errors import UserError


def load_peer(folder: Path) -> ModuleType:
    """model.py of a nanoGPT checkout, under a name of its own. UserError if there is none."""
    path = folder / "model.py"
    if not path.is_file():
        raise UserError(f"peer={folder} has no model.py: give the folder of a nanoGPT checkout")
    spec = importlib.util.spec_from_file_location("peer_model", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["peer_model"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


def peer_commit(folder: Path) -> str:
    git = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
