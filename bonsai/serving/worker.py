"""The thread that steps the engines, and its bridge to the event loop of the HTTP handlers.

Handlers run in one event loop and never touch an engine; the engines run in one thread and never
wait for a client. Commands go to the thread through a queue. After each step its events go back to
the loop in one call.
"""

import asyncio
import contextlib
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bonsai.engine import Engine, Event, Request, SamplingParams
from bonsai.engine.sampling import RowNumbers
from bonsai.planning.memory import out_of_memory
from bonsai.system.errors import UserError


class Busy(Exception):
    """The queue is full; `seconds` says when to try again."""

    def __init__(self, seconds: int):
        super().__init__(f"the server is busy: try again in {seconds} s")
        self.seconds = seconds


class Failed(Exception):
    """The engine failed; the message is for the client."""

    status = 500


class Stopped(Failed):
    """Not the request's fault: the server is stopping, its engine's thread has ended, or there is
    not enough memory."""

    status = 503


MOST_UNSENT = 512  # the most events of a stream that wait for the client; then the engine pauses it


class Stream:
    """The events of one HTTP request, for its rows 0 ... rows - 1, in order of arrival."""

    def __init__(self, worker: "Worker", engine: Engine, rows: int):
        self.worker, self.engine = worker, engine
        self.rows = rows
        self.waiting = set(range(rows))  # rows that have not had an event
        self.open = set(range(rows))  # rows that have not finished
        self.held = False  # whether the engine has paused it, because its client is slow
        self._events: list[tuple[int, Event]] = []
        self._error: Exception | None = None
        self._ready = asyncio.Event()
        self._requests: list[Request] = []  # used by the engine's thread only

    async def take(self) -> list[tuple[int, Event]]:
        """All (row, event) since the last call; waits until there is at least one. Raises Failed or
        UserError if the engine did."""
        while not self._events:
            if self._error is not None:
                raise self._error
            self._ready.clear()
            await self._ready.wait()
        events, self._events = self._events, []
        if self.held:
            self.held = False
            self.worker._commands.put(lambda: self.worker._resume(self))
        return events

    def cancel(self, row: int | None = None) -> None:
        """End one row, or all: they get no more events. Does nothing for rows that have ended."""
        rows = [row] if row is not None else sorted(self.open)
        rows = [row for row in rows if row in self.open]
        for row in rows:
            self.worker._close(self, row, cancelled=True)
        if rows:
            self.worker._commands.put(lambda: self.worker._cancel(self, rows))


