"""What a log, a table or a measurement needs beside it to be repeated."""

import platform
import shlex
import subprocess
import sys
from typing import Any

import torch

from bonsai import ROOT, __version__
from bonsai.system.runtime import device_name


def versions() -> dict[str, str]:
    torch_version = str(torch.__version__)  # a plain string: checkpoints hold plain values only
    return {"bonsai": __version__, "torch": torch_version, "python": platform.python_version()}


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


def header(device: torch.device) -> list[str]:
    """For the head of a log or a table: command, commit and versions, hardware."""
    v = " ".join(f"{k} {n}" for k, n in versions().items())
    return [
        f"command: {shlex.join(['python', *sys.argv])}",
        f"commit: {commit()}, {v}, {platform.platform(terse=True)}",
        f"hardware: {device_name(device)}",
    ]


def provenance(device: torch.device) -> dict[str, Any]:
    """For a measurement: command, commit, versions, hardware."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "versions": versions(),
        "hardware": device_name(device),
    }
