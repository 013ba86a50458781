"""One keep-alive HTTP/1.1 connection of the load client: writes ready bytes, reads just enough to know the end."""

import asyncio
import re
from collections.abc import Callable
from typing import cast

_LENGTH = re.compile(rb"content-length: *(\d+)")
_LAST_CHUNK = b"0\r\n\r\n"


class Connection(asyncio.Protocol):
    """Sends one request at a time; calls `done(connection, status)` after its answer, status 0 if it was lost."""

    def __init__(self, done: "Callable[[Connection, int], None]") -> None:
        self._done = done
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._in_body = False
        self._left = 0
        self._tail = b""
        self._status = 0
        self.busy = False
        self.sent_s = 0.0
        self.events = 0
        """Server-sent events read so far."""

    def send(self, request: bytes, now_s: float) -> None:
        """Send a whole request."""
        assert self._transport is not None and not self.busy
        self.busy, self.sent_s = True, now_s
        self._transport.write(request)

    def close(self) -> None:
        """Close the connection, also in the middle of an answer."""
        self.busy = False
        if self._transport is not None:
            self._transport.abort()

    @property
    def usable(self) -> bool:
        """Whether the server has not closed it."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self._end(0)

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = self._head[:end].lower(), self._head[end + 4 :]
            self._head, self._tail, self._in_body = b"", b"", True
            self._status = int(head[9:12])
            length = _LENGTH.search(head)
            self._left = int(length[1]) if length is not None else -1
        if self._left < 0:
            # Chunked: an event ends in two newlines, and framing never puts two together.
            self.events += (self._tail[-1:] + data).count(b"\n\n")
            self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
            if self._tail == _LAST_CHUNK:
                self._end(self._status)
            return
        self._left -= len(data)
        if self._left <= 0:
            self._end(self._status)

    def _end(self, status: int) -> None:
        self.busy = self._in_body = False
        self._done(self, status)
