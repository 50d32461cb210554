"""The routes of the server, and how an error becomes JSON."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from bonsai import __version__
from bonsai.serving.api.answers import Answer, failed, unless_gone
from bonsai.serving.api.bodies import read_body, takes
from bonsai.serving.api.faults import ApiError, error_body
from bonsai.serving.api.forms import ChatForm, CompletionForm, Writer
from bonsai.serving.api.plans import Limits, Plan, plan_chat, plan_completion
from bonsai.serving.api.schemas import ChatRequest, CompletionRequest, Sampling, StreamOptions
from bonsai.serving.counters import AnswerTimer, Metrics
from bonsai.serving.guard import Guard, GuardLimits, with_request_ids
from bonsai.serving.page.playground import playground_routes
from bonsai.serving.registry import Served
from bonsai.serving.worker import Stopped, Worker

OPENAI = ("/v1/chat/completions", "/v1/completions", "/v1/models")  # the paths of its API

# The page may run only its own files, and no other page may show it in a frame.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass
class Server:
    """The models, limits and settings that the routes use."""

    models: dict[str, Served]
    max_waiting: int = 256  # the most rows in the queue
    limits: Limits = field(default_factory=Limits)
    guard: GuardLimits = field(default_factory=GuardLimits)
    api_key: str = ""
    hosts: tuple[str, ...] = ()  # names of this server that requests may use, besides loopback's
    any_address: bool = False  # whether requests may also use any IP address
    origins: tuple[str, ...] = ()  # other sites whose pages may send requests; "*": all
    run_folders: tuple[Path, ...] = ()  # folders in which the page looks for out*/
    web: Path | None = None  # folder of the page's files
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.worker = Worker([m.engine for m in self.models.values()], self.max_waiting)

    def find(self, name: str | None) -> Served:
        """A model by name (None: the first). The name is a key of a table, never a path."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            message = f"there is no model {name[:100]!a} here, only {known}"
            raise ApiError(404, message, "model", "model_not_found")
        return self.models[name]


