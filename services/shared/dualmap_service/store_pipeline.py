"""A pipelined connection to Redis, as an asyncio protocol: commands leave in order, replies come back in order.

redis-py makes the connection (TLS, ACL, unix sockets) and this takes its transport over: its own reading and writing
go through streams, which cost a task switch each way. What is sent in one turn of the event loop leaves in one write.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis
from redis.asyncio.connection import Connection

from dualmap_service.errors import StoreError, StoreUnavailableError

_BETWEEN = ("ASK ", "TRYAGAIN ")
"""The pool's slot is on its way to another node, key by key: nobody can answer for all of it (docs/decisions/0019)."""
_AWAY = (*_BETWEEN, "MOVED ", "CLUSTERDOWN ", "READONLY ", "MASTERDOWN ", "NOREPLICAS ", "LOADING ")
"""What a server says that cannot serve the pool now, though another might."""
_LINGER_S = 0.01
"""Posts wait this long for a call to leave with: a write of their own costs a system call and two wake-ups."""


class Pipeline(asyncio.Protocol):
    """Owns the transport of a connection that redis-py has made, until it is lost."""

    def __init__(self, connection: Connection, answered: Callable[[], None]) -> None:
        """`answered` is called for each batch of replies."""
        writer = connection._writer
        assert writer is not None
        self._loop = asyncio.get_running_loop()
        self._transport = cast(asyncio.Transport, writer.transport)
        self._answered = answered
        self._reader = hiredis.Reader()
        self._outgoing: list[bytes] = []
        self._pending: deque[tuple[asyncio.Future[Any] | None, asyncio.TimerHandle | None]] = deque()
        self._flushing = False
        self._linger: asyncio.TimerHandle | None = None
        self.lost: asyncio.Future[None] = self._loop.create_future()
        """Done when the connection is gone."""
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            # Its end was told to redis-py's protocol; nobody will tell this one.
            self.close()

    def send(
        self,
        args: tuple[str | bytes | int | float, ...],
        future: asyncio.Future[Any] | None,
        timer: asyncio.TimerHandle | None = None,
        urgent: bool = True,
    ) -> None:
        """Send a command; its reply resolves `future` and cancels `timer`. What is not urgent may linger."""
        if self.lost.done():
            if timer is not None:
                timer.cancel()
            if future is not None:
                future.set_exception(StoreUnavailableError("the connection to Redis was lost"))
            return
        # The stub describes a tuple of one.
        self._outgoing.append(hiredis.pack_command(args))  # type: ignore[arg-type]
        self._pending.append((future, timer))
        if urgent:
            if not self._flushing:
                self._flushing = True
                self._loop.call_soon(self._flush)
        elif self._linger is None and not self._flushing:
            self._linger = self._loop.call_later(_LINGER_S, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._outgoing and not self._transport.is_closing():
            batch, self._outgoing = self._outgoing, []
            self._transport.write(batch[0] if len(batch) == 1 else b"".join(batch))

    def data_received(self, data: bytes) -> None:
        """Replies."""
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                self._answer(reply)
        except hiredis.ProtocolError:
            self.close()
            return
        self._answered()

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits will get no reply."""
        self.close()

    def close(self) -> None:
        """Hang up; every call under way fails."""
        self._transport.abort()
        if self._linger is not None:
            self._linger.cancel()
        while self._pending:
            future, timer = self._pending.popleft()
            if timer is not None:
                timer.cancel()
            if future is not None and not future.done():
                future.set_exception(StoreUnavailableError("the connection to Redis was lost"))
        if not self.lost.done():
            self.lost.set_result(None)

    def _answer(self, reply: Any) -> None:
        if not self._pending:
            self.close()  # a reply that nobody asked for: nothing that follows can be told apart
            return
        future, timer = self._pending.popleft()
        if timer is not None:
            timer.cancel()
        if isinstance(reply, hiredis.ReplyError):
            says = str(reply)
            away = says.startswith(_AWAY)
            if future is not None and not future.done():
                future.set_exception(StoreUnavailableError(says) if away else StoreError(says))
            if "Function not found" in says or (away and not says.startswith(_BETWEEN)):
                # FUNCTION FLUSH, a replica without the library took over, or another server holds the pool now:
                # connecting again loads it, or finds that server.
                self.close()
        elif future is not None and not future.done():
            future.set_result(reply)
