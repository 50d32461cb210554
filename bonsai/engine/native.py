"""The C++ of this folder, built by the system's compiler when it is first needed."""

import ctypes
import functools
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch


@functools.cache
def build(source: str) -> ctypes.CDLL | None:
    """<source>.cpp of this folder as a library, in half a second; None where none can be built."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or sys.platform == "win32":
        return None
    options = ["-O3", "-march=native", "-fopenmp", "-std=c++17", "-shared", "-fPIC"]
    if platform.machine() == "x86_64":
        options.append("-mprefer-vector-width=512")
    path = Path(__file__).with_name(f"{source}.cpp")
    with tempfile.TemporaryDirectory() as folder:  # not kept: it fits this processor alone
        library = Path(folder) / f"{source}.so"
        command = [compiler, *options, str(path), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            return ctypes.CDLL(str(library))
        except (OSError, subprocess.SubprocessError):
            return None


@functools.cache
def functions(source: str, name: str, *arguments) -> dict:
    """The function <name>_<dtype> of a source for each dtype; none where it can't be built.

    arguments: their ctypes.
    """
    library = build(source)
    found = {}
    for dtype in (torch.float32, torch.bfloat16) if library else ():
        found[dtype] = library[f"{name}_{str(dtype).removeprefix('torch.')}"]
        found[dtype].restype, found[dtype].argtypes = None, arguments
    return found
