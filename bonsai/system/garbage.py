"""Python's search for garbage, kept from what stays anyway: libraries and models."""

import atexit
import gc
import sys


def leave_alone_what_is_loaded() -> None:
    """Never look through what is there now again; once torch is loaded, that takes 0.2 to 0.5 s."""
    gc.freeze()
    atexit.unregister(release)
    atexit.register(release)


def release() -> None:
    """Let Python take down everything when it ends, if Triton is there: its bindings, from 3.9 on,
    would report what is left of them as leaks, in dozens of lines."""
    if "triton" in sys.modules:
        gc.unfreeze()
