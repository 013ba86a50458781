"""When what a traced decision did began and ended; a decision that is not traced reads no clock for it."""

import time
from collections.abc import Awaitable
from typing import TypeVar

_T = TypeVar("_T")


class Timing:
    """When a decision that is traced began, and its calls to Redis; nanoseconds since the epoch."""

    def __init__(self) -> None:
        self.start_ns = time.time_ns()
        self.calls: list[tuple[int, int, bool]] = []
        """(start, end, whether it was answered)."""

    async def of(self, call: Awaitable[_T]) -> _T:
        """Make a call, and note how long it takes."""
        start_ns, answered = time.time_ns(), False
        try:
            result = await call
            answered = True
            return result
        finally:
            self.calls.append((start_ns, time.time_ns(), answered))