def create_app(server: Server) -> ASGIApp:
    """The ASGI app of a server."""

    app = FastAPI(
        title="bonsai",
        version=__version__,
        description="An OpenAI-compatible API for small GPTs.",
        docs_url=None,  # these pages load scripts from other sites
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(playground_routes(server))
    add_openai_routes(app, server)
    add_error_handlers(app)
    app.router.default = static_files(server.web)
    guard = Guard(
        app,
        server.guard,
        server.api_key,
        server.hosts,
        server.any_address,
        open_path(server.web),
        server.metrics.responses,
        server.origins,
    )
    if not server.origins:
        return with_request_ids(guard)
    # Around the guard: browsers first ask without a key, and must be able to read its 401
    cors = CORSMiddleware(
        guard,
        allow_origins=server.origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
    )
    return with_request_ids(cors)


def add_openai_routes(app: FastAPI, server: Server) -> None:
    def described(served: Served) -> dict:
        return {
            "id": served.name,
            "object": "model",
            "created": served.created,
            "owned_by": "bonsai",
            # beyond OpenAI's fields: what the model can do
            "context_length": served.context,
            "vocab_size": served.vocab_size,
            "parameters": served.model.num_params(),
            "chat": served.chat is not None,
        }

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [described(m) for m in server.models.values()]}

    @app.get("/v1/models/{name:path}")  # a name may have slashes: org/model
    async def model(name: str) -> dict:
        return described(server.find(name))

    @app.post("/v1/completions", openapi_extra=takes(CompletionRequest))
    async def completions(request: Request) -> Response:
        body = await read_body(request, CompletionRequest)
        plan = await plan_completion(server.find(body.model), body, server.limits)
        return await respond(server, body, plan, CompletionForm(plan), request)

    @app.post("/v1/chat/completions", openapi_extra=takes(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        body = await read_body(request, ChatRequest)
        plan = await plan_chat(server.find(body.model), body, server.limits)
        return await respond(server, body, plan, ChatForm(plan), request)

    @app.get("/health")
    async def health() -> Response:
        """200 while the engines run, 503 after they have ended."""
        try:
            server.worker.check_alive()
        except Stopped as e:
            return JSONResponse({"status": "stopped", "reason": str(e)}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        tokens = {m.name: server.worker.tokens[m.engine] for m in server.models.values()}
        text = server.metrics.text(server.worker, tokens)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


async def respond(
    server: Server, body: Sampling, plan: Plan, form: CompletionForm, request: Request
) -> Response:
    """Run a plan; returns the answer as one JSON object or as a stream."""
    answer = Answer(server.worker, plan)  # raises ApiError if the queue is full
    server.metrics.prompt_tokens[plan.served.name] += plan.prompt_tokens
    stopwatch = AnswerTimer(server.metrics)
    options = body.stream_options or StreamOptions()
    usage = bool(options.include_usage), bool(options.continuous_usage_stats)
    writer = Writer(answer, form, *usage)
    if body.stream:
        return EventStream(writer.events(stopwatch), answer)
    work = asyncio.ensure_future(writer.whole(stopwatch))
    if not await unless_gone(work, request.receive):
        return Response(status_code=499)  # the client has left, so nobody reads it
    return Response(work.result(), media_type="application/json")


class EventStream(Response):
    """Server-sent events. If the client leaves, the answer's computation ends."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], answer: Answer):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events, self.answer = events, answer

    async def __call__(self, scope, receive, send) -> None:
        async def write() -> None:
            head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(head)
            async for data in self.events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        work = asyncio.ensure_future(write())
        try:
            await unless_gone(work, receive)
        finally:
            self.answer.close()
        if not work.cancelled():
            work.result()  # raises its error


# ---- errors ----


def add_error_handlers(app: FastAPI) -> None:
    def answer(status: int, message: str, param=None, code=None, headers=None) -> Response:
        body = error_body(status, message, param, code)
        return Response(body, status, headers, media_type="application/json")

    @app.exception_handler(ApiError)
    async def api_error(request: Request, e: ApiError) -> Response:
        return answer(e.status, e.message, e.param, e.code, e.headers)

    @app.exception_handler(Stopped)
    async def no_engine(request: Request, e: Stopped) -> Response:
        return await api_error(request, failed(e))

    @app.exception_handler(RequestValidationError)  # for paths and queries; for bodies: bodies.py
    async def invalid(request: Request, e: RequestValidationError) -> Response:
        first = e.errors()[0]
        name = str(first["loc"][-1])[:100]
        return answer(400, f"{name}: {first['msg']}", name)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, e: HTTPException) -> Response:
        message = e.detail
        if e.status_code == 404:
            message = no_such_path(request.url.path)
        elif e.status_code == 405:
            allowed = (e.headers or {}).get("Allow", "another method")
            message = f"this path takes {allowed}, not {request.method}"
        return answer(e.status_code, message, headers=e.headers)

    @app.exception_handler(Exception)
    async def our_fault(request: Request, e: Exception) -> Response:
        return answer(500, "the server failed; see its log")


def no_such_path(path: str) -> str:
    """What to do instead: most often a client's base_url is wrong, or it uses another API.

    >>> no_such_path("/completions")
    "there is no such path; did you mean /v1/completions? A client's base_url ends in /v1"
    """
    for known in OPENAI:
        if path.rstrip("/").endswith(known.removeprefix("/v1")):
            return f"there is no such path; did you mean {known}? A client's base_url ends in /v1"
    paths = f"{', '.join(OPENAI[:-1])} and {OPENAI[-1]}"
    return f"there is no such path: of OpenAI's API {paths} are here; /openapi.json lists the rest"


# ---- the page ----


def static_files(web: Path | None):
    """The app for paths without a route: it serves the page's files, else a JSON 404."""
    files = StaticFiles(directory=web, html=True) if web is not None else None

    async def fallback(scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        if files is None or scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(404)

        async def send_with_headers(message) -> None:
            if message["type"] == "http.response.start":
                extra = [(k.lower().encode(), v.encode()) for k, v in PAGE_HEADERS.items()]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        await files({**scope, "root_path": ""}, receive, send_with_headers)

    return fallback


def open_path(web: Path | None) -> tuple[str, ...]:
    """Paths that need no key: the page itself (it asks for the key) and /health."""
    files = [p for p in web.rglob("*") if p.is_file()] if web is not None else []
    return ("/", "/health", *("/" + p.relative_to(web).as_posix() for p in files))
