"""Cuts what a client sends into requests, and refuses what cannot be one.

Theory of operation. httptools (llhttp) parses. A request is put when its body is complete. What cannot be a request
becomes a refusal, after which nothing more is read; so does what is too large, as soon as that shows. A request that
would rather speak another protocol is parsed again without that wish, since llhttp then reads no body.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import httptools

from dualmap_router.caller import NOBODY
from dualmap_router.errors import ApiError, bad_request, overloaded
from dualmap_router.http_head import body_too_large, check_head, check_length, head_too_large, without_upgrade
from dualmap_router.http_message import HttpRequest
from dualmap_router.http_phase import Phase

if TYPE_CHECKING:
    from dualmap_router.http_server import HttpServer

_MOST_FRAMING = 16


class HttpReader:
    """The reading half of a connection; its methods named on_* are httptools'."""

    def __init__(
        self,
        server: "HttpServer",
        phase: Phase,
        put: Callable[[HttpRequest], None],
        invite: Callable[[], None],
    ) -> None:
        """`put` gets every request; `invite` is called when a client waits to be told to send a body."""
        self._server = server
        self._limits = server.limits
        self._phase = phase
        self._put = put
        self._invite = invite
        self._parser = httptools.HttpRequestParser(self)
        self.refused: ApiError | None = None
        """Why no further request can come."""
        self.caller = NOBODY
        """Who sent the last head."""
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._head_bytes = 0
        self._num_begun = 0
        self._chunks: list[bytes] = []
        self._body_bytes = 0
        self._wire_bytes = 0

    def feed(self, data: bytes) -> None:
        """Bytes of the client."""
        pieces: deque[bytes | memoryview] = deque((data,))
        while pieces and self.refused is None:
            piece = pieces.popleft()
            unfinished = self._num_begun if self._phase.name in ("head", "body") else -1
            try:
                self._parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                if self.refused is None:
                    pieces.extendleft((memoryview(piece)[upgrade.args[0] :], self._plain_head()))
                    continue
            except httptools.HttpParserError as exc:
                self.refuse(bad_request(f"the request is not valid HTTP: {exc}"))
            if unfinished == self._num_begun:
                self._count_unseen(len(piece))

    def refuse(self, error: ApiError) -> ApiError:
        """Read no more requests, and let go what was read of one; returns the first reason for that."""
        if self.refused is None:
            self.refused = error
            self._drop()
        return self.refused

    def close(self) -> None:
        """The client is gone."""
        self._drop()
        # They and this object refer to each other.
        del self._parser, self._put, self._invite

    def _drop(self) -> None:
        self._server.room.give_back(self.caller.tenant, self._body_bytes)
        self._chunks, self._body_bytes = [], 0

    def _plain_head(self) -> bytes:
        """The head that was read, without its wish to speak something else, for a parser that begins anew."""
        line = b"%b %b HTTP/%b\r\n" % (
            self._parser.get_method(),
            self._target,
            self._parser.get_http_version().encode(),
        )
        headers = "".join(f"{name}: {value}\r\n" for name, value in without_upgrade(self._headers))
        self._parser = httptools.HttpRequestParser(self)
        return line + headers.encode("latin-1") + b"\r\n"

    def _count_unseen(self, num_bytes: int) -> None:
        """All bytes that came belong to a request that came before: also those that the parser does not tell of."""
        if self._phase.name == "head":
            # They went into one header, of which it tells when that is complete.
            self._head_bytes += num_bytes
            if self._head_bytes > self._limits.max_header_bytes:
                self.refuse(head_too_large(self._limits))
        elif self._phase.name == "body":
            # Chunks have sizes and extensions: a byte at a time takes six.
            self._wire_bytes += num_bytes
            if self._wire_bytes > _MOST_FRAMING * self._body_bytes + self._limits.max_header_bytes:
                self.refuse(bad_request("the request is not valid HTTP: its chunks are mostly not body"))

    def on_message_begin(self) -> None:
        """A request begins."""
        self._phase.begin("head")
        self._num_begun += 1
        self.caller = NOBODY
        self._target, self._headers, self._head_bytes = b"", [], 0
        self._chunks, self._body_bytes, self._wire_bytes = [], 0, 0

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._target += url
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; after the body, a trailer, which nobody needs."""
        self._head_bytes += len(name) + len(value) + 4
        if self._phase.name != "head":
            if self._head_bytes > self._limits.max_header_bytes:
                self.refuse(head_too_large(self._limits))
            return
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        """The head is complete: refuse now what is too large, before its body comes."""
        self._phase.begin("body")
        if self.refused is not None:
            return
        method, version = self._parser.get_method(), self._parser.get_http_version()
        try:
            expects = check_head(method, version, self._headers, self._head_bytes, self._limits)
            if self._parser.should_upgrade():
                return  # it comes by here once more, without that
            self.caller = self._server.enter(method, self._target, self._headers)
            check_length(self._headers, self._most_bytes)
        except ApiError as error:
            self.refuse(error)
            return
        if expects:
            self._invite()

    @property
    def _most_bytes(self) -> int:
        """What a body may have: none that comes of nobody, who asks for what needs none."""
        return self._limits.max_body_bytes if self.caller is not NOBODY else 0

    def on_body(self, chunk: bytes) -> None:
        """A piece of the body."""
        if self.refused is not None:
            return
        self._phase.came(len(chunk))
        self._body_bytes += len(chunk)
        self._chunks.append(chunk)
        has_room = self._server.room.take(self.caller.tenant, len(chunk))
        if self._body_bytes > self._most_bytes:
            self.refuse(body_too_large(self._most_bytes))
        elif not has_room:
            message = "this router holds as many request bodies as it has room for; try again later"
            self.refuse(overloaded(message))

    def on_message_complete(self) -> None:
        """A request is complete."""
        if self.refused is not None or self._parser.should_upgrade():
            return
        self._phase.begin("idle")
        request = HttpRequest(
            self._parser.get_method().decode("latin-1"),
            self._target,
            self._headers,
            b"".join(self._chunks) if len(self._chunks) != 1 else self._chunks[0],
            http10=self._parser.get_http_version() == "1.0",
            keep_alive=self._parser.should_keep_alive(),
            caller=self.caller,
        )
        # Whoever gets the request gives its room back.
        self._chunks, self._body_bytes = [], 0
        self._put(request)
