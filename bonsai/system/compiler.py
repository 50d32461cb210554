"""Whether this machine can compile models, how that begins, and an option of all Triton kernels."""

import os
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import torch

# For each launch of our Triton kernels: compile a product and a sum to one instruction. Triton 3.9
# warns of launches that do not say so, because later releases will make two instructions of them
FUSED = {"enable_fp_fusion": True}


def pick_compile(compile: bool | str, device: torch.device) -> tuple[bool, str]:
    """Whether models are compiled and, if that was asked for but is not possible, why. It is not an
    error, as the same work can be done without, only slower."""
    if compile == "auto":
        compile = device.type == "cuda"
    missing = ""
    if compile and device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (7, 0):
            missing = "a GPU before Volta cannot run what it makes"
        elif find_spec("triton") is None:
            missing = "there is no triton"
    if compile and not missing and device.type == "cpu" and not which(CXX):
        missing = f"there is no C++ compiler {CXX}: install one, or name one in CXX"
    elif compile and not missing and not any(map(which, C_COMPILERS)):
        missing = "there is no C compiler: install gcc, or name one in CC"
    elif compile and not missing and not has_python_header():
        missing = "there is no Python.h: install the headers of Python, in Debian python3-dev"
    return bool(compile) and not missing, f" ({missing})" if missing else ""


# compilers: the one that torch.compile runs for a CPU, and those that it and triton look for
CXX = os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))
C_COMPILERS = [*map(os.environ.get, ("CC", "CXX"), ("", "")), "gcc", "g++", "cc", "clang", "cl"]


def has_python_header() -> bool:
    """Whether the C headers of this Python are installed, which compiled extensions include; many
    systems have them in a separate package."""
    if os.name != "posix" or sys.platform == "darwin":  # there they come with Python
        return True
    return Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").exists()


@contextmanager
def loading_compiler(compiles: bool) -> Iterator[None]:
    """A context beside which a thread imports torch.compile's modules, which takes some seconds.
    At its end it waits for the thread. Does nothing if nothing will be compiled."""

    def load() -> None:
        with suppress(ImportError):  # a torch with other modules imports them when it compiles
            import torch._dynamo
            import torch._inductor.compile_fx  # noqa: F401

    thread = threading.Thread(target=load, name="loading the compiler")
    if compiles:
        thread.start()
    try:
        yield
    finally:
        if compiles:
            thread.join()
