"""The pilot: flies requests, over as many attempts as it takes.

A request is started at most once at a time and answered exactly once. It goes elsewhere when the
rebalancer moved it off a queue, or when its worker was lost and the client has seen nothing yet. The charge
is given back when the prefill is over, and in any case when the flight ends.
"""

import asyncio
import logging
import time

from dualmap.types import Reason
from dualmap_router.errors import ApiError, ClientGoneError, overloaded, unavailable
from dualmap_router.flight import Flight
from dualmap_router.metrics import RouterMetrics
from dualmap_router.placement import Placed, Placement
from dualmap_router.resumer import HelpersLostError, Resumer
from dualmap_router.sessions import Sessions
from dualmap_wire.v1 import worker_pb2 as pb

log = logging.getLogger(__name__)

_BLINK_S = 5.0
"""How long a request that was let in waits for an instance where none is reached: its client can ask another router."""
_STREAM_BLINK_S = 15.0
"""The same of a stream that has begun, for which nobody else can do anything."""
_LOOK_S = 0.05
_WELL_UNDER_WAY = 6
"""An attempt that brought so many pieces of a stream was no failure of this request: what kills an engine as it starts
to generate brings fewer. Where engines restart one after the other, each may catch the same long answer."""
_MOST_HELPERS = 3
"""How many instances are asked what a text's tokens are: more than one may just have died."""


