"""Requests to stop a run: a signal, a closed terminal, a closed stdout, or the end of torchrun.

A request is remembered until the current step, or batch of an evaluation, is done; then the run can
save. A step that takes long is abandoned: the resumed run makes it again from the same batches.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist

from bonsai.system.errors import BROKEN_PIPE, ENDS, end_if_told
from bonsai.system.runtime import Runtime

REPEATED = 1.0  # seconds within which the same signal again does not count as a second request
PATIENCE = 5.0  # seconds that a step may still take; containers are often killed after ten


class Interrupts:
    """The first request since `watch`. A second signal of the same kind ends the program at once.

    Several processes agree on the step at which they stop: all must call `status`, and iterate over
    equally many batches with `until_stopped`.
    """

    def __init__(self, runtime: Runtime):
        self.received, self.runtime, self.before, self.times = 0, runtime, {}, {}
        self.since = 0.0  # when the request came
        # signals reach the processes at different moments: they agree by messages
        self.group = runtime.host_group

    def watch(self) -> None:
        """Take over the signals; outside the main thread, where Python forbids that, do nothing."""
        self.runtime.notices.set()  # from here on `status` looks whether torchrun has ended
        if threading.current_thread() is not threading.main_thread():
            return
        for number in ENDS:
            before = signal.getsignal(number)
            if number.name == "SIGHUP" and before is signal.SIG_IGN:  # under nohup it is to go on
                continue
            self.before[number] = before
            signal.signal(number, self._note)
        end_if_told()

    def restore(self) -> None:
        """Give the signals back to whoever had them before."""
        while self.before:
            number, handler = self.before.popitem()
            # None: one that Python did not install, and cannot install again
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: object) -> None:
        now, name = time.monotonic(), signal.Signals(number).name
        first = self.times.setdefault(number, now)
        # One request may arrive as two signals: a closed terminal and its shell both send SIGHUP;
        # Ctrl-C, or a cluster's SIGTERM, reaches each process and comes once more from torchrun
        if name != "SIGHUP" and now - first > REPEATED:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif now == first:
            self._receive(number, name)

    def stdout_closed(self) -> None:
        """To be called when nobody reads stdout any more: `| head`, or a closed terminal."""
        self._receive(BROKEN_PIPE, "stdout is closed")

    def _receive(self, number: int, what: str) -> None:
        if not self.received:
            self.received, self.since = number, time.monotonic()
        if self.runtime.master:
            text = f"\n{what}: finishing this step, then saving\n"
            with contextlib.suppress(OSError):  # print is not safe in a signal handler
                os.write(2, text.encode())

    def status(self) -> int:
        """0, or the exit status of an interrupted program: 128 + the number of the signal.

        With several processes all must call it; they get the same answer.
        """
        if self.runtime.agent and os.getppid() != self.runtime.agent and not self.received:
            self._receive(signal.SIGTERM, "torchrun has ended")
        received = self.received
        if self.group is not None:
            seen = torch.tensor(received)
            dist.all_reduce(seen, dist.ReduceOp.MAX, self.group)
            received = int(seen)
        return 128 + received if received else 0

    def is_urgent(self) -> bool:
        """Whether a step of many micro-batches, which can take minutes, should be abandoned between
        two of them. With several processes never: they would have to agree after each one."""
        waited = time.monotonic() - self.since
        return bool(self.received) and self.group is None and waited > PATIENCE

    def until_stopped(self, batches: Iterable) -> Iterator:
        """The batches of an evaluation, until a request to stop."""
        for batch in batches:
            if self.status():
                return
            yield batch

    def until_noted(self, tokens: Iterable) -> Iterator:
        """The tokens of a sample, which one process draws alone, until it receives a request."""
        for token in tokens:
            if self.received:
                return
            yield token

    def __enter__(self) -> "Interrupts":
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()
