"""An attempt: a request goes to one instance once, and what comes back is relayed to its client.

Charges are given back as the prefill ends, and what was predicted is compared with what came.
"""

import logging
import time
from collections.abc import Callable
from functools import partial

from dualmap_router.breakers import Breakers
from dualmap_router.errors import ApiError, ClientGoneError
from dualmap_router.flight import Flight
from dualmap_router.metrics import RouterMetrics
from dualmap_router.placement import Placed, Placement
from dualmap_router.sessions import Sessions
from dualmap_router.submission import make_submit
from dualmap_service.logs import of_request
from dualmap_wire.v1 import worker_pb2 as pb

log = logging.getLogger(__name__)

_BROKE = frozenset((pb.Failed.ENGINE_LOST, pb.Failed.BAD_ANSWER))
"""What an engine did wrong, and not the request or the load."""


class Attempts:
    """Makes the attempts that the pilot decides on."""

    def __init__(
        self,
        placement: Placement,
        sessions: Sessions,
        metrics: RouterMetrics,
        breakers: Breakers,
        keep_trace: Callable[[Flight], None],
    ) -> None:
        """`keep_trace` is told of a flight that went wrong as soon as that is clear: what is said of it then can name
        its trace."""
        self._placement = placement
        self._sessions = sessions
        self._metrics = metrics
        self._breakers = breakers
        self._keep_trace = keep_trace

    async def run(self, flight: Flight, placed: Placed | None, instance: str) -> pb.Moved | pb.Failed | None:
        """Send the request once and relay its answer; returns why it has to go elsewhere, or None."""
        flight.exchange = None
        session = self._sessions.get(instance)
        if session is None:
            return pb.Failed(kind=pb.Failed.ENGINE_LOST, message=f"{instance} has left")
        # It may have gone while the decision was made, when there was no exchange to cancel.
        if flight.gone and not flight.timed_out:
            raise ClientGoneError
        submit = make_submit(flight, placed)
        if flight.trace is not None:
            flight.trace.dispatch(instance, submit)
        exchange = flight.exchange = session.submit(submit)
        sent_s = self._breakers.sent(instance)
        while True:
            event = await exchange.next()
            if flight.timed_out:
                return self._failed(flight, pb.Failed(kind=pb.Failed.TIMEOUT))
            if flight.gone:
                raise ClientGoneError
            if event is None:
                if exchange.overflowed:
                    await self.break_off(flight, "the client reads too slowly")
                    raise ClientGoneError
                continue
            what, value = event
            if what == "data":
                data = exchange.joined(value)
                if flight.splice is not None:
                    data = flight.splice.rewrite(data)
                if data:
                    await flight.sink.data(data)
            elif what == "head":
                self._first_byte(flight, placed, value)
                if value.status < 500:
                    exchange.under_way = partial(self._breakers.answered, instance)
                elif placed is not None and value.status != 501:
                    # What is only passed on may be anything: what an engine cannot do is not what it breaks.
                    self._breakers.failed(instance, sent_s)
                if flight.splice is None:
                    await flight.sink.head(value.status, value.headers, flight)
                    exchange.relay = flight.relay
                elif value.status != 200:
                    exchange.cancel()
                    await self.break_off(
                        flight, "the engine was lost, and no other could continue its answer"
                    )
                    return None
            elif what == "end":
                self._ended(flight, value)
                if flight.sink.status < 500:
                    self._breakers.answered(instance)
                await flight.sink.end()
                return None
            elif what == "prefilled":
                if placed is not None:
                    self._placement.charges.release(placed.charge_id)
            elif what == "moved":
                moved: pb.Moved = value
                return moved
            elif what == "failed":
                if value.kind in _BROKE and not exchange.well_under_way:
                    self._breakers.failed(instance, sent_s)
                return self._failed(flight, value)

    @staticmethod
    def _failed(flight: Flight, failed: pb.Failed) -> pb.Failed:
        """A failure of this attempt. A time-out before the client has seen anything is the answer."""
        if failed.kind == pb.Failed.TIMEOUT and not flight.sink.answered:
            raise ApiError(504, failed.message or "the engine did not answer in time", "timeout", "timeout")
        return failed

    async def break_off(self, flight: Flight, message: str) -> None:
        """End an answer that cannot be completed and that the client has seen some of; ClientGoneError if he left."""
        if flight.gone and not flight.timed_out:
            raise ClientGoneError
        flight.interrupted = True
        self._keep_trace(flight)
        named = of_request(flight.request_id, flight.trace_id, why=message, attempts=flight.attempts)
        log.warning("stream.broken", extra=named)
        await flight.sink.broken(message)

    def _first_byte(self, flight: Flight, placed: Placed | None, head: pb.Head) -> None:
        """The prefill is over: give the charge back, and compare a stream's TTFT with what was expected."""
        if placed is None:
            return
        self._placement.charges.release(placed.charge_id)
        # A whole answer comes after its decode: that is no TTFT. Nor is the first byte of an answer's rest.
        if not flight.streamed or head.status >= 300 or flight.splice is not None:
            return
        ttft_s = flight.ttft_s = time.monotonic() - flight.started_s
        flight.missed_slo = ttft_s > flight.slo_s
        if flight.missed_slo:
            self._keep_trace(flight)
        exemplar = None if flight.trace is None else {"trace_id": flight.trace_id}
        self._metrics.ttft_s.observe(ttft_s, exemplar)
        self._metrics.ttft_error_s.observe(abs(ttft_s - placed.ttft_s))
        (self._metrics.slo_missed if flight.missed_slo else self._metrics.slo_met).inc()
        if flight.trace is not None:
            flight.trace.first_token(ttft_s)

    def _ended(self, flight: Flight, end: pb.End) -> None:
        self._metrics.answer_s.observe(time.monotonic() - flight.started_s)
        placed = flight.placed
        if flight.prompt is None or placed is None or not end.prompt_tokens or flight.splice is not None:
            return
        self._metrics.prompt_tokens.inc(end.prompt_tokens)
        self._metrics.cached(placed.instance, placed.cached_tokens, end.cached_tokens)
        self._placement.count_tokens(flight.prompt, end.prompt_tokens)
