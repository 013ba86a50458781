"""A flight: one client request on its way to an answer, and where that answer goes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from dualmap.types import ChoiceRule, Reason
from dualmap_router.continuation import Splice
from dualmap_router.errors import ApiError
from dualmap_router.exchange import Exchange
from dualmap_router.http_message import Pairs
from dualmap_router.placement import Placed
from dualmap_router.prompt import Prompt
from dualmap_router.stream_record import StreamRecord
from dualmap_wire.v1 import worker_pb2 as pb

if TYPE_CHECKING:
    from dualmap_router.trace import RequestTrace


class Sink(Protocol):
    """Where an answer goes."""

    answered: bool
    """The client has seen something: the request may not start again."""
    status: int
    """Of the answer so far."""

    async def head(self, status: int, headers: Sequence[pb.Header], flight: "Flight") -> None:
        """Status and headers."""

    async def data(self, chunk: bytes) -> None:
        """Bytes of the body, in order."""

    async def end(self) -> None:
        """The body is complete."""

    async def broken(self, message: str) -> None:
        """The answer cannot be completed."""


class Flight(msgspec.Struct):
    """What a request needs on its way, and what became of it."""

    request_id: str
    method: str
    path: str
    label: str
    """The path's name in metrics and traces."""
    headers: list[pb.Header]
    body: bytes
    started_s: float
    """`time.monotonic()` when the body was read: uvloop's own clock stands still within a turn."""
    sink: Sink
    model: str | None = None
    """The name that the request gives."""
    prompt: Prompt | None = None
    """None for what needs no prefill: it skips decision and queue."""
    slo_s: float = 0.0
    rule: ChoiceRule = ChoiceRule()
    priority: int = 0
    tenant: str = ""
    """Whose it is; empty where clients do not say who they are."""
    standing: Pairs = ()
    """Headers that tell its tenant how far it is from its limits."""
    prefix_key: str | None = None
    """What the client wants hashed instead of the prompt."""
    hide_usage: bool = False
    streamed: bool = False
    relay: Callable[[bytes], bool] | None = None
    """Sends the client a piece of a stream at once; false where that has to wait. None where there is no such thing."""
    attempts: int = 0
    moves: int = 0
    placed: Placed | None = None
    earlier: tuple[Placed, ...] = ()
    """Where it was placed before it moved or was tried again."""
    reason: Reason | None = None
    ttft_s: float | None = None
    """Of a stream whose first token came."""
    missed_slo: bool = False
    interrupted: bool = False
    """The answer broke off after the client had seen some of it."""
    record: StreamRecord | None = None
    """What the client was sent of a stream that may be continued elsewhere."""
    splice: Splice | None = None
    """Makes what comes now the continuation of what the client has seen."""
    conclusion: bytes | None = None
    """What ends an answer of which only its end is missing, if even that; None for any other."""
    first_body: bytes = b""
    """The client's, where `body` asks for the rest of an answer."""
    trace: "RequestTrace | None" = None
    """Of a request that is sampled, or that turned out to be worth it."""
    exchange: Exchange | None = None
    gone: bool = False
    timed_out: bool = False

    @property
    def trace_id(self) -> str:
        """For logs and exemplars; empty if it is not traced."""
        return "" if self.trace is None else self.trace.trace_id

    def status(self, error: BaseException | None = None) -> int:
        """The HTTP status that the client has seen, or sees with `error`, which nothing went before; 0 for none yet."""
        if isinstance(error, ApiError):
            return error.status
        return self.sink.status if self.sink.answered else 0

    def time_out(self) -> None:
        """The request took longer than this router allows."""
        self.timed_out = True
        self.client_gone()

    def client_gone(self) -> None:
        """The client closed its connection: stop wherever the request is."""
        self.gone = True
        if self.exchange is not None:
            self.exchange.cancel()
