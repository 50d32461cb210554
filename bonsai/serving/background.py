"""Work that would hold up the event loop is done in a few threads beside it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# Few: Python runs one thread at a time, and the event loop waits for its turn among them.
THREADS = ThreadPoolExecutor(2, "background")


async def in_background(function: Callable, *args: Any) -> Any:
    """The result of function(*args), computed in a thread."""
    return await asyncio.get_running_loop().run_in_executor(THREADS, function, *args)