class Pilot:
    """Flies requests: the shell around placement and sessions."""

    def __init__(
        self,
        placement: Placement,
        sessions: Sessions,
        metrics: RouterMetrics,
        resumer: Resumer,
        max_attempts: int,
        timeout_s: float,
    ) -> None:
        self._placement = placement
        self._sessions = sessions
        self._metrics = metrics
        self._resumer = resumer
        self._max_attempts = max_attempts
        self._timeout_s = timeout_s

    async def fly(self, flight: Flight) -> None:
        """Bring a request to its end. Raises ApiError while nothing was sent, ClientGoneError at any time."""
        lost: set[str] = set()
        failures = 0
        target: str | None = None
        timer = asyncio.get_running_loop().call_later(self._timeout_s, flight.time_out)
        try:
            while True:
                try:
                    placed = await self._place(flight, lost, target)
                except ApiError as error:
                    if not flight.sink.answered:
                        raise
                    await self._break(flight, error.message)
                    return
                try:
                    instance = placed.instance if placed is not None else self._any_instance(flight, lost)
                    verdict = await self._attempt(flight, placed, instance)
                    if flight.trace is not None:
                        flight.trace.attempted(verdict)
                finally:
                    if placed is not None:
                        self._placement.charges.release(placed.charge_id)
                if verdict is None:
                    return
                # 1. Moved: the named instance takes it, if it is still there.
                if isinstance(verdict, pb.Moved):
                    flight.moves += 1
                    self._metrics.resubmission("moved")
                    target = verdict.target if verdict.target in self._placement.usable else None
                    flight.reason = Reason.MOVED
                    continue
                # 2. Lost, or refused before the first byte: anywhere but there. One that drains has not failed.
                drains = verdict.kind == pb.Failed.DRAINING
                flight.attempts += 1
                if flight.exchange is not None and flight.exchange.pieces >= _WELL_UNDER_WAY:
                    failures = 0
                failures += not drains
                lost.add(instance)
                await self._somebody(flight)
                if flight.sink.answered:
                    if failures >= self._max_attempts or not await self._resume(flight, lost):
                        await self._break(flight, verdict.message or "the engine was lost")
                        return
                    if flight.conclusion:
                        await flight.sink.data(flight.conclusion)
                        await flight.sink.end()
                        return
                elif failures >= self._max_attempts:
                    raise _given_up(verdict)
                self._metrics.resubmission(pb.Failed.Kind.Name(verdict.kind).lower())
                target = None
                flight.reason = Reason.RETRY
                if not self._placement.usable_for(flight.model) - lost:
                    # Everything failed once: forgive, since instances come back. That all drain counts as well.
                    lost.clear()
                    failures += drains
                    await asyncio.sleep(0.05 * failures)
        finally:
            timer.cancel()
            if flight.exchange is not None:
                flight.exchange.cancel()

    async def _place(self, flight: Flight, lost: set[str], target: str | None) -> Placed | None:
        if flight.gone:
            raise ClientGoneError
        if flight.prompt is None:
            return None
        before = flight.placed
        first = before is None
        start_ns = time.time_ns() if flight.trace is not None else 0
        placed = await self._placement.place(
            flight.prompt, flight.slo_s, flight.rule, lost, target, first, flight.tenant
        )
        flight.placed = placed
        if before is not None:
            flight.earlier += (before,)
        if first:
            flight.reason = placed.reason
            self._metrics.decision_s.observe(time.monotonic() - flight.started_s)
        self._metrics.decision(placed.instance, flight.reason)
        if not placed.shared:
            self._metrics.local_decisions.inc()
        if flight.trace is not None:
            flight.trace.routed(placed, flight.reason, start_ns)
        return placed

    async def _attempt(
        self, flight: Flight, placed: Placed | None, instance: str
    ) -> pb.Moved | pb.Failed | None:
        """Send the request once and relay its answer; returns why it has to go elsewhere, or None."""
        flight.exchange = None
        session = self._sessions.get(instance)
        if session is None:
            return pb.Failed(kind=pb.Failed.ENGINE_LOST, message=f"{instance} has left", unanswered=True)
        # It may have gone while the decision was made, when there was no exchange to cancel.
        if flight.gone and not flight.timed_out:
            raise ClientGoneError
        submit = self._submit(flight, placed)
        if flight.trace is not None:
            flight.trace.dispatch(instance, submit)
        exchange = flight.exchange = session.submit(submit)
        while True:
            event = await exchange.next()
            if flight.timed_out:
                return self._failed(flight, pb.Failed(kind=pb.Failed.TIMEOUT, unanswered=True))
            if flight.gone:
                raise ClientGoneError
            if event is None:
                if exchange.overflowed:
                    await self._break(flight, "the client reads too slowly")
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
                if flight.splice is None:
                    await flight.sink.head(value.status, value.headers, flight)
                    exchange.relay = flight.relay
                elif value.status != 200:
                    exchange.cancel()
                    await self._break(flight, "the engine was lost, and no other could continue its answer")
                    return None
            elif what == "end":
                self._ended(flight, value)
                await flight.sink.end()
                return None
            elif what == "prefilled":
                if placed is not None:
                    self._placement.charges.release(placed.charge_id)
            elif what == "moved":
                moved: pb.Moved = value
                return moved
            elif what == "failed":
                return self._failed(flight, value)

    @staticmethod
    def _failed(flight: Flight, failed: pb.Failed) -> pb.Failed:
        """A failure of this attempt. A time-out before the client has seen anything is the answer."""
        if failed.kind == pb.Failed.TIMEOUT and not flight.sink.answered:
            raise ApiError(504, failed.message or "the engine did not answer in time", "timeout", "timeout")
        return failed

    async def _somebody(self, flight: Flight) -> None:
        """Wait for an instance where none is reached: who slept or blinked loses all at once, and has them back."""
        give_up_s = _give_up_s(flight)
        while not self._placement.usable_for(flight.model):
            if flight.gone or time.monotonic() > give_up_s:
                return
            await asyncio.sleep(_LOOK_S)

    async def _resume(self, flight: Flight, lost: set[str]) -> bool:
        """Prepare the rest of an answer that broke off half-way for another instance."""
        give_up_s = _give_up_s(flight)
        while not flight.timed_out and flight.record is not None:
            usable = self._placement.usable_for(flight.model)
            sessions = [session for name in usable if (session := self._sessions.get(name)) is not None]
            # First who has not failed this request, and has the least to do.
            sessions.sort(key=lambda session: (session.instance in lost, len(session)))
            try:
                if not await self._resumer.resume(flight, sessions[:_MOST_HELPERS]):
                    return False
            except HelpersLostError:
                if flight.gone or time.monotonic() > give_up_s:
                    return False
                await asyncio.sleep(_LOOK_S)
                continue
            self._metrics.resumed.inc()
            if flight.trace is not None:
                flight.trace.resumed()
            return True
        return False

    async def _break(self, flight: Flight, message: str) -> None:
        """End an answer that the client has seen some of and that cannot be completed."""
        flight.interrupted = True
        log.warning(
            "stream.broken",
            extra={"request_id": flight.request_id, "why": message, "attempts": flight.attempts},
        )
        await flight.sink.broken(message)

    def _any_instance(self, flight: Flight, lost: set[str]) -> str:
        """For requests without a prefill: who serves its model, has not failed it and has the least to do here."""
        usable = sorted(self._placement.usable_for(flight.model) - lost)
        if not usable:
            raise unavailable("no instance of this model can be reached")
        return min(usable, key=lambda name: len(self._sessions.get(name) or ()))

    def _submit(self, flight: Flight, placed: Placed | None) -> pb.Submit:
        submit = pb.Submit(
            request_id=flight.request_id,
            method=flight.method,
            path=flight.path,
            headers=flight.headers,
            body=flight.body,
            queued=placed is not None,
            hide_usage=flight.hide_usage,
            streamed=flight.streamed,
        )
        if placed is not None and flight.prompt is not None:
            placement = submit.placement
            placement.charge_id = placed.charge_id
            placement.prompt_tokens = flight.prompt.num_tokens
            placement.cached_tokens = placed.cached_tokens
            placement.prompt_bytes = flight.prompt.num_bytes
            placement.slo_s = flight.slo_s
            placement.age_s = time.monotonic() - flight.started_s
            placement.priority = flight.priority
            placement.feasible = placed.feasible
            placement.backup = placed.backup or ""
            placement.backup_cached_tokens = placed.backup_cached_tokens
            placement.moves = flight.moves
            placement.predicted_ttft_s = placed.ttft_s
            placement.chunk_hashes = flight.prompt.packed
            placement.chunk_bytes = flight.prompt.chunk_bytes
            placement.tenant = flight.tenant
        return submit

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
        exemplar = None if flight.trace is None else {"trace_id": flight.trace.trace_id}
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


def _give_up_s(flight: Flight) -> float:
    """Until when to wait for instances that are all away."""
    return time.monotonic() + (_STREAM_BLINK_S if flight.sink.answered else _BLINK_S)


def _given_up(failed: pb.Failed) -> ApiError:
    """What the client hears after the last attempt."""
    if failed.kind == pb.Failed.QUEUE_FULL:
        return overloaded("every queue is full")
    if failed.kind == pb.Failed.BAD_ANSWER:
        return ApiError(502, failed.message or "the engine broke HTTP", "upstream_error", "bad_answer")
    return unavailable(f"no instance could answer: {failed.message}")
