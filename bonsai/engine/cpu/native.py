"""The C++ of this folder, built by the system's compiler when it is first needed.

What was built is kept in the user's cache (~/.cache/bonsai) under a name made of everything that it
depends on: the sources, the compiler, its options and the processor. A home that several kinds of
machines share holds one for each, and a change of the code is built anew.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from bonsai.files.atomic import whole_file
from bonsai.system.caches import cache_folder, processor

OPTIONS = ["-O3", "-march=native", "-fopenmp", "-std=c++17", "-shared", "-fPIC"]
if platform.machine() == "x86_64":
    OPTIONS.append("-mprefer-vector-width=512")


@functools.cache
def build(source: str) -> ctypes.CDLL | None:
    """<source>.cpp of this folder as a library; None where none can be built."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or sys.platform == "win32":
        return None
    folder = cache_folder()
    kept = folder and folder / f"{source}-{fingerprint(compiler, *OPTIONS)}.so"
    if kept and kept.exists() and kept.stat().st_uid == os.getuid():
        with contextlib.suppress(OSError):  # OSError: it is damaged, and made anew below
            return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / f"{source}.so"
        library = compiled(compiler, Path(__file__).with_name(f"{source}.cpp"), made)
        if library and kept:
            with contextlib.suppress(OSError), whole_file(kept) as f:  # a disk may be full
                f.write(made.read_bytes())
    return library


def compiled(compiler: str, source: Path, library: Path) -> ctypes.CDLL | None:
    """Compile and load `source`; None, and a line that says why, where that fails."""
    command = [compiler, *OPTIONS, str(source), "-o", str(library)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as e:
        said = (getattr(e, "stderr", None) or str(e)).strip().splitlines()
        reason = next((line for line in said if "error" in line), said[0] if said else "no reason")
        print(
            f"{source.name} could not be built, torch computes instead: {reason}", file=sys.stderr
        )
        return None


@functools.cache
def fingerprint(compiler: str, *options: str) -> str:
    """A hash of everything that decides what is built."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.[ch]*")):
        digest.update(path.name.encode() + path.read_bytes())
    about = os.stat(os.path.realpath(compiler))
    digest.update(repr((compiler, about.st_size, about.st_mtime_ns, options)).encode())
    digest.update(processor().encode())
    return digest.hexdigest()[:20]


@functools.cache
def functions(source: str, name: str, *arguments) -> dict:
    """The function <name>_<dtype> of a source for each dtype; none where it can't be built.

    arguments: their ctypes.
    """
    library = build(source)
    by_dtype = {}
    for dtype in (torch.float32, torch.bfloat16) if library else ():
        by_dtype[dtype] = library[f"{name}_{str(dtype).removeprefix('torch.')}"]
        by_dtype[dtype].restype, by_dtype[dtype].argtypes = None, arguments
    return by_dtype
