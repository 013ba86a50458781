"""Waiting on conditions instead of sleeping."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any


async def eventually(condition: Callable[[], Any], timeout_s: float = 15.0) -> Any:
    """The first true result of a condition, which may be a coroutine function."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if isinstance(result, Awaitable):
            result = await result
        if result:
            return result
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.01)
