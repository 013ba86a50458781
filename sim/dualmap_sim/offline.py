"""The `offline-order` bound: a pooled super-instance that always serves the shortest prefill that can be in time.

What it knows that no router does: each prefill's true cost, cache hits included, with no estimate in between. Among
the requests present that can still meet their SLO if they start now it takes the shortest (FCFS among equals), it
runs hopeless ones only while nobody else waits, shortest first, and stops one at no cost as soon as somebody who can
be in time arrives.

What it is not: it does not know what will arrive, so it is no optimum of the offline problem, and serving
shortest-first is a heuristic (Moore and Hodgson's rule for one machine also looks at deadlines). It starves the
hopeless without bound: its tail is no promise. It pools like `pool-late-last`, with the same reservation about one
engine.
"""

import itertools
from collections.abc import Sequence as SequenceOf
from heapq import heappop, heappush

from dualmap.types import Reason
from dualmap_sim.fleet.engine import CHUNK_TOKENS, Sequence
from dualmap_sim.fleet.engines import make_engine, model_profile
from dualmap_sim.fleet.flight import Choice, Flight
from dualmap_sim.fleet.loop import Loop
from dualmap_sim.fleet.serial import SerialProfile
from dualmap_sim.fleet.setup import FleetSetup
from dualmap_sim.workloads.arrival import Arrival

_LOOK_AT = 64
"""So many of the shortest are weighed again with what the cache holds now."""


class OfflineOrder:
    """Runs a workload as a fleet does: `run`, then `flights` and `busy_s`."""

    def __init__(self, setup: FleetSetup) -> None:
        """A setup that `bounds.pooled` made."""
        self._setup = setup
        self._loop = Loop()
        self._profile = model_profile(setup)
        self._engine = make_engine(setup, 0, self._loop, self, lambda chunk: None, lambda chunk: None)
        self.flights: list[Flight] = []
        self._number = itertools.count()
        self._hopeful: list[tuple[float, int, Flight]] = []
        self._hopeless: list[tuple[float, int, Flight]] = []
        self._current: Flight | None = None
        self._current_hopeless = False
        self._late_left: int | None = None

    @property
    def busy_s(self) -> list[float]:
        """Prefill seconds of its only engine."""
        return [self._engine.busy_s]

    def run(self, arrivals: SequenceOf[Arrival], most_late: int | None = None) -> bool:
        """Let all of them through; false if it ended early, after `most_late` late ones."""
        self._late_left = most_late
        for arrival in arrivals:
            self._loop.at(arrival.at_s, self._arrive, arrival)
        self._loop.run()
        return self._late_left is None or self._late_left >= 0

    def _arrive(self, arrival: Arrival) -> None:
        slo_s = self._setup.slo.for_prompt(arrival.input_tokens) if arrival.slo_s is None else arrival.slo_s
        flight = Flight(arrival, slo_s, 0, Choice(0, Reason.ONLY, True, 0.0, 0))
        self.flights.append(flight)
        heappush(self._hopeful, (self._own_s(flight), next(self._number), flight))
        if self._current is not None and self._current_hopeless and self._can_be_in_time(flight):
            self._stop(self._current)
        self._next()

    def _next(self) -> None:
        if self._current is not None:
            return
        flight = self._shortest_in_time()
        self._current_hopeless = flight is None
        if flight is None:
            if not self._hopeless:
                return
            flight = heappop(self._hopeless)[2]
        self._current = flight
        flight.sequence = Sequence(flight.arrival, context=flight)
        self._engine.submit(flight.sequence)

    def _shortest_in_time(self) -> Flight | None:
        """Take it off the heap; who cannot be in time any more goes to the hopeless."""
        looked: list[tuple[float, int, Flight]] = []
        best: tuple[float, int, Flight] | None = None
        while self._hopeful and len(looked) < _LOOK_AT:
            _, number, flight = heappop(self._hopeful)
            entry = (self._own_s(flight), number, flight)
            if not self._can_be_in_time(flight):
                self._give_up(entry)
                continue
            looked.append(entry)
            best = entry if best is None or entry < best else best
        for entry in looked:
            if entry is not best:
                heappush(self._hopeful, entry)
        return None if best is None else best[2]

    def _give_up(self, entry: tuple[float, int, Flight]) -> None:
        heappush(self._hopeless, entry)
        if self._late_left is not None:
            self._late_left -= 1
            if self._late_left < 0:
                self._loop.stop()

    def _stop(self, flight: Flight) -> None:
        sequence = flight.sequence
        assert sequence is not None
        self._engine.abort(sequence)
        flight.preemptions += 1
        heappush(self._hopeless, (self._own_s(flight), next(self._number), flight))
        self._current = None

    def _can_be_in_time(self, flight: Flight) -> bool:
        return self._loop.now_s + self._own_s(flight) <= flight.arrival.at_s + flight.slo_s

    def _own_s(self, flight: Flight) -> float:
        tokens = flight.arrival.input_tokens
        chunks = flight.arrival.chunks[: (tokens - 1) // CHUNK_TOKENS]
        cached = self._engine.cached_chunks(chunks) * CHUNK_TOKENS
        if isinstance(self._profile, SerialProfile):
            slow_down = 1.0 + self._profile.slow_down_per_running * self._engine.num_running
            return self._profile.speed.prefill_s(tokens - cached, cached) * slow_down
        return self._profile.prefill_s(tokens - cached, cached)

    # EngineListener

    def first_token(self, sequence: Sequence) -> None:
        """The next one's turn."""
        flight = sequence.context
        assert isinstance(flight, Flight)
        flight.first_token_s = self._loop.now_s
        if not flight.preemptions:
            flight.cached_tokens = sequence.cached_tokens
        self._current = None
        self._loop.after(0.0, self._next)

    def finished(self, sequence: Sequence) -> None:
        """Its blocks are free."""
        flight = sequence.context
        assert isinstance(flight, Flight)
        flight.finished_s = self._loop.now_s
