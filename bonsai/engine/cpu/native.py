"""Builds the C++ of this folder with the system's compiler when it is first needed.

Libraries are kept in the user's cache (~/.cache/bonsai). A library's name has a hash of everything
that it depends on: the sources, the compiler, its options and the processor. So changed code is
built again, and a home that several kinds of machines share holds a library for each of them.
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
from bonsai.system.caches import library_folder, processor, with_temporary
from bonsai.system.errors import runs_no_code

OPTIONS = ["-O3", "-march=native", "-fopenmp", "-std=c++17", "-shared", "-fPIC"]
if platform.machine() == "x86_64":
    OPTIONS.append("-mprefer-vector-width=512")

NO_PLACE = "code may be run from neither ~/.cache nor /tmp (noexec); XDG_CACHE_HOME names another"


@functools.cache
def build(source: str) -> ctypes.CDLL | None:
    """The library of <source>.cpp; None if it cannot be built."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or sys.platform == "win32":
        return None
    folder = library_folder()
    kept = folder and folder / f"{source}-{fingerprint(compiler, *OPTIONS)}.so"
    if kept and kept.exists() and kept.stat().st_uid == os.getuid():
        with contextlib.suppress(OSError):  # a damaged library is built again below
            return ctypes.CDLL(str(kept))
    barred = runs_no_code(tempfile.gettempdir())
    if barred and not folder:
        print(f"{source}.cpp is not built, torch computes instead: {NO_PLACE}", file=sys.stderr)
        return None
    if sys.stderr.isatty():  # some ten seconds, in which one would wonder
        once = ", once for this machine" if kept else ""
        print(f"compiling {source}.cpp{once} ...", file=sys.stderr)
    elsewhere = folder and (barred or not has_room())
    with tempfile.TemporaryDirectory(dir=folder if elsewhere else None) as temporary:
        made = Path(temporary) / f"{source}.so"
        library = compiled(compiler, Path(__file__).with_name(f"{source}.cpp"), made)
        if library and kept:
            with contextlib.suppress(OSError), whole_file(kept) as f:  # the disk may be full
                f.write(made.read_bytes())
    return library


def has_room() -> bool:
    """Whether the compiler's files fit into the system's temporary folder, twice over."""
    return shutil.disk_usage(tempfile.gettempdir()).free > 20e6


def compiled(compiler: str, source: Path, library: Path) -> ctypes.CDLL | None:
    """Compile and load `source`. If that fails: None, and a line on stderr that says why."""
    command = [compiler, *OPTIONS, str(source), "-o", str(library)]
    try:
        env = with_temporary(library.parent)  # for the compiler's own files
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, env=env)
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
    """A hash of everything that the built library depends on."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.[ch]*")):
        digest.update(path.name.encode() + path.read_bytes())
    about = os.stat(os.path.realpath(compiler))
    digest.update(repr((compiler, about.st_size, about.st_mtime_ns, options)).encode())
    digest.update(processor().encode())
    return digest.hexdigest()[:20]


@functools.cache
def functions(source: str, name: str, *arguments) -> dict:
    """The functions <name>_<dtype> of a source, by dtype; empty if it cannot be built.

    arguments: the ctypes of their parameters.
    """
    library = build(source)
    by_dtype = {}
    for dtype in (torch.float32, torch.bfloat16) if library else ():
        by_dtype[dtype] = library[f"{name}_{str(dtype).removeprefix('torch.')}"]
        by_dtype[dtype].restype, by_dtype[dtype].argtypes = None, arguments
    return by_dtype