class Worker:
    """Steps the engines in a thread of its own.

    max_waiting: how many rows may wait for their turn, in all engines together.
    """

    def __init__(self, engines: Sequence[Engine], max_waiting: int):
        self.engines = list(engines)
        self.max_waiting = max_waiting
        self.waiting = 0  # submitted rows without an event so far
        self.running = 0  # rows between their first event and their last
        self.tokens = {engine: 0 for engine in self.engines}  # drawn so far
        self.finished = 0  # rows
        self.cancelled = 0  # rows
        self.seconds_per_row = 0.1  # running mean of the time between two ends, for Retry-After
        self._last_end = 0.0  # when a row ended last, or when the first one was submitted
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._owner: dict[Request, tuple[Stream, int]] = {}  # used by the engine's thread only
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine")
        self._stopping = False
        self._streams: set[Stream] = set()  # those with open rows
        self._calls: set[asyncio.Future] = set()
        self.died: float | None = None  # when the thread ended with an error

    # ---- in the event loop ----

    def start(self) -> None:
        """To be called in the handlers' event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step."""
        self._stopping = True
        self._commands.put(lambda: None)
        self._thread.join()

    def check_alive(self) -> None:
        """Raises Stopped if the thread has ended or is about to."""
        if self.died is not None:
            raise Stopped("the engine has died; see the server's log")
        if self._stopping:
            raise Stopped("the server is stopping")

    def give_up(self, why: str) -> None:
        """End all that is running: its handlers get Stopped."""
        self._stopping = True
        self._commands.put(lambda: None)
        for stream in list(self._streams):
            self._fail(stream, Stopped(why))
        for future in list(self._calls):
            if not future.done():
                future.set_exception(Stopped(why))

    def _die(self) -> None:
        """To be called when the thread has ended with an error."""
        self.died = time.monotonic()
        self.give_up("the engine has died; see the server's log")

    def submit(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        n: int,
        seeded: bool = True,
    ) -> Stream:
        """Queue n rows for each prompt: row i * n + j is sample j of prompt i. Raises Busy or
        Stopped.

        seeded: a prompt gets the same noise beside others as alone, and one that stands there again
        gets further samples. Otherwise no two rows have the same noise."""
        self.check_alive()
        rows = len(prompts) * n
        if self.waiting + rows > self.max_waiting:
            raise Busy(min(30, max(1, round(self.waiting * self.seconds_per_row))))
        stream = Stream(self, engine, rows)
        if not self.waiting and not self.running:
            self._last_end = time.monotonic()
        self.waiting += rows
        self._streams.add(stream)
        self._commands.put(lambda: self._submit(stream, prompts, params, n, seeded))
        return stream

    async def call(self, function: Callable[[], Any]) -> Any:
        """The result of `function`, which the thread runs between two steps. Raises Stopped."""
        self.check_alive()
        future = self._loop.create_future()
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)

        def settle(result: Any, error: Exception | None) -> None:
            if future.done():  # the client has left
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        def command() -> None:
            result, error = None, None
            try:
                result = function()
            except Exception as e:
                error = e
            self._post(settle, result, error)

        self._commands.put(command)
        return await future

    def _deliver(self, events: list[tuple[Stream, int, Event]]) -> None:
        for stream, row, event in events:
            if row not in stream.open:  # it was cancelled meanwhile
                continue
            if row in stream.waiting:
                stream.waiting.discard(row)
                self.waiting -= 1
                self.running += 1
            if event.token is not None:
                self.tokens[stream.engine] += 1
            stream._events.append((row, event))
            stream._ready.set()
            if event.finish is not None:
                self._close(stream, row)
            if len(stream._events) > MOST_UNSENT and not stream.held:
                stream.held = True
                self._commands.put(lambda stream=stream: self._hold(stream))

    def _close(self, stream: Stream, row: int, cancelled: bool = False) -> None:
        stream.open.discard(row)
        if not stream.open:
            self._streams.discard(stream)
        if row in stream.waiting:
            stream.waiting.discard(row)
            self.waiting -= 1
        else:
            self.running -= 1
        if cancelled:
            self.cancelled += 1
        else:
            self.finished += 1
            now = time.monotonic()
            self.seconds_per_row += 0.1 * (now - self._last_end - self.seconds_per_row)
            self._last_end = now

    def _fail(self, stream: Stream, error: Exception) -> None:
        for row in sorted(stream.open):
            self._close(stream, row, cancelled=True)
        stream._error = error
        stream._ready.set()

    # ---- in the engine's thread ----

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:  # errors of a step are caught in _work: this is a bug of ours
            with contextlib.suppress(Exception):
                traceback.print_exc(file=sys.stderr)
            self._post(self._die)

    def _work(self) -> None:
        while not self._stopping:
            busy = [engine for engine in self.engines if engine.busy]
            while not self._commands.empty() or not busy:
                try:
                    self._commands.get(timeout=1)()  # waits only if no engine is busy
                except queue.Empty:
                    if not threading.main_thread().is_alive():  # ended without calling `stop`
                        return
                busy = [engine for engine in self.engines if engine.busy]
                if self._stopping:
                    return
            for engine in busy:
                try:
                    events = engine.step()
                except Exception as e:
                    self._broken(engine, e)
                    continue
                self._hand_over(events)

    def _hand_over(self, events: list[Event]) -> None:
        owned = []
        for event in events:
            owner = self._owner.get(event.request)
            if owner is not None:
                owned.append((*owner, event))
                if event.finish is not None:
                    del self._owner[event.request]
        if owned:
            self._post(self._deliver, owned)

    def _post(self, function: Callable, *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed
            self._stopping = True

    def _submit(self, stream: Stream, prompts, params: SamplingParams, n: int, seeded) -> None:
        numbers = RowNumbers()
        try:
            for prompt in prompts:
                first = numbers.take(tuple(prompt) if seeded else None, n)
                stream._requests += stream.engine.submit(prompt, params, n, first)
        except UserError as e:
            self._drop(stream)
            self._post(self._fail, stream, e)
            return
        except Exception as e:
            self._post(self._fail, stream, self._broken(stream.engine, e))
            return
        for row, request in enumerate(stream._requests):
            self._owner[request] = stream, row

    def _cancel(self, stream: Stream, rows: Sequence[int]) -> None:
        for row in rows:
            if row < len(stream._requests):
                request = stream._requests[row]
                if self._owner.pop(request, None) is not None:
                    stream.engine.cancel(request)

    def _hold(self, stream: Stream) -> None:
        for request in stream._requests:
            if request in self._owner:
                stream.engine.hold(request)

    def _resume(self, stream: Stream) -> None:
        for request in reversed(stream._requests):
            if request in self._owner:
                stream.engine.resume(request)

    def _drop(self, stream: Stream) -> None:
        for request in stream._requests:
            self._owner.pop(request, None)
            stream.engine.cancel(request)

    def _broken(self, engine: Engine, e: Exception) -> Failed:
        """A step failed, for lack of memory or by a bug of ours: end all requests of this engine,
        and go on. Raises `e` if the GPU has failed: then this process cannot use it any more."""
        failed = Failed("the model failed; see the server's log")
        short = out_of_memory(e)
        if isinstance(e, torch.AcceleratorError) and not short:
            raise e
        if short:
            failed = Stopped("out of memory: ask for fewer or shorter texts at once")
        with contextlib.suppress(OSError, ValueError):  # stderr may be closed
            if short:
                print("error: out of memory: choose a smaller --max_batch", file=sys.stderr)
            else:
                traceback.print_exception(e, file=sys.stderr)
        engine.clear()
        for stream in {stream for stream, _ in self._owner.values() if stream.engine is engine}:
            self._drop(stream)
            self._post(self._fail, stream, failed)
        return failed
