"""What every program imports first, before anything that takes time, such as torch.

Loading the libraries takes seconds. A Ctrl-C in there would end in a traceback of whatever was just
being loaded, so until bonsai/system/errors.py's `run` calls `main` a signal ends the program at
once, in one line. And a file that is opened while stdout or stderr is closed would get its number,
and what is printed would land in that file: those that are closed lead to nowhere from here on.
Until `run`, Python looks for no garbage, which takes a fifth of the time to load torch and finds
next to none; after that, and when the program ends, it does not look through the libraries again.

A Python that is too old, or lacks what requirements.txt lists, is mostly the wrong one: the
environment was not activated. That is one line too, so this file keeps to what Python 3.9 can read.
"""

import gc
import os
import shlex
import signal
import sys
import threading
from pathlib import Path

from bonsai import ROOT

# but in a notebook (%run) the signals are the notebook's
IS_PROGRAM = not hasattr(sys, "ps1") and threading.current_thread() is threading.main_thread()
if IS_PROGRAM and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a word until there is one, below

if IS_PROGRAM:
    gc.disable()

OWN = {"bonsai", "model", "configurator"}  # not to find these would be a mistake of ours


def environment() -> str:
    """How one gets to the Python that `make setup` prepares, or completes it."""
    if not (ROOT / "Makefile").exists():  # no clone, but a package that was installed
        return "install bonsai again, with the packages that it needs"
    venv = ROOT / ".venv"
    if Path(sys.prefix).resolve() == venv.resolve():
        return f"run: pip install -r {shlex.quote(str(ROOT / 'requirements-all.txt'))}"
    if (venv / "bin/activate").exists():
        return f"run: source {shlex.quote(str(venv / 'bin/activate'))}"
    return f"run `make setup` in {ROOT}, then: source .venv/bin/activate"


def explain_failed_import(kind, error, trace) -> None:
    """An excepthook: a package that cannot be found, or for which memory is short, is one line, as
    it is no mistake of ours."""
    if short_of_memory(error):
        line = NO_THREADS if short_of_threads(error) else NO_MEMORY
        os.write(2, f"error: {line}\n".encode())
        return None
    package = (getattr(error, "name", None) or "").split(".")[0]
    if not issubclass(kind, ModuleNotFoundError) or not package or package in OWN:
        return sys.__excepthook__(kind, error, trace)
    print(f"error: {sys.executable} has no {package}; {environment()}", file=sys.stderr)


if sys.version_info < (3, 10):  # noqa: UP036 - what pyproject.toml says holds for pip alone
    version = ".".join(str(number) for number in sys.version_info[:2])
    sys.exit(f"error: Python {version} is too old, 3.10 to 3.13 are right; {environment()}")

from bonsai.system.errors import (  # noqa: E402 - not in what older ones can read
    ENDS,
    NO_MEMORY,
    NO_THREADS,
    end_at_once,
    short_of_memory,
    short_of_threads,
)
from bonsai.system.threads import sleep_on_busy_cpus  # noqa: E402

sys.excepthook = explain_failed_import


def open_closed_streams() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
            os.set_inheritable(number, True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - until the end


open_closed_streams()
if IS_PROGRAM:
    sleep_on_busy_cpus()
    for number in ENDS:  # what is ignored stays ignored: nohup, and a shell's background jobs
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end_at_once)
