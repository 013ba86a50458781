"""The HTTP server: listens, hands complete requests to a handler, and bounds what clients can make it hold."""

import asyncio
import email.utils
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

from dualmap_router.caller import Caller
from dualmap_router.errors import ApiError
from dualmap_router.http_connection import HttpConnection
from dualmap_router.http_message import HttpRequest, HttpResponse
from dualmap_router.http_room import BodyRoom

log = logging.getLogger(__name__)

_SWEEP_S = 1.0
_BACKLOG = 1024
_HANDSHAKE_S = 10.0
_SHUTDOWN_S = 5.0
_ASLEEP_S = 2.0
"""A sweep that comes so much too late says that the process slept."""
_FLUSH_S, _FLUSH_POLL_S = 5.0, 0.05
"""What the last answers may take to leave when the server stops."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one client, and all of them together, may ask for."""

    max_body_bytes: int
    max_held_bytes: int
    """Of all request bodies that have come and are not answered yet; one tenant's at most half (`BodyRoom`)."""
    max_header_bytes: int = 64 * 1024
    max_headers: int = 256
    max_connections: int = 16384
    head_s: float = 15.0
    """From a head's first byte to its last."""
    body_s: float = 30.0
    """What a body may take in addition to its time at a low rate."""
    keep_alive_s: float = 75.0
    """How long a connection may say nothing between requests."""
    stall_s: float = 60.0
    """How long a client may read nothing of an answer that waits for it."""


Handler = Callable[[HttpRequest, HttpResponse], Awaitable[None]]
Enter = Callable[[bytes, bytes, list[tuple[str, str]]], Caller]
"""Method, target and headers to who it is; may take headers away, and refuses by ApiError."""


class HttpServer:
    """Listens for clients. The handler answers every request and raises nothing but cancellation."""

    def __init__(
        self, handler: Handler, limits: HttpLimits, refused: Callable[[ApiError], None], enter: Enter
    ) -> None:
        """`refused` is told of requests that were answered without the handler; `enter` says who may ask for what."""
        self._handler = handler
        self.enter = enter
        self.limits = limits
        self.refused = refused
        self.connections: set[HttpConnection] = set()
        self.room = BodyRoom(limits.max_held_bytes)
        self.closing = False
        self.date_header = _date_header()
        self._servers: list[asyncio.Server] = []
        self._sweeper: asyncio.Task[None] | None = None

    async def start(
        self, host: str, port: int, context: ssl.SSLContext | None = None, reuse_port: bool = False
    ) -> int:
        """Listen, also on more ports than one, with TLS if there is a context; returns the port.

        OSError when the address is taken, by others than those with whom `reuse_port` shares it.
        """
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            self._connection,
            host,
            port,
            backlog=_BACKLOG,
            reuse_port=reuse_port or None,
            ssl=context,
            ssl_handshake_timeout=_HANDSHAKE_S if context is not None else None,
            ssl_shutdown_timeout=_SHUTDOWN_S if context is not None else None,
        )
        self._servers.append(server)
        if self._sweeper is None:
            self._sweeper = loop.create_task(self._sweep(), name="http-sweep")
        bound: int = server.sockets[0].getsockname()[1]
        return bound

    def _connection(self) -> asyncio.Protocol:
        if len(self.connections) >= self.limits.max_connections:
            log.warning("http.too_many_connections", extra={"connections": len(self.connections)})
            return _Rejecting()
        return HttpConnection(self)

    async def handle(self, request: HttpRequest, response: HttpResponse) -> None:
        """Run the handler; an answer that it leaves unfinished is cut, never left hanging."""
        try:
            await self._handler(request, response)
        finally:
            response.abort()

    def drain(self) -> None:
        """Answer what is under way and let clients go: no connection is kept for another request."""
        self.closing = True
        for connection in list(self.connections):
            connection.close_if_idle()

    async def stop(self) -> None:
        """Stop listening and hang up."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for server in self._servers:
            server.close()
        await self._flush()
        for connection in list(self.connections):
            connection.abort()
        await asyncio.sleep(0)

    async def _flush(self) -> None:
        """Let answers that have ended leave: their clients may be reading them still."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + _FLUSH_S
        while loop.time() < until_s and any(connection.unsent_bytes for connection in self.connections):  # noqa: ASYNC110 - transports tell no event
            await asyncio.sleep(_FLUSH_POLL_S)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            slept_from_s = loop.time()
            await asyncio.sleep(_SWEEP_S)
            self.date_header = _date_header()
            now_s = loop.time()
            late_s = now_s - slept_from_s - _SWEEP_S
            if late_s > _ASLEEP_S:
                # Timers come before what waits in the sockets: nobody is late by what was not read yet.
                for connection in self.connections:
                    connection.put_off(late_s)
            for connection in list(self.connections):
                connection.check(now_s)


class _Rejecting(asyncio.Protocol):
    """A connection too many: told so, and closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        body = ApiError(
            503, "this router has too many connections", "service_unavailable", "overloaded"
        ).body()
        transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        transport.close()


def _date_header() -> bytes:
    return f"date: {email.utils.formatdate(usegmt=True)}\r\n".encode()
