"""What every program imports first, before anything that takes time, such as torch.

Loading the libraries takes seconds. A Ctrl-C in there would end in a traceback of whatever was just
being loaded, so until `bonsai.errors.run` calls `main` a signal ends the program at once, in one
line. And a file that is opened while stdout or stderr is closed would get its number, and what is
printed would land in that file: those that are closed lead to nowhere from here on.
"""

import os
import signal
import sys
import threading

from bonsai.errors import ENDS, end_at_once


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
if not hasattr(sys, "ps1") and threading.current_thread() is threading.main_thread():
    for name in ENDS:  # but in a notebook (%run) the signals are the notebook's
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        # what is ignored stays ignored: nohup, and a shell's background jobs
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end_at_once)
