"""One instance of a simulated fleet: the worker's own admission queue in front of a simulated engine."""

from collections.abc import Callable
from typing import Protocol

from dualmap.admission import Admission
from dualmap.job import Job
from dualmap.preempt import PreemptRule
from dualmap.queue_order import OrderRule
from dualmap.types import EngineLoad
from dualmap_sim.fleet.engine import CHUNK_TOKENS, Engine, EngineListener, Sequence
from dualmap_sim.fleet.flight import Choice, Flight
from dualmap_sim.fleet.loop import Loop, Timer
from dualmap_sim.fleet.state import Perf

_LEAST_WAIT_S = 0.001


class Ground(Protocol):
    """Who is told of what becomes of the requests."""

    def first_token(self, flight: Flight) -> None:
        """Its prefill is over."""

    def finished(self, flight: Flight) -> None:
        """It has ended."""


class SimInstance:
    """A worker and its engine."""

    def __init__(
        self,
        index: int,
        loop: Loop,
        ground: Ground,
        make_engine: Callable[[EngineListener], Engine],
        order: OrderRule,
        preempt: PreemptRule,
        ahead_tokens: int,
        max_running: int,
        step_tokens: int,
        hop: Callable[[], float] | None = None,
    ) -> None:
        """`hop` draws the seconds until the worker hears from its engine; None for none."""
        self.index = index
        self._loop = loop
        self._ground = ground
        self.engine = make_engine(self)
        self.admission = Admission(
            order, ahead_tokens, max_running, hold_kv_use=0.97, preempt=preempt, step_tokens=step_tokens
        )
        self._hop = hop
        self._again: Timer | None = None
        self.flights: dict[str, Flight] = {}
        self.alive = True
        self.draining = False

    def enqueue(self, flight: Flight, choice: Choice) -> None:
        """A request arrives from a router."""
        arrival = flight.arrival
        cached = max(min(choice.depth * CHUNK_TOKENS, arrival.input_tokens - 1), 0)
        flight.job = Job(
            request_id=arrival.request_id,
            arrival_s=arrival.at_s,
            prompt_tokens=arrival.input_tokens,
            cached_tokens=cached,
            slo_s=flight.slo_s,
            tenant=arrival.tenant,
            feasible=choice.feasible,
            start=lambda: self._start(flight),
            stop=lambda: self._stop(flight),
        )
        self.flights[arrival.request_id] = flight
        self.admission.add(flight.job)
        self.admit()

    def take(self, request_id: str) -> Flight | None:
        """Take a request off the queue, if it still waits."""
        if self.admission.take(request_id) is None:
            return None
        return self.flights.pop(request_id)

    def kill(self) -> list[Flight]:
        """The worker and its engine are gone; who was inside has to go elsewhere."""
        self.alive = False
        if self._again is not None:
            self._again.cancel()
        self.engine.kill()
        lost = list(self.flights.values())
        self.flights.clear()
        return lost

    def perf(self) -> Perf:
        """What its telemetry says now."""
        now_s, admission = self._loop.now_s, self.admission
        if not admission.line:
            return Perf(admission.speed(now_s), held=admission.held)
        in_hand = admission.in_hand(now_s)
        head = admission.line[0]
        perf = Perf(
            in_hand.speed,
            running=self.flights[head.request_id].charge,
            started_s=admission.head_since_s(),
            cost_s=head.own_s(in_hand.speed),
            held=admission.held,
        )
        for running in in_hand.line.giving_way:
            if running.queued.request_id == head.request_id:
                perf.gives_way_s = running.stop_s
        return perf

    def admit(self) -> None:
        """Let in what may start."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        engine = self.engine
        self.admission.load = EngineLoad(engine.num_running, engine.num_waiting, engine.kv_use)
        wait_s = self.admission.admit(self._loop.now_s)
        if wait_s is not None:
            # Rounding could make it now, for ever.
            self._again = self._loop.after(max(wait_s, _LEAST_WAIT_S), self.admit)

    # What the admission asks for

    def _start(self, flight: Flight) -> None:
        flight.sequence = Sequence(flight.arrival, context=flight)
        self.engine.submit(flight.sequence)

    def _stop(self, flight: Flight) -> None:
        self._loop.after(0.0, self._stopped, flight, flight.sequence)

    def _stopped(self, flight: Flight, sequence: Sequence) -> None:
        if not self.alive or flight.sequence is not sequence or sequence.prefilled:
            return
        assert flight.job is not None
        self.engine.abort(sequence)
        flight.sequence = None
        flight.preemptions += 1
        self.admission.requeue(flight.job, self._loop.now_s)
        self.admit()

    # What the engine tells

    def first_token(self, sequence: Sequence) -> None:
        """A prefill is over."""
        if self._hop is None:
            self._first_byte(sequence)
            return
        flight = sequence.context
        assert isinstance(flight, Flight)
        flight.told_s = self._loop.now_s + self._hop()
        self._loop.at(flight.told_s, self._first_byte, sequence)

    def finished(self, sequence: Sequence) -> None:
        """A last token is out."""
        if self._hop is None:
            self._last_byte(sequence)
            return
        flight = sequence.context
        assert isinstance(flight, Flight)
        self._loop.at(max(flight.told_s, self._loop.now_s + self._hop()), self._last_byte, sequence)

    def _first_byte(self, sequence: Sequence) -> None:
        if not self.alive:
            return
        flight = sequence.context
        assert isinstance(flight, Flight) and flight.job is not None
        flight.first_token_s = self._loop.now_s
        if not flight.preemptions:
            flight.cached_tokens = sequence.cached_tokens
        self.admission.first_byte(flight.job, self._loop.now_s)
        self._ground.first_token(flight)
        self.admit()

    def _last_byte(self, sequence: Sequence) -> None:
        if not self.alive:
            return
        flight = sequence.context
        assert isinstance(flight, Flight) and flight.job is not None
        tokens = flight.arrival.input_tokens
        self.admission.finish(flight.job, self._loop.now_s, tokens, sequence.cached_tokens)
        del self.flights[flight.arrival.request_id]
        flight.finished_s = self._loop.now_s
        self._ground.finished(flight)
        self.admit()
