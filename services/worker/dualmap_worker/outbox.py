"""The outbox of one router's session: events gather into frames; a stalled router stops the reading, not the rest."""

import asyncio
from collections.abc import Awaitable, Callable

from dualmap_wire.v1 import worker_pb2 as pb

_MAX_FRAME_EVENTS = 1024


class Outbox:
    """Events on their way to a router. The first byte of an answer leaves at once, later ones share frames."""

    def __init__(self, max_bytes: int, coalesce_s: float) -> None:
        self._max_bytes = max_bytes
        self._coalesce_s = coalesce_s
        self._events: list[pb.Event] = []
        self._bytes = 0
        self._ready = asyncio.Event()
        self._urgent = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.closed = False

    @property
    def buffered_bytes(self) -> int:
        """Bytes of answers that wait here."""
        return self._bytes

    def put(self, event: pb.Event, urgent: bool) -> None:
        """Add an event; nothing happens once the session is closed."""
        if self.closed:
            return
        self._events.append(event)
        self._bytes += len(event.data)
        if self._bytes > self._max_bytes:
            self._room.clear()
        self._ready.set()
        if urgent:
            self._urgent.set()

    async def room(self) -> None:
        """Wait until there is room for more bytes."""
        # All who wait wake at once, and the first of them may fill it again.
        while not self._room.is_set():
            await self._room.wait()

    def close(self) -> None:
        """The session is gone: drop what waits and let writers go on into the void."""
        self.closed = True
        self._events.clear()
        self._bytes = 0
        self._room.set()

    async def drain(self, write: Callable[[pb.WorkerFrame], Awaitable[None]]) -> None:
        """Write frames for ever."""
        while True:
            await self._ready.wait()
            if not self._urgent.is_set() and self._coalesce_s > 0:
                await self._settle()
            self._ready.clear()
            self._urgent.clear()
            events, self._events = self._events, []
            self._bytes = 0
            for first in range(0, len(events), _MAX_FRAME_EVENTS):
                await write(pb.WorkerFrame(events=events[first : first + _MAX_FRAME_EVENTS]))
            if self._bytes <= self._max_bytes:
                self._room.set()

    async def _settle(self) -> None:
        """Give later bytes a moment to join, unless something urgent comes."""
        try:
            async with asyncio.timeout(self._coalesce_s):
                await self._urgent.wait()
        except TimeoutError:
            return
