"""One client's HTTP/1.1 connection: bytes in, whole requests out; answers in, bytes out.

Theory of operation. httptools (llhttp) parses. A request is handed on when its body is complete; further ones that
the client has sent ahead wait in order, and reading pauses meanwhile. Whatever cannot be a request becomes a
*refusal*: it takes its turn like any other, is answered with an error in OpenAI's shape, and closes the connection
after reading on for a while, since a client that still writes would otherwise see a reset and not the answer.

Nothing here is unbounded: heads and bodies have sizes, times and a lowest rate; the transport tells when its client
reads too slowly (`full`), and who reads nothing for long is cut off. Times are checked by the server's sweep.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Literal, cast

import httptools

from dualmap_router.caller import NOBODY
from dualmap_router.errors import ApiError, ClientGoneError, bad_request, overloaded
from dualmap_router.http_head import body_too_large, check_head, check_length, head_too_large
from dualmap_router.http_message import HttpRequest, HttpResponse

if TYPE_CHECKING:
    from dualmap_router.http_server import HttpServer

_WRITE_HIGH_BYTES = 256 * 1024
_LOWEST_RATE_BYTES_S = 16 * 1024
_MOST_FRAMING = 16
_LINGER_S = 5.0
_LINGER_BYTES = 512 * 1024 * 1024
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpConnection(asyncio.Protocol):
    """The protocol of one accepted connection."""

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._phase: Literal["idle", "head", "body", "closing"] = "idle"
        self._since_s = 0.0
        """When the phase began."""
        # Of the request that is being read
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._head_bytes = 0
        self._num_begun = 0
        self._chunks: list[bytes] = []
        self._body_bytes = 0
        self._wire_bytes = 0
        self._refused: ApiError | None = None
        self._caller = NOBODY
        # Of those that have been read
        self._waiting: deque[HttpRequest] = deque()
        self._current: HttpResponse | None = None
        self._current_bytes = 0
        self._held_bytes = 0
        """Of all bodies on this connection: read in part, waiting, and being answered."""
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
        self._since_s = self._loop.time()
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or was sent away."""
        self._transport = None
        self._phase = "closing"
        self._server.connections.discard(self)
        self._hold(-self._held_bytes)
        self._waiting.clear()
        self._chunks.clear()
        del self._parser  # it and this object refer to each other
        self.resume_writing()
        response = self._current
        if response is not None and response.on_gone is not None:
            response.on_gone()

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._phase == "closing":
            self._linger(len(data))
            return
        unfinished = self._num_begun if self._phase in ("head", "body") else -1
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._refused is None:
                self._ignore_upgrade(data[upgrade.args[0] :])
                return
        except httptools.HttpParserError as exc:
            self._refuse(bad_request(f"the request is not valid HTTP: {exc}"))
        if unfinished == self._num_begun:
            self._count_unseen(len(data))
        if self._refused is not None:
            self._give_up(self._refused)

    def _count_unseen(self, num_bytes: int) -> None:
        """All bytes that came belong to a request that came before: also those that the parser does not tell of."""
        if self._phase == "head":
            # They went into one header, of which it tells when that is complete.
            self._head_bytes += num_bytes
            if self._head_bytes > self._limits.max_header_bytes:
                self._refuse(head_too_large(self._limits))
        elif self._phase == "body":
            # Chunks have sizes and extensions: a byte at a time takes six.
            self._wire_bytes += num_bytes
            if self._wire_bytes > _MOST_FRAMING * self._body_bytes + self._limits.max_header_bytes:
                self._refuse(bad_request("the request is not valid HTTP: its chunks are mostly not body"))

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Parse a request again without its wish to speak something else: with it, llhttp reads no body."""
        headers = "".join(
            f"{name}: {value}\r\n" for name, value in self._headers if name not in ("connection", "upgrade")
        )
        version = self._parser.get_http_version().encode()
        head = b"%b %b HTTP/%b\r\n" % (self._parser.get_method(), self._target, version)
        self._parser = httptools.HttpRequestParser(self)
        self.data_received(head + headers.encode("latin-1") + b"\r\n" + rest)

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

    # The parser

    def on_message_begin(self) -> None:
        """A request begins."""
        self._phase, self._since_s = "head", self._loop.time()
        self._num_begun += 1
        self._target, self._headers, self._head_bytes = b"", [], 0
        self._chunks, self._body_bytes, self._wire_bytes = [], 0, 0

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._target += url
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; after the body, a trailer, which nobody needs."""
        self._head_bytes += len(name) + len(value) + 4
        if self._phase != "head":
            if self._head_bytes > self._limits.max_header_bytes:
                self._refuse(head_too_large(self._limits))
            return
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        """The head is complete: refuse now what is too large, before its body comes."""
        self._phase, self._since_s = "body", self._loop.time()
        if self._refused is not None:
            return
        method, version = self._parser.get_method(), self._parser.get_http_version()
        try:
            expects = check_head(method, version, self._headers, self._head_bytes, self._limits)
            # One that wants an upgrade is parsed again without that, and comes by here once more.
            if not self._parser.should_upgrade():
                self._caller = self._server.enter(method, self._target, self._headers)
            check_length(self._headers, self._limits)
        except ApiError as error:
            self._refuse(error)
            return
        if expects and self._current is None and self._transport is not None:
            self._transport.write(_CONTINUE)

    def on_body(self, chunk: bytes) -> None:
        """A piece of the body."""
        if self._refused is not None:
            return
        self._body_bytes += len(chunk)
        self._hold(len(chunk))
        self._chunks.append(chunk)
        if self._body_bytes > self._limits.max_body_bytes:
            self._refuse(body_too_large(self._limits))
        elif self._server.held_bytes > self._limits.max_held_bytes:
            message = "this router holds as many request bodies as it has room for; try again later"
            self._refuse(overloaded(message))

    def on_message_complete(self) -> None:
        """A request is complete."""
        if self._refused is not None or self._parser.should_upgrade():
            return
        self._phase, self._since_s = "idle", self._loop.time()
        method = self._parser.get_method().decode("latin-1")
        self._put(
            HttpRequest(
                method,
                self._target,
                self._headers,
                b"".join(self._chunks) if len(self._chunks) != 1 else self._chunks[0],
                http10=self._parser.get_http_version() == "1.0",
                keep_alive=self._parser.should_keep_alive(),
                caller=self._caller,
            )
        )
        self._chunks, self._body_bytes = [], 0

    # Requests and answers

    def _refuse(self, error: ApiError) -> None:
        if self._refused is None:
            self._refused = error

    def _give_up(self, error: ApiError) -> None:
        """Read no more requests: the refusal is the last to be answered."""
        self._phase, self._since_s = "closing", self._loop.time()
        self._hold(-self._body_bytes)
        self._chunks, self._body_bytes = [], 0
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
        self._current_bytes = len(request.body)
        if request.refusal is not None:
            response.keep_alive = False
            self._server.refused(request.refusal)
            response.fail(request.refusal)
            return
        self._task = self._loop.create_task(self._server.handle(request, response))

    def answered(self, response: HttpResponse) -> None:
        """An answer has ended: the connection is free for the next."""
        self._current = None
        self._hold(-self._current_bytes)
        if not response.keep_alive:
            self._close_softly()
            return
        self._since_s = self._loop.time()
        if self._waiting:
            # Not at once: a client that sends thousands ahead would make this a deep recursion.
            self._loop.call_soon(self._next_if_free)

    def _next_if_free(self) -> None:
        if self._current is None and self._waiting and self._transport is not None:
            self._next()

    def _read_on(self) -> None:
        if self._transport is not None and not self._transport.is_reading():
            self._transport.resume_reading()

    def _close_softly(self) -> None:
        """Close behind the answer; a client that is still sending gets a moment to see it."""
        if self._transport is None:
            return
        still_sending = self._phase == "closing"
        self._waiting.clear()
        self._phase, self._since_s = "closing", self._loop.time()
        if still_sending and self._transport.can_write_eof():
            self._transport.write_eof()
            self._read_on()
        else:
            self._transport.close()

    def _linger(self, num_bytes: int) -> None:
        """Bytes of a request that was refused."""
        self._linger_bytes += num_bytes
        self._since_s = self._loop.time()
        stranger = self._refused is not None and self._refused.status == 401
        if self._linger_bytes > (self._limits.max_body_bytes if stranger else _LINGER_BYTES):
            self.abort()

    def _hold(self, num_bytes: int) -> None:
        self._held_bytes += num_bytes
        self._server.held_bytes += num_bytes

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
            and self._phase == "idle"
            and self._transport is not None
        ):
            self._transport.close()

    def check(self, now_s: float) -> None:
        """Enforce the times; called about once a second."""
        limits, since_s = self._limits, now_s - self._since_s
        if self._full_since_s is not None and now_s - self._full_since_s > limits.stall_s:
            self.abort()
        elif self._phase == "closing":
            if self._current is None and since_s > _LINGER_S:
                self.abort()
        elif self._current is not None or self._waiting:
            return
        elif self._phase == "idle":
            if since_s > limits.keep_alive_s:
                self.close_if_idle()
        else:
            allowed_s = limits.head_s if self._phase == "head" else limits.body_s
            if since_s > allowed_s + self._body_bytes / _LOWEST_RATE_BYTES_S:
                self._time_out()

    def _time_out(self) -> None:
        self._give_up(ApiError(408, "the request did not come in time", code="request_timeout"))
