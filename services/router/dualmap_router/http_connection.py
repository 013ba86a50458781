"""One client's HTTP/1.1 connection: bytes in, whole requests out; answers in, bytes out.

Theory of operation. `HttpReader` cuts what comes into requests. One at a time is handed on; further ones that the
client has sent ahead wait in order, and reading pauses meanwhile. Whatever cannot be a request becomes a *refusal*: it
takes its turn like any other, is answered with an error in OpenAI's shape, and closes the connection after reading on
for a while, since a client that still writes would otherwise see a reset and not the answer.

Nothing here is unbounded: heads and bodies have sizes and times (`Phase`), bodies share a room (`BodyRoom`); the
transport tells when its client reads too slowly (`full`), and who reads nothing for long is cut off. Times are checked
by the server's sweep.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, cast

from dualmap_router.caller import NOBODY
from dualmap_router.errors import ApiError, ClientGoneError
from dualmap_router.http_message import HttpRequest, HttpResponse
from dualmap_router.http_phase import Phase
from dualmap_router.http_reader import HttpReader

if TYPE_CHECKING:
    from dualmap_router.http_server import HttpServer

_WRITE_HIGH_BYTES = 256 * 1024
_LINGER_BYTES = 512 * 1024 * 1024
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpConnection(asyncio.Protocol):
    """The protocol of one accepted connection."""

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._phase = Phase(server.limits, self._loop)
        self._reader = HttpReader(server, self._phase, self._put, self._invite)
        # Of the requests that have been read
        self._waiting: deque[HttpRequest] = deque()
        self._current: HttpResponse | None = None
        self._current_held: tuple[str, int] = ("", 0)
        """Whose body it is, and how large."""
        self._linger_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._full_since_s: float | None = None
        self._room: asyncio.Future[None] | None = None

    # The transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connects."""
        # uvloop's transports have asyncio's methods, not its base class.
        transport = self._transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        self._phase.begin("idle")
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or was sent away."""
        self._transport = None
        self._phase.begin("closing")
        self._server.connections.discard(self)
        self._reader.close()
        self._give_back()
        self._forget_waiting()
        self.resume_writing()
        response = self._current
        if response is not None and response.on_gone is not None:
            response.on_gone()

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._phase.name == "closing":
            self._linger(len(data))
            return
        self._reader.feed(data)
        if self._reader.refused is not None:
            self._give_up(self._reader.refused)

    def eof_received(self) -> None:
        """The client will send nothing more: for a client that waits for an answer that is as good as gone."""

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._full_since_s = self._loop.time()

    def resume_writing(self) -> None:
        """It has read on."""
        self._full_since_s = None
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # Requests and answers

    def _invite(self) -> None:
        """A client waits to be told to send its body."""
        if self._current is None and self._transport is not None:
            self._transport.write(_CONTINUE)

    def _give_up(self, error: ApiError) -> None:
        """Read no more requests: the refusal is the last to be answered."""
        self._phase.begin("closing")
        self._put(HttpRequest(refusal=error))

    def _put(self, request: HttpRequest) -> None:
        self._waiting.append(request)
        if self._current is None:
            self._next()
        elif self._transport is not None:
            self._transport.pause_reading()

    def _next(self) -> None:
        """Hand on the next request."""
        request = self._waiting.popleft()
        if not self._waiting:
            self._read_on()
        if self._server.closing:
            request.keep_alive = False
        response = self._current = HttpResponse(self, request)
        self._current_held = (request.caller.tenant, len(request.body))
        if request.refusal is not None:
            response.keep_alive = False
            self._server.refused(request.refusal)
            response.fail(request.refusal)
            return
        self._task = self._loop.create_task(self._server.handle(request, response))

    def answered(self, response: HttpResponse) -> None:
        """An answer has ended: the connection is free for the next."""
        self._current = None
        self._give_back()
        if not response.keep_alive:
            self._close_softly()
            return
        if self._phase.name == "idle":
            self._phase.begin("idle")
        if self._waiting:
            # Not at once: a client that sends thousands ahead would make this a deep recursion.
            self._loop.call_soon(self._next_if_free)

    def _next_if_free(self) -> None:
        if self._current is None and self._waiting and self._transport is not None:
            self._next()

    def _read_on(self) -> None:
        if self._transport is not None and not self._transport.is_reading():
            # It could not go on with what it had begun.
            self._phase.begin(self._phase.name)
            self._transport.resume_reading()

    def _close_softly(self) -> None:
        """Close behind the answer; a client that is still sending gets a moment to see it."""
        if self._transport is None:
            return
        still_sending = self._phase.name == "closing"
        self._phase.begin("closing")
        self._phase.leaves(self.unsent_bytes)
        self._forget_waiting()
        if still_sending and self._transport.can_write_eof():
            self._transport.write_eof()
            self._read_on()
        else:
            self._transport.close()

    def _linger(self, num_bytes: int) -> None:
        """Bytes of a request that was refused."""
        self._linger_bytes += num_bytes
        self._phase.came(num_bytes)
        stranger = self._reader.caller is NOBODY
        if self._linger_bytes > (self._limits.max_body_bytes if stranger else _LINGER_BYTES):
            self.abort()

    def _give_back(self) -> None:
        """The body of the request that is answered is not held any more."""
        self._server.room.give_back(*self._current_held)
        self._current_held = ("", 0)

    def _forget_waiting(self) -> None:
        for request in self._waiting:
            self._server.room.give_back(request.caller.tenant, len(request.body))
        self._waiting.clear()

    # For responses and the server

    @property
    def date_header(self) -> bytes:
        """The date, as a header line."""
        return self._server.date_header

    @property
    def full(self) -> bool:
        """Whether the client reads more slowly than it is written to."""
        return self._full_since_s is not None

    async def room(self) -> None:
        """Wait until the client has read on."""
        if self._full_since_s is not None:
            self._room = self._loop.create_future()
            await self._room
        if self._transport is None:
            raise ClientGoneError

    def write(self, data: bytes) -> None:
        """Send bytes; ClientGoneError when there is nobody to send to."""
        if self._transport is None or self._transport.is_closing():
            raise ClientGoneError
        self._transport.write(data)

    def abort(self) -> None:
        """Hang up now, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def close_if_idle(self) -> None:
        """Close a connection on which nothing is under way."""
        if (
            self._current is None
            and not self._waiting
            and self._phase.name == "idle"
            and self._transport is not None
        ):
            self._transport.close()

    @property
    def unsent_bytes(self) -> int:
        """What was written and has not left."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def put_off(self, seconds: float) -> None:
        """Give the client so much longer: this process slept, and what it sent may still wait to be read."""
        self._phase.put_off(seconds)
        if self._full_since_s is not None:
            self._full_since_s += seconds

    def check(self, now_s: float) -> None:
        """Enforce the times; called about once a second."""
        if self._full_since_s is not None and now_s - self._full_since_s > self._limits.stall_s:
            self.abort()
            return
        if not self._phase.is_over(now_s):
            return
        if self._phase.name == "closing":
            if self._current is None:
                self.abort()
        elif self._phase.name == "idle":
            self.close_if_idle()
        elif self._transport is not None and self._transport.is_reading():
            # Also behind an answer that is under way: a body that has begun is held.
            late = ApiError(408, "the request did not come in time", code="request_timeout")
            self._give_up(self._reader.refuse(late))
