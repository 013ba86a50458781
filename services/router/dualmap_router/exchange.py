"""An exchange: one attempt at one request on a session, and the events that the worker sends back for it."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from dualmap_wire.v1 import worker_pb2 as pb

if TYPE_CHECKING:
    from dualmap_router.sessions import Session

Arrived: TypeAlias = tuple[str, Any]
"""The name of an event's field, and what is in it: bytes for `data`, else a message of worker.proto."""

WELL_UNDER_WAY = 6
"""Pieces of a stream that make it so: what kills an engine as it starts to generate brings fewer. Where engines restart
one after the other, each may catch the same long answer."""
_LAST = frozenset(("end", "moved", "failed"))


class Exchange:
    """The events of one attempt in order, at most `max_bytes` of them unread."""

    __slots__ = (
        "_bytes", "_events", "_max_bytes", "_session", "_waiter", "ended", "overflowed", "pieces", "relay",
        "stream", "under_way",
    )  # fmt: skip

    def __init__(self, session: "Session", stream: int, max_bytes: float) -> None:
        self._session = session
        self.stream = stream
        self._events: deque[Arrived] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._bytes = 0
        self._max_bytes = max_bytes
        self.ended = False
        self.overflowed = False
        self.pieces = 0
        """How many pieces of the body came."""
        self.under_way: Callable[[], None] | None = None
        """Told when it is well under way."""
        self.relay: Callable[[bytes], bool] | None = None
        """Takes data that nobody needs to look at; false for what it cannot take now."""

    @property
    def well_under_way(self) -> bool:
        """Whether this attempt has served its stream, whatever comes after."""
        return self.pieces >= WELL_UNDER_WAY

    def feed(self, event: pb.Event) -> None:
        """Take an event from the session; `stir` says that there are no more for now."""
        if self.ended:
            return
        data = event.data
        # Most events are data, and asking for the kind costs more than the data.
        if data:
            self.pieces += 1
            if self.pieces == WELL_UNDER_WAY and self.under_way is not None:
                self.under_way()
            self._events.append(("data", data))
            self._bytes += len(data)
            return
        kind = event.WhichOneof("what")
        if kind is None:
            return
        self._events.append((kind, getattr(event, kind)))
        if kind in _LAST:
            self.ended = True
            self._session.forget(self.stream)

    def stir(self) -> None:
        """Something came: pass it on if that is all, else let whoever waits look at it."""
        if not self._events:
            return
        if self.relay is not None and self._events[0][0] == "data":
            data = self.joined(self._pop()[1])
            if not self.relay(data):
                self._events.appendleft(("data", data))
                self._bytes += len(data)
            elif not self._events:
                return
        if self._bytes > self._max_bytes and not self.ended:
            self.overflowed = True
            self.cancel()
            return
        self.wake()

    def wake(self) -> None:
        """Let whoever waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> Arrived | None:
        """The next event; None when the exchange was cancelled or woken with nothing to read."""
        if not self._events:
            if self.ended:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
            if not self._events:
                return None
        return self._pop()

    def more_data(self) -> bytes | None:
        """The bytes of the next event, if it is here and is data."""
        if not self._events or self._events[0][0] != "data":
            return None
        data: bytes = self._pop()[1]
        return data

    def joined(self, data: bytes) -> bytes:
        """This chunk and those right behind it: one write for all that is here."""
        more = self.more_data()
        if more is None:
            return data
        chunks = [data]
        while more is not None:
            chunks.append(more)
            more = self.more_data()
        return b"".join(chunks)

    def _pop(self) -> Arrived:
        event = self._events.popleft()
        if event[0] == "data":
            self._bytes -= len(event[1])
        return event

    def cancel(self) -> None:
        """Nobody waits any more: the worker stops the request wherever it is."""
        if not self.ended:
            self.ended = True
            self._session.cancel(self.stream)
            self.wake()
