"""The pilot: flies requests, over as many attempts as it takes.

A request is started at most once at a time and answered exactly once. It goes elsewhere when the
rebalancer moved it off a queue, or when its worker was lost: from the start while the client has seen nothing yet, or
with the rest of a stream. What an attempt does is in `attempt`; its charge is given back whatever comes of it.
"""

import asyncio
import time
from collections.abc import Set

from dualmap.types import Reason
from dualmap_router.attempt import Attempts
from dualmap_router.breakers import Breakers
from dualmap_router.errors import ApiError, ClientGoneError, overloaded, unavailable
from dualmap_router.flight import Flight
from dualmap_router.metrics import RouterMetrics
from dualmap_router.placement import Placed, Placement
from dualmap_router.resumer import HelpersLostError, Resumer
from dualmap_router.sessions import Sessions
from dualmap_router.timing import Timing
from dualmap_wire.v1 import worker_pb2 as pb

_BLINK_S = 5.0
"""How long a request that was let in waits for an instance where none is reached: its client can ask another router."""
_STREAM_BLINK_S = 15.0
"""The same of a stream that has begun, for which nobody else can do anything."""
_LOOK_S = 0.05
_MOST_HELPERS = 3
"""How many instances are asked what a text's tokens are: more than one may just have died."""


class Pilot:
    """Flies requests: says where each attempt goes, and whether there is another."""

    def __init__(
        self,
        placement: Placement,
        sessions: Sessions,
        attempts: Attempts,
        metrics: RouterMetrics,
        resumer: Resumer,
        breakers: Breakers,
        max_attempts: int,
        timeout_s: float,
    ) -> None:
        self._placement = placement
        self._sessions = sessions
        self._attempts = attempts
        self._metrics = metrics
        self._resumer = resumer
        self._breakers = breakers
        self._max_attempts = max_attempts
        self._timeout_s = timeout_s

    async def fly(self, flight: Flight) -> None:
        """Bring a request to its end. Raises ApiError while nothing was sent, ClientGoneError at any time."""
        lost: set[str] = set()
        failures = deaths = 0
        target: str | None = None
        timer = asyncio.get_running_loop().call_later(self._timeout_s, flight.time_out)
        try:
            while True:
                if flight.attempts or flight.moves:
                    await self._somewhere(flight, lost)
                try:
                    avoided = self._avoided(flight, lost)
                    placed = await self._place(flight, avoided, target)
                except ApiError as error:
                    if not flight.sink.answered:
                        raise
                    await self._attempts.break_off(flight, error.message)
                    return
                try:
                    instance = placed.instance if placed is not None else self._any_instance(flight, avoided)
                    verdict = await self._attempts.run(flight, placed, instance)
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
                    target = verdict.target if verdict.target in self._welcoming() else None
                    flight.reason = Reason.MOVED
                    continue
                # 2. Lost, or refused before the first byte: anywhere but there. One that drains has not failed.
                drains = verdict.kind == pb.Failed.DRAINING
                flight.attempts += 1
                if flight.exchange is not None and flight.exchange.well_under_way:
                    failures = deaths = 0
                failures += not drains
                deaths += verdict.begun
                lost.add(instance)
                if flight.sink.answered:
                    if failures >= self._max_attempts or not await self._resume(flight, lost):
                        await self._attempts.break_off(flight, verdict.message or "the engine was lost")
                        return
                    if flight.conclusion is not None:
                        if flight.conclusion:
                            await flight.sink.data(flight.conclusion)
                        await flight.sink.end()
                        return
                elif failures >= self._max_attempts:
                    raise _given_up(verdict, deaths)
                self._metrics.resubmission(pb.Failed.Kind.Name(verdict.kind).lower())
                target = None
                flight.reason = Reason.RETRY
                await self._somebody(flight)
                if not self._placement.usable_for(flight.model) - lost:
                    # Everything failed once: forgive, since instances come back. That all drain counts as well.
                    lost.clear()
                    failures += drains
                    await asyncio.sleep(0.05 * failures)
        finally:
            timer.cancel()
            if flight.exchange is not None:
                flight.exchange.cancel()

    def _welcoming(self) -> Set[str]:
        """Who may be sent something that the rebalancer moves: an instance that breaks all it gets looks idle."""
        usable = frozenset(self._placement.usable)
        return usable - self._breakers.left_out(usable)

    def _avoided(self, flight: Flight, lost: set[str]) -> Set[str]:
        """Where the request is not sent: where it failed, and who breaks what it gets, if there are others."""
        usable = self._placement.usable_for(flight.model)
        left_out = self._breakers.left_out(usable)
        if not left_out or not usable - lost - left_out:
            return lost
        return lost | left_out

    async def _place(self, flight: Flight, avoided: Set[str], target: str | None) -> Placed | None:
        if flight.gone:
            raise ClientGoneError
        if flight.prompt is None:
            return None
        before = flight.placed
        first = before is None
        timing = None if flight.trace is None else Timing()
        placed = await self._placement.place(
            flight.prompt, flight.slo_s, flight.rule, avoided, target, first, flight.tenant, timing
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
        if flight.trace is not None and timing is not None:
            flight.trace.routed(placed, flight.reason, timing)
        return placed

    async def _somewhere(self, flight: Flight, lost: set[str]) -> None:
        """Leave a request that was let in somewhere to go, whoever has gone since it was last looked at.

        Nothing may be waited for between this and the decision.
        """
        await self._somebody(flight)
        if lost.issuperset(self._placement.usable_for(flight.model)):
            lost.clear()

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

    def _any_instance(self, flight: Flight, avoided: Set[str]) -> str:
        """For requests without a prefill: who serves its model, is not avoided and has the least to do here."""
        usable = sorted(self._placement.usable_for(flight.model) - avoided)
        if not usable:
            raise unavailable("no instance of this model can be reached")
        return min(usable, key=lambda name: len(self._sessions.get(name) or ()))


def _give_up_s(flight: Flight) -> float:
    """Until when to wait for instances that are all away."""
    return time.monotonic() + (_STREAM_BLINK_S if flight.sink.answered else _BLINK_S)


def _given_up(failed: pb.Failed, deaths: int) -> ApiError:
    """What the client hears after the last attempt, in which `deaths` engines were lost with the request."""
    if deaths > 1:
        # No 503: whoever reads "ask another router" in it would have as many engines die there.
        message = f"{deaths} engines were lost while they worked on it"
        return ApiError(502, message, "upstream_error", "engine_lost")
    if failed.kind == pb.Failed.QUEUE_FULL:
        return overloaded("every queue is full")
    if failed.kind == pb.Failed.BAD_ANSWER:
        return ApiError(502, failed.message or "the engine broke HTTP", "upstream_error", "bad_answer")
    return unavailable(f"no instance could answer: {failed.message}")
