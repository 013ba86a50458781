"""The HTTP front: Granian's RSGI calls turned into requests, and answers written back. Only this file knows RSGI.

Granian queues what is sent to a client without telling how much waits (docs/decisions/0003), so an answer
is also bounded in total.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias
from urllib.parse import quote

from granian._granian import RSGIProtocolClosed as ProtocolClosed
from granian._granian import RSGIProtocolError as ProtocolError

from dualmap_router.errors import ApiError, ClientGoneError, bad_request
from dualmap_router.flight import Flight
from dualmap_wire.v1 import worker_pb2 as pb

JSON = ("content-type", "application/json")
_DRAIN_BYTES = 512 * 1024 * 1024
_HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "date",
        "server",
        "host",
        "expect",
        "accept-encoding",
    )
)

Pairs: TypeAlias = list[tuple[str, str]]


async def read_body(scope: Any, proto: Any, max_bytes: int) -> bytes:
    """The whole body; ApiError 413 past `max_bytes`, 400 when the client ends it early."""
    try:
        return await _read_body(scope, proto, max_bytes)
    except (ProtocolClosed, ProtocolError) as exc:
        raise bad_request("the request body ended early") from exc


async def _read_body(scope: Any, proto: Any, max_bytes: int) -> bytes:
    declared = scope.headers.get("content-length")
    if declared is not None and declared.isdigit() and int(declared) <= max_bytes:
        body: bytes = await proto()
        return body
    if declared is None and scope.method in ("GET", "HEAD"):
        return b""
    chunks: list[bytes] = []
    size = 0
    async for chunk in proto:
        size += len(chunk)
        if size <= max_bytes:
            chunks.append(chunk)
            continue
        chunks.clear()
        # Read on without keeping it: a client that still writes would never see the answer.
        if size > max_bytes + _DRAIN_BYTES:
            break
    if size > max_bytes:
        raise ApiError(413, f"the request body is larger than {max_bytes} bytes", code="body_too_large")
    return b"".join(chunks)


def engine_path(scope: Any) -> str:
    """Path and query as the client sent them: Granian decodes the path once, the engine does so again."""
    query = f"?{scope.query_string}" if scope.query_string else ""
    return quote(scope.path, safe="/:@!$&'()*+,;=~", errors="surrogatepass") + query


def engine_headers(scope: Any) -> list[pb.Header]:
    """The request headers that an engine may see: no hop-by-hop header, nothing of ours."""
    return [
        pb.Header(name=name, value=value)
        for name, value in scope.headers.items()
        if name not in _HOP_BY_HOP and not name.startswith("x-dualmap-") and name != "x-request-id"
    ]


def send_error(proto: Any, error: ApiError, headers: Pairs) -> None:
    """Answer with an error, if the client is still there."""
    if error.retry_after_s is not None:
        headers = [*headers, ("retry-after", str(max(1, round(error.retry_after_s))))]
    send(proto, error.status, [JSON, *headers], error.body())


def send(proto: Any, status: int, headers: Pairs, body: bytes) -> None:
    """Answer at once, if the client is still there."""
    try:
        proto.response_bytes(status, headers, body)
    except (ProtocolClosed, ProtocolError):
        return


class Answer:
    """The sink of one flight: buffers an answer that is not streamed, relays one that is."""

    def __init__(
        self,
        proto: Any,
        stream: bool,
        max_bytes: int,
        own_headers: Callable[[Flight], Pairs],
        answered: Callable[[int], None],
    ) -> None:
        self._proto = proto
        self._stream = stream
        self._max_bytes = max_bytes
        self._own_headers = own_headers
        self._on_answered = answered
        self._transport: Any = None
        self._status = 502
        self._headers: Pairs = []
        self._chunks: list[bytes] = []
        self._size = 0
        self.answered = False

    async def head(self, status: int, headers: Sequence[pb.Header], flight: Flight) -> None:
        """Status and headers; a stream starts now, anything else when it is complete."""
        self._chunks.clear()
        self._size = 0
        self._status = status
        # The engine echoes the request id as well; ours says the same, and one is enough.
        self._headers = [(h.name, h.value) for h in headers if h.name != "x-request-id"]
        self._headers += self._own_headers(flight)
        if self._stream and status == 200:
            self._transport = self._proto.response_stream(status, self._headers)
            self.answered = True
            self._on_answered(status)

    async def data(self, chunk: bytes) -> None:
        """Relay or keep a piece of the body."""
        self._size += len(chunk)
        if self._size > self._max_bytes:
            await self.broken("the answer is longer than this router relays")
            raise ClientGoneError
        if self._transport is None:
            self._chunks.append(chunk)
            return
        try:
            await self._transport.send_bytes(chunk)
        except (ProtocolClosed, ProtocolError) as exc:
            raise ClientGoneError from exc

    async def end(self) -> None:
        """Send what was kept; a stream ends when its transport is let go."""
        if self._transport is not None:
            self.close()
        else:
            self.answered = True
            self._on_answered(self._status)
            send(self._proto, self._status, self._headers, b"".join(self._chunks))

    async def broken(self, message: str) -> None:
        """Say that the answer is cut: an SSE error event in a stream, 502 elsewhere."""
        error = ApiError(502, message, "upstream_error", "answer_interrupted")
        if self._transport is None:
            if not self.answered:
                self.answered = True
                self._on_answered(error.status)
                send_error(self._proto, error, [])
            return
        try:
            await self._transport.send_bytes(b"data: " + error.body() + b"\n\n")
        except (ProtocolClosed, ProtocolError):
            return
        finally:
            self.close()

    def close(self) -> None:
        """Let the transport go: Granian ends the response when nothing refers to it."""
        self._transport = None


def watch_client(proto: Any, gone: Callable[[], None]) -> "asyncio.Future[None]":
    """Call `gone` when the client closes its connection; cancel the future when the answer is out."""
    future: asyncio.Future[None] = asyncio.ensure_future(proto.client_disconnect())

    # Granian's future is unknown to the garbage collector: a callback that names `future` would keep both, and
    # the whole request behind `gone`, for ever.
    def done(ended: "asyncio.Future[None]") -> None:
        if not ended.cancelled():
            gone()

    future.add_done_callback(done)
    return future
