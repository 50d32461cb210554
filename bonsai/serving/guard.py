"""ASGI middleware that refuses requests before they reach a route: those with foreign hosts or
origins, with wrong keys, and with bodies that are too large, alone or together, or never arrive.

A page of another site may send requests to a server on this machine. If the site makes its own name
resolve to 127.0.0.1 ("DNS rebinding"), the page could also read the answers. The Host header then
has that name, so it is checked, and so is the Origin.
"""

import hmac
import ipaddress
import re
import uuid
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

import anyio

from bonsai.serving.api.faults import ApiError
from bonsai.system.errors import UserError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class GuardLimits:
    body_bytes: int = 4 * 2**20
    body_seconds: float = 30.0  # in which a body must arrive
    bodies: int = 16  # all bodies in memory together: at most this many times body_bytes

    @property
    def all_bytes(self) -> int:
        return self.bodies * self.body_bytes


SMALL = 64 * 2**10  # a body of so many bytes is taken even if all together are too large


class Guard:
    """Wraps an ASGI app.

    hosts: names of this server that requests may use, besides loopback's. any_address: requests
    may also use any IP address, for servers beyond loopback; without a name there is no rebinding.
    origins: other sites whose pages may send requests; "*": all.
    """

    def __init__(
        self,
        app,
        limits: GuardLimits,
        api_key: str,
        hosts: Iterable[str],
        any_address: bool,
        open_paths: Iterable[str],
        counter: Counter,
        origins: Collection[str] = (),
    ):
        self.app, self.limits, self.api_key = app, limits, api_key.encode()
        self.hosts = {*LOOPBACK, *(host.lower() for host in hosts if host)}
        self.any_address = any_address
        self.open_paths = tuple(open_paths)
        self.origins = frozenset(origins)
        self.counter = counter
        self.held = 0  # bytes of bodies in memory

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":  # a websocket
            return await send({"type": "websocket.close", "code": 1003})
        if scope["method"] == "HEAD":  # uvicorn knows the request's method, and sends no body
            scope = {**scope, "method": "GET"}

        async def counted_send(message) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "other")
                self.counter[path, message["status"]] += 1
            await send(message)

        body = bytearray()
        try:
            try:
                self.check(scope)
                await self.read(body, receive)
            except ApiError as e:
                return await answer(counted_send, e)
            await self.app(scope, replay(body, receive), counted_send)
        finally:
            self.held -= len(body)

    def check(self, scope) -> None:
        """Raises ApiError for a foreign host or origin, and for a wrong key."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1")
        # Browsers always name a host; the health checks of some load balancers do not
        if host and not self.knows(host_name(host)):
            raise ApiError(
                403,
                f"the Host {host[:100]!a} is not this server's: add its name to --hosts",
                code="host_not_allowed",
            )
        origin = headers.get(b"origin")
        if origin is not None and not self.welcomes(origin, host):
            raise ApiError(
                403,
                "requests from pages of other sites are refused, except for sites in --origins",
                code="origin_not_allowed",
            )
        path = scope["path"]
        if self.api_key and path not in self.open_paths:
            given = headers.get(b"authorization", b"")
            scheme, _, key = given.partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self.api_key):
                raise ApiError(
                    401,
                    "wrong or missing API key: send it as Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )

    def welcomes(self, origin: bytes, host: str) -> bool:
        """Whether pages of an origin may send requests: the server's own, and `origins`."""
        named = origin.decode("latin-1") in self.origins or "*" in self.origins
        return named or (host != "" and origin_host(origin) == host.lower())

    def knows(self, name: str) -> bool:
        if name in self.hosts:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.any_address or address.is_loopback

    async def read(self, body: bytearray, receive) -> None:
        """Read a request's body into `body`, and add its bytes to `held`. Raises ApiError if it is
        too large or takes too long. The rest of a large one is read and dropped, because a client
        may read the answer only after it has sent all."""
        limit, size, more = self.limits.body_bytes, 0, True
        try:
            with anyio.fail_after(self.limits.body_seconds):
                while more and size <= 16 * limit:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the body is not complete")
                    data = message.get("body", b"")
                    more = message.get("more_body", False)
                    size += len(data)
                    if size > limit:
                        self.held -= len(body)
                        body.clear()
                        continue
                    body += data
                    self.held += len(data)
                    if size > SMALL and self.held > self.limits.all_bytes:
                        raise ApiError(
                            503,
                            "too many large bodies at once: try again",
                            headers={**CLOSE, "Retry-After": "5"},
                        )
        except TimeoutError:
            raise ApiError(408, "the body took too long to arrive", headers=CLOSE) from None
        if size > limit:
            raise ApiError(
                413,
                f"the body is larger than {limit:,} bytes",
                code="body_too_large",
                headers=CLOSE if more else {},
            )


CLOSE = {"Connection": "close"}


def with_request_ids(app):
    """An ASGI app that adds a request's id to every answer: the client's, if it is a plain name,
    else a new one."""

    async def named(scope, receive, send) -> None:
        given = next((v for k, v in scope.get("headers", ()) if k.lower() == b"x-request-id"), b"")
        name = given if re.fullmatch(rb"[\w.:/+=-]{1,128}", given) else new_request_id()

        async def named_send(message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name)]
            await send(message)

        await app(scope, receive, named_send)

    return named


def new_request_id() -> bytes:
    return uuid.uuid4().hex.encode()


def parse_origins(text: str) -> tuple[str, ...]:
    """A comma-separated list of origins, as browsers write them. Raises UserError.

    >>> parse_origins("https://Example.org, http://localhost:3000/")
    ('https://example.org', 'http://localhost:3000')
    """
    origins = [part.strip().lower().rstrip("/") for part in text.split(",") if part.strip()]
    for origin in origins:
        if origin not in ("*", "null") and not re.fullmatch(
            r"[a-z][a-z0-9+.-]*://[^/\s?#@]+", origin
        ):
            raise UserError(
                f"origins={text}: {origin!r} is not like https://example.org or "
                "http://localhost:3000 (*: pages of all sites)"
            )
    return tuple(origins)


def host_name(host: str) -> str:
    """The name in a Host header.

    >>> host_name("localhost:8000"), host_name("[::1]:8000"), host_name("Example.org")
    ('localhost', '::1', 'example.org')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def origin_host(origin: bytes) -> str:
    """Name and port in an Origin header; '' if it has none, such as the origin of a file."""
    try:
        return urlsplit(origin.decode("latin-1")).netloc.lower()
    except ValueError:
        return ""


def replay(body: bytearray, receive):
    """A `receive` that returns the whole body first; then it passes on the disconnection."""
    given = False

    async def replayed():
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}
        return await receive()

    return replayed


async def answer(send, error: ApiError) -> None:
    body = error.body()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    pairs = [(k.lower().encode(), v.encode()) for k, v in (headers | error.headers).items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
