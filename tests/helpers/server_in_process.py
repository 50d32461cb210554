"""A server in a thread of this process, on a free port."""

import asyncio
import threading
import time
from contextlib import contextmanager

from helpers.made_model import TEXT, knowing

from bonsai.engine import Engine
from bonsai.serving.app import Server
from bonsai.serving.http import Process, configured, listen
from bonsai.serving.registry import Served
from bonsai.serving.worker import Worker
from bonsai.tokenizers import ByteTokenizer


@contextmanager
def running(app, worker: Worker | None = None, **limits: float):
    """An app on a free port, in a thread: its Process; ended in the end."""
    sock = listen("127.0.0.1", 0)
    process = Process(configured(app, 8, **limits), worker or Worker([], 1), grace=0.3)
    process.port = sock.getsockname()[1]
    thread = threading.Thread(target=lambda: asyncio.run(process.serve(sockets=[sock])))
    thread.start()
    try:
        wait(lambda: process.started)
        yield process
    finally:
        process.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def wait(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def answering(handle):
    """An ASGI app: handle(receive, send) answers requests."""

    async def app(scope, receive, send):
        await handle(receive, send)

    return app


def model_server(block_size: int = 160, **options) -> Server:
    """One model that knows a text, named m; after it the same text again."""
    ids = [256, *TEXT.encode()] * 2
    model = knowing([ids], 257, block_size)
    served = Served("m", model, ByteTokenizer(), Engine(model, max_batch=4), 0)
    return Server({"m": served}, **options)
