"""Kernels in Triton by its interpreter, on a CPU."""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch


def skip_without_interpreter() -> None:
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if release(triton) < (3, 7) and release(np) >= (2, 4):
        pytest.skip("triton 3.6 does not interpret with numpy 2.4")


def release(package: ModuleType) -> tuple[int, ...]:
    """(3, 6) of version 3.6.0."""
    return tuple(map(int, package.__version__.split(".")[:2]))


def interpreted(name: str) -> Iterator[ModuleType]:
    """A module of kernels, for a fixture; skips where there is no triton, or one that compiles."""
    if "triton" in sys.modules and not getattr(interpreted, "ours", False):
        pytest.skip("triton is here to compile, and cannot interpret any more")
    interpreted.ours = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # read where a kernel is declared
        skip_without_interpreter()
        # launches go to the device of a tensor, which is none here
        patch.setattr(torch.cuda, "device_of", lambda x: torch.cuda.device(-1))
        yield importlib.import_module(name)
