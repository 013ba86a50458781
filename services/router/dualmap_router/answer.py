"""Answers: what a flight sends to its client, whole or as a stream."""

from collections.abc import Callable, Sequence

from dualmap_router.errors import ApiError, ClientGoneError
from dualmap_router.flight import Flight
from dualmap_router.http_message import HttpRequest, HttpResponse, Pairs
from dualmap_router.stream_record import StreamRecord
from dualmap_service.http_headers import OWN_TO_THE_HOP, passed_on
from dualmap_wire.v1 import worker_pb2 as pb

# Ours says who asks.
_OURS = OWN_TO_THE_HOP | {"host", "expect", "accept-encoding", "x-request-id"}


def engine_headers(request: HttpRequest) -> list[pb.Header]:
    """The request headers that an engine may see."""
    return [pb.Header(name=name, value=value) for name, value in passed_on(request.headers, _OURS)]


def decision_headers(flight: Flight, router: str) -> Pairs:
    """What the answer says about the decision."""
    pairs = [("x-request-id", flight.request_id), ("x-dualmap-router", router), *flight.standing]
    placed = flight.placed
    if placed is not None:
        pairs += [
            ("x-dualmap-instance", placed.instance),
            ("x-dualmap-reason", str(flight.reason)),
            ("x-dualmap-candidates", ",".join(placed.candidates)),
            ("x-dualmap-cached-chunks", str(placed.owned_chunks)),
            ("x-dualmap-predicted-ttft-ms", f"{placed.ttft_s * 1e3:.1f}"),
            ("x-dualmap-moves", str(flight.moves)),
            ("x-dualmap-attempts", str(flight.attempts + flight.moves + 1)),
        ]
        if not placed.shared:
            pairs.append(("x-dualmap-degraded", "local"))
    return pairs


class Answer:
    """The sink of one flight: buffers an answer that is not streamed, relays one that is."""

    def __init__(
        self,
        response: HttpResponse,
        stream: bool,
        max_bytes: int,
        own_headers: Callable[[Flight], Pairs],
        answered: Callable[[int], None],
        record: StreamRecord | None = None,
    ) -> None:
        """`record` keeps what the client is sent of a stream."""
        self._response = response
        self._record = record
        self._stream = stream
        self._max_bytes = max_bytes
        self._own_headers = own_headers
        self._on_answered = answered
        self.status = 502
        self._headers: list[tuple[str, str]] = []
        self._chunks: list[bytes] = []
        self._size = 0
        self.answered = False

    async def head(self, status: int, headers: Sequence[pb.Header], flight: Flight) -> None:
        """Status and headers; a stream starts now, anything else when it is complete."""
        self._chunks.clear()
        self._size = 0
        self.status = status
        # The engine echoes the request id as well; ours says the same, and one is enough.
        self._headers = [(h.name, h.value) for h in headers if h.name != "x-request-id"]
        self._headers += self._own_headers(flight)
        if self._stream and status == 200:
            self._response.start(status, self._headers)
            self.answered = True
            self._on_answered(status)

    async def data(self, chunk: bytes) -> None:
        """Relay or keep a piece of the body; waits while the client reads too slowly."""
        self._size += len(chunk)
        if self._size > self._max_bytes:
            await self.broken("the answer is longer than this router relays")
            raise ClientGoneError
        if not self._response.started:
            self._chunks.append(chunk)
            return
        if self._record is not None:
            self._record.add(chunk)
        self._response.write(chunk)
        if self._response.full:
            await self._response.room()

    def relay(self, chunk: bytes) -> bool:
        """Relay a piece of a stream at once; false, and nothing done, where `data` has more to do than that."""
        response, size = self._response, self._size + len(chunk)
        if not response.started or response.full or size > self._max_bytes:
            return False
        try:
            response.write(chunk)
        except ClientGoneError:
            return False
        self._size = size
        if self._record is not None:
            self._record.add(chunk)
        return True

    async def end(self) -> None:
        """The body is complete: send what was kept, or end the stream."""
        if self._response.started:
            self._response.end()
            return
        self.answered = True
        self._on_answered(self.status)
        self._response.send(self.status, self._headers, b"".join(self._chunks))

    async def broken(self, message: str) -> None:
        """Say that the answer is cut: an error event in an event stream, 502 before anything was sent.

        Any other body just ends without its end mark, which clients see as what it is.
        """
        error = ApiError(502, message, "upstream_error", "answer_interrupted")
        if not self._response.started:
            self.answered = True
            self.status = error.status
            self._on_answered(error.status)
            self._response.fail(error)
        elif self._is_event_stream():
            try:
                self._response.write(b"data: " + error.body() + b"\n\n")
                self._response.end()
            except ClientGoneError:
                return
        else:
            self._response.abort()

    def _is_event_stream(self) -> bool:
        return any(
            name == "content-type" and value.startswith("text/event-stream") for name, value in self._headers
        )
