"""Simulated time: callbacks in order of their time, equal times in the order they were asked for."""

import heapq
import itertools
from collections.abc import Callable
from typing import Any


class Timer:
    """A callback to come; `cancel` keeps it from coming."""

    __slots__ = ("_args", "_callback")

    def __init__(self, callback: Callable[..., None], args: tuple[Any, ...]) -> None:
        self._callback: Callable[..., None] | None = callback
        self._args = args

    def cancel(self) -> None:
        """Forget it."""
        self._callback = None

    def fire(self) -> None:
        """Call back, unless it was cancelled."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(*self._args)


class Loop:
    """The clock of a simulation and what is still to happen; nothing but its callbacks moves the clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._stopped = False

    def at(self, time_s: float, callback: Callable[..., None], *args: Any) -> Timer:
        """Call back at a time; one that has passed means now."""
        timer = Timer(callback, args)
        heapq.heappush(self._heap, (max(time_s, self.now_s), next(self._order), timer))
        return timer

    def after(self, seconds: float, callback: Callable[..., None], *args: Any) -> Timer:
        """Call back in so many seconds."""
        return self.at(self.now_s + seconds, callback, *args)

    def stop(self) -> None:
        """Let `run` end after the callback under way."""
        self._stopped = True

    def run(self) -> None:
        """Run until nothing is left to happen, or `stop` is called."""
        heap = self._heap
        while heap and not self._stopped:
            self.now_s, _, timer = heapq.heappop(heap)
            timer.fire()
