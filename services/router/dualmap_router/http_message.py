"""What passes over an HTTP connection: a request that has come in whole, and the answer to it."""

import math
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import unquote

import httptools

from dualmap_router.caller import NOBODY, Caller
from dualmap_router.errors import ApiError, ClientGoneError, bad_request

if TYPE_CHECKING:
    from dualmap_router.http_connection import HttpConnection

Pairs: TypeAlias = Sequence[tuple[str, str]]
JSON = ("content-type", "application/json")

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_BODYLESS = frozenset((204, 304))
_LAST_CHUNK = b"0\r\n\r\n"


class HttpRequest:
    """A request as it came; header names are lower case, text is latin-1 as HTTP has it."""

    __slots__ = (
        "_first", "body", "caller", "headers", "http10", "keep_alive", "method", "path", "refusal", "target",
        "trace_id",
    )  # fmt: skip

    def __init__(
        self,
        method: str = "",
        target: bytes = b"/",
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        http10: bool = False,
        keep_alive: bool = False,
        refusal: ApiError | None = None,
        caller: Caller = NOBODY,
    ) -> None:
        self.caller = caller
        self.trace_id = ""
        """Of a request whose work failed, if it is traced: for the log."""
        self.method = method
        self.headers = headers
        self.body = body
        self.http10 = http10
        self.keep_alive = keep_alive
        self.refusal = refusal
        """Set where the connection has decided already that this is no request."""
        self._first: dict[str, str] | None = None
        try:
            self.target = _origin_form(target)
            path = self.target.partition("?")[0]
            self.path = unquote(path, errors="surrogateescape") if "%" in path else path
            """Decoded, without the query: for finding out what is asked for."""
        except (UnicodeDecodeError, httptools.HttpParserInvalidURLError):
            self.target = self.path = "/"
            self.refusal = refusal or bad_request("the request target is not a URL")

    def get(self, name: str) -> str | None:
        """The first header of that name."""
        if self._first is None:
            self._first = dict(self.headers[::-1])
        return self._first.get(name)


def _origin_form(target: bytes) -> str:
    """Path and query as the client sent them; proxies may send a whole URL."""
    if b"#" in target:
        # Not part of a target; on the way to the engine it would be lost, and another endpoint be left.
        raise httptools.HttpParserInvalidURLError
    if target.startswith(b"/"):
        return target.decode("ascii")
    if b"://" not in target:
        return "/" + target.decode("ascii")
    url = httptools.parse_url(target)
    query = b"?" + url.query if url.query else b""
    return ((url.path or b"/") + query).decode("ascii")


class HttpResponse:
    """The answer to one request: `send` it whole, or `start`, `write` and `end` it.

    Writing raises ClientGoneError once the client has closed its connection.
    """

    __slots__ = (
        "_bodyless",
        "_chunked",
        "_connection",
        "_http10",
        "ended",
        "keep_alive",
        "on_gone",
        "started",
    )

    def __init__(self, connection: "HttpConnection", request: HttpRequest) -> None:
        self._connection = connection
        self._http10 = request.http10
        self._bodyless = request.method == "HEAD"
        self._chunked = False
        self.keep_alive = request.keep_alive
        self.started = False
        self.ended = False
        self.on_gone: Callable[[], None] | None = None
        """Called when the client closes its connection before the answer has ended."""

    def send(self, status: int, headers: Pairs, body: bytes) -> None:
        """Answer at once."""
        length = b"content-length: %d\r\n" % len(body)
        head = self._head(status, headers, b"" if status in _BODYLESS else length)
        self._connection.write(head if self._bodyless or status in _BODYLESS else head + body)
        self._end()

    def fail(self, error: ApiError, headers: Pairs = ()) -> None:
        """Answer with an error in OpenAI's shape, if the client is still there."""
        if error.retry_after_s is not None:
            headers = [*headers, ("retry-after", str(max(1, math.ceil(error.retry_after_s))))]
        try:
            self.send(error.status, [JSON, *error.headers, *headers], error.body())
        except ClientGoneError:
            return

    def start(self, status: int, headers: Pairs) -> None:
        """Begin an answer whose length is not known yet."""
        self._bodyless = self._bodyless or status in _BODYLESS
        if self._http10:
            # Its end is the connection's end.
            self.keep_alive = False
        else:
            self._chunked = not self._bodyless
        self._connection.write(
            self._head(status, headers, b"transfer-encoding: chunked\r\n" if self._chunked else b"")
        )

    def write(self, chunk: bytes) -> None:
        """Send a piece of the body; look at `full` before the next."""
        if self._chunked:
            if chunk:  # an empty chunk would end the body
                self._connection.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        elif not self._bodyless:
            self._connection.write(chunk)

    def end(self) -> None:
        """The body is complete."""
        if self._chunked:
            self._connection.write(_LAST_CHUNK)
        self._end()

    def abort(self) -> None:
        """Cut an answer that cannot be completed: no end mark, so that the client knows."""
        if not self.ended:
            self._connection.abort()

    @property
    def full(self) -> bool:
        """Whether the client reads more slowly than it is written to."""
        return self._connection.full

    async def room(self) -> None:
        """Wait until the client has read on; ClientGoneError when it goes instead."""
        await self._connection.room()

    def _head(self, status: int, headers: Pairs, framing: bytes) -> bytes:
        self.started = True
        lines = [
            f"{name}: {value}\r\n"
            for name, value in headers
            # A line end inside a value would be a header of its own, or a body.
            if "\n" not in value and "\r" not in value
        ]
        status_line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        ending = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        if self.keep_alive and self._http10:
            ending = b"connection: keep-alive\r\n\r\n"
        date = self._connection.date_header
        return b"".join((status_line, "".join(lines).encode("latin-1", "replace"), date, framing, ending))

    def _end(self) -> None:
        self.ended = True
        self.on_gone = None
        self._connection.answered(self)
