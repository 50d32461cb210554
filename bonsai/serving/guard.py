"""What is refused before a route sees it, as ASGI middleware: foreign hosts and origins, wrong
keys, bodies that are too large, alone or together, or never come.

A page of another site may send requests to a server on this machine. With a name that it lets
resolve to 127.0.0.1 ("DNS rebinding") it could also read the answers: hence the check of the Host
header, which such a name gives away, and of the Origin.
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
    body_seconds: float = 30.0  # for a body to arrive
    bodies: int = 16  # times body_bytes: of all that come or are being answered

    @property
    def all_bytes(self) -> int:
        return self.bodies * self.body_bytes


SMALL = 64 * 2**10  # bytes of a body that are always taken


class Guard:
    """Wraps an ASGI app. hosts: names under which this server may be called, beyond loopback's.

    any_address: also by any IP address (no name, no rebinding); for servers beyond loopback.
    origins: sites whose pages may ask too; "*": all.
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
        if scope["method"] == "HEAD":  # uvicorn, which knows what was asked, leaves the body out
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
                await self.read(body, scope, receive)
            except ApiError as e:
                return await answer(counted_send, e)
            await self.app(scope, replay(body, receive), counted_send)
        finally:
            self.held -= len(body)

    def check(self, scope) -> None:
        """Raises ApiError for a request that is not meant for this server."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1")
        if not self.knows(host_name(host)):
            raise ApiError(
                403,
                f"the Host {host[:100]!a} is not this server's: add its name to --hosts",
                code="host_not_allowed",
            )
        origin = headers.get(b"origin")
        if origin is not None and not self.welcomes(origin, host):
            raise ApiError(
                403,
                "requests from pages of other sites are refused, but for those in --origins",
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
        """Whether pages of an origin may ask: this server's own, and those of its list."""
        named = origin.decode("latin-1") in self.origins or "*" in self.origins
        return named or origin_host(origin) == host.lower()

    def knows(self, name: str) -> bool:
        if name in self.hosts:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.any_address or address.is_loopback

    async def read(self, body: bytearray, scope, receive) -> None:
        """Read all into `body`, and count it as held. Raises ApiError when it is too large or takes
        too long; of one that is too large the rest is read and dropped, so that the client sees the
        answer."""
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
    """An ASGI app whose answers, whoever gives them, name their request: as the client did, if that
    is a plain name, or anew."""

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
    """Origins as browsers write them, from a list with commas. Raises UserError.

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
    """Name and port of an Origin header; '' for one without, such as that of a file."""
    try:
        return urlsplit(origin.decode("latin-1")).netloc.lower()
    except ValueError:
        return ""


def replay(body: bytearray, receive):
    """A receive that gives the body at once, then what really comes: the disconnection."""
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
