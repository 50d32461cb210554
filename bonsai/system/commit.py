"""The commit of this repository, and a checksum of its code; standard library only."""

import functools
import hashlib
import subprocess
from importlib.util import find_spec
from pathlib import Path

from bonsai import ROOT

CODE = (".py", ".cpp", ".h")


def commit() -> str:
    """The commit of this repository, with a '+' when files differ from it, or 'unknown'."""
    if not (ROOT / ".git").exists():  # git would look further up, and take another project's
        return "unknown"
    # describe --dirty would take a lock of the index; a git that is killed, or has a full disk,
    # leaves that behind
    git = ["git", "--no-optional-locks", "-C", str(ROOT)]
    name = [*git, "describe", "--always", "--exclude=*"]
    changes = [*git, "status", "--porcelain", "--untracked-files=no"]
    try:
        name, changes = (
            subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout
            for words in (name, changes)
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return name.strip() + "+" * bool(changes)


@functools.cache
def code_checksum() -> str:
    """A checksum of model.py, the programs and bonsai/: it tells edits from one another, also those
    in a copy that no repository knows. In an installed copy it is the same as in the clone.
    'unknown' if a file cannot be read.
    """
    package, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    files = {f"bonsai/{p.relative_to(package).as_posix()}": p for p in package.rglob("*")}
    files = {name: p for name, p in files.items() if not name.startswith("bonsai/programs/")}
    files |= {p.name: p for p in ROOT.glob("*.py")}
    try:
        files |= {f"{m}.py": Path(find_spec(m).origin) for m in ("model", "configurator")}
        for name in sorted(name for name, p in files.items() if p.suffix in CODE):
            digest.update(name.encode() + hashlib.sha256(files[name].read_bytes()).digest())
    except (OSError, AttributeError, TypeError, ValueError):  # a module without a file, too
        return "unknown"
    return digest.hexdigest()[:8]
