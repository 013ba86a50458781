"""What a connection's client is doing, and how long it may go on like that."""

import asyncio
import math
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from dualmap_router.http_server import HttpLimits

PhaseName: TypeAlias = Literal["idle", "head", "body", "closing"]

_LOWEST_RATE_BYTES_S = 16 * 1024
_LINGER_S = 5.0
_LINGER_MOST_S = 30.0


class Phase:
    """One phase at a time, each with a deadline that only what it waits for puts off.

    A body has a lowest rate: what came early is no credit for silence later, or a client could make the router hold a
    large body for as long as its size allows. `closing` ends soon after the client falls silent, and soon in any case.
    """

    __slots__ = ("_latest_s", "_limits", "_loop", "_until_s", "name")

    def __init__(self, limits: "HttpLimits", loop: asyncio.AbstractEventLoop) -> None:
        self._limits = limits
        self._loop = loop
        self.begin("idle")

    def begin(self, name: PhaseName) -> None:
        """Enter a phase, or begin it anew."""
        self.name: PhaseName = name
        now_s = self._loop.time()
        self._until_s = now_s + self._longest_s(name)
        self._latest_s = now_s + _LINGER_MOST_S if name == "closing" else math.inf

    def came(self, num_bytes: int) -> None:
        """So many bytes came of a body, or of what is read on to while closing."""
        most_s = self._loop.time() + self._longest_s(self.name)
        if self.name == "closing":
            self._until_s = min(most_s, self._latest_s)
        else:
            self._until_s = min(self._until_s + num_bytes / _LOWEST_RATE_BYTES_S, most_s)

    def leaves(self, num_bytes: int) -> None:
        """So many bytes have still to be read by the client, which has the time that the lowest rate takes for it."""
        self.put_off(num_bytes / _LOWEST_RATE_BYTES_S)

    def put_off(self, seconds: float) -> None:
        """So long nobody could see what the client did."""
        self._until_s += seconds
        self._latest_s += seconds

    def is_over(self, now_s: float) -> bool:
        """Whether the client took too long."""
        return now_s > self._until_s

    def _longest_s(self, name: PhaseName) -> float:
        limits = self._limits
        if name == "idle":
            return limits.keep_alive_s
        if name == "head":
            return limits.head_s
        return limits.body_s if name == "body" else _LINGER_S
