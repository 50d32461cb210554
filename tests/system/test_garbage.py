"""What is loaded is not looked through for garbage, and Triton finds no leaks."""

import gc
import subprocess
import sys

import pytest
from helpers.programs import ROOT, environment

from bonsai.system.garbage import leave_alone_what_is_loaded, release


@pytest.fixture
def thawed():
    yield
    gc.unfreeze()


@pytest.mark.parametrize("there", [True, False])
def test_what_is_frozen_is_released_for_triton_alone(monkeypatch, thawed, there):
    monkeypatch.setitem(sys.modules, "triton", object())
    if not there:
        monkeypatch.delitem(sys.modules, "triton")
    leave_alone_what_is_loaded()
    assert gc.get_freeze_count() > 1000
    release()
    assert (gc.get_freeze_count() == 0) == there


def run(code: str) -> tuple[str, str]:
    """What a program says: on stdout, and on stderr."""
    options = dict(cwd=ROOT, env=environment(), capture_output=True, text=True)
    done = subprocess.run([sys.executable, "-c", code], check=False, **options)
    return done.stdout, done.stderr


def test_it_is_released_when_the_program_ends():
    """Once, however often something was frozen; the last word of a program is its own."""
    code = (
        "import atexit, gc, sys\n"
        "atexit.register(lambda: print('frozen', gc.get_freeze_count()))\n"  # runs after the others
        "from bonsai.system.garbage import leave_alone_what_is_loaded\n"
        "leave_alone_what_is_loaded(), leave_alone_what_is_loaded()\n"
        "print(gc.get_freeze_count() > 0)\n"
        "sys.modules['triton'] = sys\n"
    )
    assert run(code) == ("True\nfrozen 0\n", "")


def test_tritons_bindings_report_no_leaks():
    """Loaded before a program begins, as here, or by the time that a server freezes what it has."""
    pytest.importorskip("triton", reason="triton is not installed")
    code = (
        "import bonsai.system.startup, torch, triton\n"
        "from bonsai.system.errors import UserError, run\n"
        "def main():\n    raise UserError('x')\n"
        "run(main)\n"
    )
    assert run(code)[1] == "error: x\n"
