"""Freed memory is kept, where malloc is glibc's: counted in page faults."""

import platform
import sys

import pytest
from helpers.programs import ROOT, run_command

CODE = """
import resource, sys
import torch
from bonsai.system.allocator import keep_freed_memory

kept = len(sys.argv) > 1 and keep_freed_memory()

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        tensors = [torch.ones(10 * 2**20) for _ in range(3)]  # 40 MiB each: always given back
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(3)
print(bool(kept), faults(10))
"""
ON_GLIBC = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def counted(*arguments: str, **env: str) -> tuple[str, int]:
    command = [sys.executable, "-c", CODE, *arguments]
    done = run_command(command, ROOT, {"PYTHONPATH": str(ROOT), **env})
    assert done.rc == 0, done
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(not ON_GLIBC, reason="malloc is not glibc's")
def test_freed_memory_is_kept():
    kept, count = counted("keep")
    assert kept == "True" and count < counted()[1] / 4


@pytest.mark.skipif(not ON_GLIBC, reason="malloc is not glibc's")
def test_what_the_environment_sets_stays():
    assert counted("keep", MALLOC_ARENA_MAX="2")[0] == "False"
