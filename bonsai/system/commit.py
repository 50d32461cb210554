"""The commit of this repository; standard library only."""

import subprocess

from bonsai import ROOT


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
