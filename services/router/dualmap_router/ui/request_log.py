"""The request log: who is in flight, and the last that ended; names and numbers, never a text or an address.

On the way of a request it costs a dictionary entry at the start and a small object at the end. Nothing here holds a
flight that has ended: it would hold its body.
"""

import time
from collections import deque
from itertools import chain, islice
from typing import Protocol

import msgspec

from dualmap.types import Reason
from dualmap_router.errors import ApiError, ClientGoneError
from dualmap_router.flight import Flight
from dualmap_router.placement import Placed
from dualmap_router.ui.window import Bucket, Window

MAX_ENDED = 500


class FlightWatch(Protocol):
    """Is told of flights."""

    def begin(self, flight: Flight, traceparent: str | None) -> None:
        """A flight begins."""

    def end(self, flight: Flight, error: BaseException | None) -> None:
        """A flight is over, with what it raised."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A request that has ended."""

    request_id: str
    label: str
    model: str | None
    policy: str
    lambda_own: float
    streamed: bool
    started_s: float
    ended_s: float
    prompt_tokens: int
    num_chunks: int
    slo_s: float
    placed: Placed | None
    earlier: tuple[Placed, ...]
    """Its placements before the last."""
    reason: Reason | None
    ttft_s: float | None
    moves: int
    attempts: int
    status: int
    outcome: str
    """`answered`, `failed`, `left` (the client went away) or `cut` (broken off half-way)."""


class RequestLog:
    """Watches flights, after the traces have."""

    def __init__(self, traces: FlightWatch) -> None:
        self._traces = traces
        self._in_flight: dict[int, Flight] = {}
        self._ended: deque[Entry] = deque(maxlen=MAX_ENDED)
        self._window = Window()

    def begin(self, flight: Flight, traceparent: str | None) -> None:
        """A flight begins."""
        self._traces.begin(flight, traceparent)
        if flight.prompt is not None:
            self._in_flight[id(flight)] = flight

    def end(self, flight: Flight, error: BaseException | None) -> None:
        """A flight is over, with what it raised."""
        self._traces.end(flight, error)
        if self._in_flight.pop(id(flight), None) is None:
            return
        entry = entry_of(flight, *_ending(flight, error))
        self._ended.append(entry)
        bucket = self._window.at(entry.ended_s)
        bucket.requests += 1
        bucket.failed += entry.outcome in ("failed", "cut")
        bucket.moves += entry.moves
        bucket.prompt_tokens += entry.prompt_tokens
        if entry.placed is not None:
            bucket.cached_tokens += entry.placed.cached_tokens
            bucket.instances[entry.placed.instance] += 1
            bucket.reasons[entry.reason or ""] += 1
        if entry.ttft_s is not None:
            self._window.at(entry.started_s + entry.ttft_s).first_token(entry.ttft_s, entry.slo_s)

    # For who looks

    @property
    def num_in_flight(self) -> int:
        """How many inference requests have not ended."""
        return len(self._in_flight)

    def in_flight(self, most: int) -> list[Entry]:
        """Those that have waited longest for their first byte, then the others, as they stand."""
        flights = self._in_flight.values()  # the oldest first
        waiting = (flight for flight in flights if not flight.sink.answered)
        answering = (flight for flight in flights if flight.sink.answered)
        return [_in_flight(flight) for flight in islice(chain(waiting, answering), most)]

    def ended(self, most: int) -> list[Entry]:
        """The last that ended, the newest first."""
        return list(islice(reversed(self._ended), most))

    def find(self, request_id: str) -> Entry | None:
        """The newest request of that id."""
        for flight in self._in_flight.values():
            if flight.request_id == request_id:
                return _in_flight(flight)
        return next((entry for entry in reversed(self._ended) if entry.request_id == request_id), None)

    def buckets(self, now_s: float) -> list[Bucket]:
        """The last minutes, the oldest bucket first."""
        begun = (
            (flight.started_s + flight.ttft_s, flight.ttft_s, flight.slo_s)
            for flight in self._in_flight.values()
            if flight.ttft_s is not None
        )
        return self._window.read(now_s, begun)


def entry_of(flight: Flight, status: int, outcome: str) -> Entry:
    """What is kept of a flight."""
    prompt = flight.prompt
    assert prompt is not None
    return Entry(
        flight.request_id,
        flight.label,
        flight.model,
        flight.rule.policy,
        flight.rule.lambda_own,
        flight.streamed,
        flight.started_s,
        time.monotonic(),
        prompt.num_tokens,
        len(prompt.hashes),
        flight.slo_s,
        flight.placed,
        flight.earlier,
        flight.reason,
        flight.ttft_s,
        flight.moves,
        flight.attempts,
        status,
        outcome,
    )


def _in_flight(flight: Flight) -> Entry:
    return entry_of(flight, flight.status(), "answering" if flight.sink.answered else "waiting")


def _ending(flight: Flight, error: BaseException | None) -> tuple[int, str]:
    """(HTTP status, outcome)."""
    status = flight.status(error)
    if isinstance(error, ApiError):
        return status, "failed"
    if isinstance(error, ClientGoneError):
        return status, "left"
    if flight.interrupted:
        return status, "cut"
    return status, "answered" if error is None and status < 400 else "failed"
