"""Waiting on conditions instead of sleeping."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any


class NotYet:
    """A false result of a condition that says what there is instead, for the failure to tell."""

    def __init__(self, instead: object) -> None:
        self._instead = instead

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"not yet: {self._instead!r}"


async def eventually(condition: Callable[[], Any], timeout_s: float = 15.0) -> Any:
    """The first true result of a condition, which may be a coroutine function."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if isinstance(result, Awaitable):
            result = await result
        if result:
            return result
        assert time.monotonic() < deadline, f"did not happen in time ({result!r:.2000})"
        await asyncio.sleep(0.01)
