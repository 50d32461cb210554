"""The socket, and uvicorn with limits on what one connection may send and keep in memory.

uvicorn stores heads and trailers of any size, and waits for ever for clients that do not read.
Here a head has a largest size, number of lines and time; trailers are dropped; a body has a largest
time; and a client that does not read its answer is disconnected.
"""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import time
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bonsai.files.access import allow_open_files
from bonsai.serving.api.faults import error_body
from bonsai.serving.guard import new_request_id
from bonsai.serving.worker import Worker
from bonsai.system.errors import UserError, end_if_told, interrupts_of_python, reason
from bonsai.system.garbage import leave_alone_what_is_loaded

HEAD_SECONDS = 20.0  # in which the head of a request must arrive
HEAD_BYTES = 64 * 2**10  # the largest head of a request
HEAD_LINES = 128  # the most headers
BODY_SECONDS = 40.0  # in which the body must arrive; the guard's shorter limit answers with a 408
PIPELINED = 4  # the most requests of a connection that wait for the answer to an earlier one
PIPELINED_BYTES = 64 * 2**10  # the most bytes of these together
# Bytes that are read from a connection before it is another one's turn. asyncio's 256 KiB of short
# requests or long heads take some milliseconds: with a thousand such clients a turn takes seconds.
READ_BYTES = 16 * 2**10
SEND_SECONDS = 60.0  # in which a client must read some of what was sent
# Bytes that the system buffers for a client. It reports free space only after a third of the buffer
# was read: with its default of megabytes a slow client would seem to read nothing for minutes.
SEND_BUFFER = 128 * 2**10
KEEP_ALIVE = 30  # seconds that a connection may be idle between requests
GRACE = 5.0  # seconds that running answers have when the server is stopped
# Only our own errors are logged. A client's errors are in its answers: logged, they would let
# clients fill the log.
LOGGER = logging.getLogger("bonsai.serving")
LOGGER.setLevel(logging.ERROR)
REASONS = {400: b"Bad Request", 503: b"Service Unavailable"}
LINGER = 3.0  # seconds that a server goes on after its engine has died, to tell its clients


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 means any free port. Raises UserError."""
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as e:
        by_host = isinstance(e, socket.gaierror) or e.errno == errno.EADDRNOTAVAIL
        raise UserError(
            f"cannot listen on {host}:{port} ({reason(e)}): choose another "
            f"--{'host' if by_host else 'port'}"
        ) from None


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with limits. An exception in a parser's callback becomes a 400."""

    most = 1024  # connections at once
    head_seconds, body_seconds, send_seconds = HEAD_SECONDS, BODY_SECONDS, SEND_SECONDS

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        transport.max_size = READ_BYTES
        self.logger = LOGGER
        if sock := transport.get_extra_info("socket"):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
                # Without this a second small packet waits some 40 ms until the first one is
                # acknowledged. asyncio sets it only if the listening socket names its protocol
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.in_head = True
        self.head_bytes = self.head_lines = self.waiting_bytes = 0
        self.useless_bytes = 0  # bytes since a head was completed or a body's bytes came
        self.useful = False  # whether the bytes that came last did so
        self.arrival = self.loop.call_later(self.head_seconds, self.give_up)
        self.watch: asyncio.TimerHandle | None = None  # whether the client takes what was sent
        if len(self.connections) > self.most:
            self.refuse(503, "too many connections: try again", b"Retry-After: 2\r\n")

    def connection_lost(self, exc) -> None:
        self.arrival.cancel()
        if self.watch is not None:
            self.watch.cancel()
        super().connection_lost(exc)

    def give_up(self) -> None:
        """End the connection; close() would wait until the client has read all that was sent."""
        self.transport.abort()

    # ---- receiving ----

    def data_received(self, data: bytes) -> None:
        self.useful = False
        super().data_received(data)
        self.useless_bytes = 0 if self.useful else self.useless_bytes + len(data)
        if self.useless_bytes > HEAD_BYTES:  # a head, a trailer, or a chunk's extensions
            self.give_up()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.in_head, self.head_bytes, self.head_lines = True, 0, 0
        if not self.pipeline:
            self.waiting_bytes = 0
        self.arrive_within(self.head_seconds)

    def on_url(self, url: bytes) -> None:
        self.count(len(url), 0)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:  # trailers are dropped: the app's interface has no place for them
            self.count(len(name) + len(value), 1)
            super().on_header(name, value)

    def count(self, size: int, lines: int) -> None:
        self.head_bytes += size
        self.head_lines += lines
        if self.head_bytes > HEAD_BYTES or self.head_lines > HEAD_LINES:
            raise ValueError("the head is too large")

    def on_headers_complete(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.wait(self.head_bytes)
        if len(self.pipeline) >= PIPELINED:
            raise ValueError("too many requests at once")
        self.in_head, self.useful = False, True
        self.arrive_within(self.body_seconds)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.useful = True
        if self.pipeline:
            self.wait(len(body))
        super().on_body(body)

    def wait(self, size: int) -> None:
        """Count the bytes of requests that wait for the answer to an earlier one."""
        self.waiting_bytes += size
        if self.waiting_bytes > PIPELINED_BYTES:
            raise ValueError("too large requests at once")

    def on_message_complete(self) -> None:
        self.arrival.cancel()
        super().on_message_complete()

    def arrive_within(self, seconds: float) -> None:
        self.arrival.cancel()
        self.arrival = self.loop.call_later(seconds, self.give_up)

    # ---- sending ----

    def pause_writing(self) -> None:
        super().pause_writing()
        self.watch_client()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.taken = True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.watch_client()

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            self.refuse(400, msg)
        self.watch_client()

    def refuse(self, status: int, message: str, header: bytes = b"") -> None:
        """Answer with an error without calling the app, and end the connection."""
        body = error_body(status, message)
        self.transport.write(
            b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nx-request-id: %b\r\n%b"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n%b"
            % (status, REASONS[status], new_request_id(), header, len(body), body)
        )
        self.transport.close()

    def watch_client(self) -> None:
        """From now on the client must read something every send_seconds, until it has all."""
        unsent = self.transport.get_write_buffer_size()
        if self.watch is None and unsent:
            self.unsent, self.taken = unsent, False
            self.watch = self.loop.call_later(self.send_seconds, self.look)

    def look(self) -> None:
        self.watch = None
        if self.taken or self.transport.get_write_buffer_size() < self.unsent:
            self.watch_client()
        else:
            self.give_up()


class Process(uvicorn.Server):
    """uvicorn's server. A second signal ends it at once. When it stops, clients whose answers are
    not complete get an error."""

    def __init__(self, config: uvicorn.Config, worker: Worker, grace: float = GRACE):
        super().__init__(config)
        self.worker, self.grace = worker, grace

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self.worker.start()  # not in the app's lifespan: uvicorn would print its errors' tracebacks
        try:
            await super().serve(sockets)
        finally:
            self.worker.stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        end_if_told()  # by a signal that came before uvicorn's handlers were installed
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.should_exit:
            with contextlib.suppress(OSError):  # print is not safe in a signal handler
                os.write(1, b"stopped at once\n")
            os._exit(0 if sig == signal.SIGINT else 128 + sig)
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        died = self.worker.died
        if died is not None and time.monotonic() > died + LINGER:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(self.grace, self.worker.give_up, "the server is stopping")
        loop.call_later(self.grace + 1, self.cut_off)
        await super().shutdown(sockets)
        self.worker.stop()  # already here, because a second Ctrl-C still ends the program at once

    def cut_off(self) -> None:
        for connection in list(self.server_state.connections):
            connection.give_up()


def configured(app, max_connections: int, **limits: float) -> uvicorn.Config:
    """uvicorn's settings. limits: Connection's times, such as send_seconds."""
    return uvicorn.Config(
        app,
        http=type("Limited", (Connection,), {"most": max_connections, **limits}),
        ws="none",
        lifespan="off",
        access_log=False,  # what clients ask for is private
        log_level="warning",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
    )


def serve(app, worker: Worker, sock: socket.socket, max_connections: int) -> None:
    """Run an ASGI app until SIGINT or SIGTERM, or until `worker` has died."""
    allow_open_files(max_connections)
    sys.setswitchinterval(0.001)  # seconds that the event loop waits for each busy thread
    leave_alone_what_is_loaded()
    process = Process(configured(app, max_connections), worker)
    with interrupts_of_python():
        asyncio.run(process.serve(sockets=[sock]))
