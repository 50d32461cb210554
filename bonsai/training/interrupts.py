"""How a run is asked to stop: by a signal, a terminal or a reader that has gone, or torchrun's end.

All are remembered until the step, or the batch of an evaluation, is done, so that the run can save.
A step that takes long is given up: the run that goes on makes it anew, of the same batches.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist

from bonsai.system.errors import BROKEN_PIPE, end_if_told
from bonsai.system.runtime import Runtime, meeting

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
REPEATED = 1.0  # seconds within which the same signal again is not a second request
PATIENCE = 5.0  # seconds that a step may go on; a container is killed ten after it was told to stop


class Interrupts:
    """What has come since `watch`; a second signal of the same kind ends the program at once.

    Several processes agree on the step at which they stop: all must call `status`, and iterate over
    as many batches with `until_stopped`.
    """

    def __init__(self, runtime: Runtime):
        self.received, self.runtime, self.before, self.times = 0, runtime, {}, {}
        self.since = 0.0  # when it came
        # signals reach the processes at different moments: they agree over the CPU
        with meeting():
            self.group = dist.new_group(backend="gloo") if runtime.world_size > 1 else None

    def watch(self) -> None:
        """Take over the signals. In a thread other than the main one Python does not allow that."""
        self.runtime.notices.set()  # that torchrun has ended: from here on `status` does
        if threading.current_thread() is not threading.main_thread():
            return
        for name in SIGNALS:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is None:
                continue
            before = signal.getsignal(number)
            if name == "SIGHUP" and before is signal.SIG_IGN:  # nohup: the run shall go on
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
        # a terminal that is closed sends SIGHUP twice, itself and by its shell; a Ctrl-C under
        # torchrun and a cluster's SIGTERM come to each process, and from torchrun once more
        if name != "SIGHUP" and now - first > REPEATED:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif now == first:
            self._receive(number, name)

    def stdout_closed(self) -> None:
        """Nobody reads what the run prints any more: `| head`, or a terminal that was closed."""
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
        """Whether a step of many micro-batches, which can take minutes, should be given up between
        two of them. One process alone knows that: several would have to agree each time."""
        waited = time.monotonic() - self.since
        return bool(self.received) and self.group is None and waited > PATIENCE

    def until_stopped(self, batches: Iterable) -> Iterator:
        """The batches of an evaluation, up to the moment at which the run is to stop."""
        for batch in batches:
            if self.status():
                return
            yield batch

    def until_noted(self, tokens: Iterable) -> Iterator:
        """What one process does alone, up to the moment at which it was told to stop."""
        for token in tokens:
            if self.received:
                return
            yield token

    def __enter__(self) -> "Interrupts":
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()
