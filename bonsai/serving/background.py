"""A few threads for work that would block the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# Only two: Python runs one thread at a time, so each more makes the event loop wait longer.
THREADS = ThreadPoolExecutor(2, "background")


async def in_background(function: Callable, *args: Any) -> Any:
    """The result of function(*args), computed in one of the threads."""
    return await asyncio.get_running_loop().run_in_executor(THREADS, function, *args)
