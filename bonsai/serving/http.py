"""The socket, and uvicorn on it: connections that say nothing, or too much, are closed."""

import asyncio
import contextlib
import socket

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bonsai.errors import UserError
from bonsai.serving.errors import error_body

HEAD_SECONDS = 20.0  # for the head of a request to arrive
HEAD_BYTES = 64 * 2**10  # the largest head of a request
KEEP_ALIVE = 30  # seconds that a connection may be idle between requests
GRACE = 5  # seconds for running answers when the server is stopped


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises UserError."""
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as e:
        why = e.strerror or e
        raise UserError(f"cannot listen on {host}:{port} ({why}): choose another --port") from None


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, with limits on the head of a request and on the number of connections."""

    most = 1024  # connections

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self.head_bytes = 0
        self.head_timer = self.loop.call_later(HEAD_SECONDS, self.give_up)
        if len(self.connections) > self.most:
            body = error_body(503, "too many connections: try again")
            transport.write(
                b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
                b"Retry-After: 2\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            transport.close()

    def connection_lost(self, exc) -> None:
        self.head_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.head_timer is not None and not self.head_timer.cancelled():
            self.head_bytes += len(data)
            if self.head_bytes > HEAD_BYTES + 2**18:  # a body may come with the head
                return self.give_up()
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.head_bytes = 0
        self.head_timer.cancel()
        self.head_timer = self.loop.call_later(HEAD_SECONDS, self.give_up)

    def on_headers_complete(self) -> None:
        self.head_timer.cancel()
        super().on_headers_complete()

    def give_up(self) -> None:
        """Close a connection that has not sent a whole request."""
        if not self.transport.is_closing():
            self.transport.abort()


def serve(app, sock: socket.socket, max_connections: int) -> None:
    """Run an ASGI app until SIGINT or SIGTERM."""
    raise_file_limit(max_connections + 128)
    protocol = type("Limited", (Connection,), {"most": max_connections})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        access_log=False,  # prompts and paths are nobody's business
        log_level="warning",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
    )
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after stopping
        asyncio.run(uvicorn.Server(config).serve(sockets=[sock]))


def raise_file_limit(files: int) -> None:
    """Allow this process as many open files as connections may need, where the system does."""
    try:
        import resource  # not on Windows
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < files:
        wanted = files if hard == resource.RLIM_INFINITY else min(files, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
