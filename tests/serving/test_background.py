"""bonsai/serving/background.py: the event loop goes on while a thread works."""

import asyncio
import threading

import pytest

from bonsai.serving.background import in_background


def test_work_is_done_beside_the_loop():
    begun, go_on = threading.Event(), threading.Event()

    def work(a: int, b: int) -> tuple[int, str]:
        begun.set()
        assert go_on.wait(20)
        return a + b, threading.current_thread().name

    async def both() -> tuple[int, str]:
        task = asyncio.ensure_future(in_background(work, 1, 2))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        go_on.set()  # only a loop that goes on gets here
        return await task

    total, name = asyncio.run(both())
    assert total == 3 and name.startswith("background") and name != threading.main_thread().name


def test_what_it_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        asyncio.run(in_background(lambda: 1 / 0))
