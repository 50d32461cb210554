"""What a log, a table or a measurement needs beside it to be repeated."""

import platform
import shlex
import sys
from typing import Any

import torch

from bonsai import __version__
from bonsai.system.commit import code_checksum, commit
from bonsai.system.devices import device_name


def versions() -> dict[str, str]:
    torch_version = str(torch.__version__)  # a plain string: checkpoints hold plain values only
    return {"bonsai": __version__, "torch": torch_version, "python": platform.python_version()}


def header(device: torch.device) -> list[str]:
    """For the head of a log or a table: command, commit, code and versions, hardware."""
    v = " ".join(f"{k} {n}" for k, n in versions().items())
    return [
        f"command: {shlex.join(['python', *sys.argv])}",
        f"commit: {commit()}, code {code_checksum()}, {v}, {platform.platform(terse=True)}",
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
