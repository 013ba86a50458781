"""A simulated fleet: routers, instances and a rebalancer over one loop, and a workload that runs through."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from math import inf
from random import Random
from typing import Any

from dualmap.prefix_key import PrefixCounts
from dualmap.types import Reason
from dualmap_sim.fleet.engine import CHUNK_TOKENS, Engine, EngineListener
from dualmap_sim.fleet.engines import make_engine
from dualmap_sim.fleet.flight import Choice, Flight
from dualmap_sim.fleet.instance import SimInstance
from dualmap_sim.fleet.loop import Loop
from dualmap_sim.fleet.policy import FeedbackPolicy, PlacementPolicy
from dualmap_sim.fleet.rebalancer import SimRebalancer
from dualmap_sim.fleet.router import Pool, Sight, Telemetry
from dualmap_sim.fleet.setup import FleetSetup
from dualmap_sim.fleet.state import Books, Charge
from dualmap_sim.workloads.arrival import Arrival
from dualmap_sim.workloads.trace_line import num_blocks

_PROBE_S = 0.1
"""How often a router asks again for who waits at it."""
_ROUNDING_S = 1e-6


class _NoCounts(PrefixCounts):
    """Splits no prefix."""

    def observe(self, hashes: Sequence[int], num_instances: int) -> bool:
        """Nothing changes."""
        return False


class Fleet:
    """Runs a workload; `flights` tells what became of each request."""

    def __init__(self, setup: FleetSetup, policy: PlacementPolicy) -> None:
        self.loop = Loop()
        self._setup = setup
        self._policy = policy
        self._feedback = policy if isinstance(policy, FeedbackPolicy) else None
        self._rng = Random(setup.seed)
        self._hop_rng = Random(f"hops/{setup.seed}")
        self.books = Books.empty(setup.num_instances)
        self.flights: list[Flight] = []
        self._late_left: int | None = None
        self._due: list[tuple[float, int, Flight]] = []
        self._next_router = 0
        names = setup.names or tuple(f"i{index}" for index in range(setup.num_instances))
        self.instances = [self._instance(index) for index in range(setup.num_instances)]
        weights = [1.0] * setup.num_instances
        telemetry = Telemetry(
            self.loop, lambda index: self.instances[index].perf(), setup.num_instances, setup.telemetry_s
        )
        self.pool = Pool.of(names, weights, telemetry, dict(setup.adapters))
        first = {change.index: change for change in reversed(setup.changes)}
        absent = [index for index, change in first.items() if change.kind == "join"]
        if absent:
            for index in absent:
                self.instances[index].kill()
            self._change_members(set(self.pool.usable) - set(absent))
        if not setup.adaptive_key:
            self.pool.counts = _NoCounts()
        self._sights = [
            Sight(self.pool, self.books, 0.0, self._rng, router, setup.noise)
            for router in range(setup.num_routers)
        ]
        self._waiting: list[deque[Flight]] = [deque() for _ in range(setup.num_routers)]
        self._beat = -1
        self._rebalancer = None
        if setup.rebalance is not None:
            self._rebalancer = SimRebalancer(self.loop, self.instances, setup.rebalance, self._move)

    def _instance(self, index: int) -> SimInstance:
        setup = self._setup

        def engine(listener: EngineListener) -> Engine:
            return make_engine(
                setup, index, self.loop, listener,
                stored=lambda chunk: self.pool.holders.add((chunk,), index),
                evicted=lambda chunk: self.pool.holders.remove(chunk, index),
            )  # fmt: skip

        return SimInstance(
            index, self.loop, self, engine, setup.order, setup.preempt, setup.ahead_tokens, setup.max_running,
            setup.step_tokens, hop=self._hop if setup.hop_s else None,
        )  # fmt: skip

    def run(self, arrivals: Sequence[Arrival], most_late: int | None = None) -> bool:
        """Let all of them through, to the last token; false if it ended early, after `most_late` late ones."""
        self._arrivals = iter(arrivals)
        self._late_left = most_late
        does = {"lose": self._lose, "drain": self._drain, "join": self._join}
        for change in self._setup.changes:
            self.loop.at(change.at_s, does[change.kind], change.index)
        self._schedule_next()
        self.loop.run()
        self._count_late(inf)
        return self._late_left is None or self._late_left >= 0

    def _count_late(self, now_s: float) -> None:
        """Count who has missed its SLO, whether it still waits or not, and end the run when they are too many."""
        if self._late_left is None:
            return
        due = self._due
        while due and due[0][0] < now_s:
            self._late_left -= not heappop(due)[2].within_slo
        if self._late_left < 0:
            self.loop.stop()

    def _schedule_next(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is not None:
            self.loop.at(arrival.at_s, self._arrive, arrival)

    def _arrive(self, arrival: Arrival) -> None:
        slo_s = self._setup.slo.for_prompt(arrival.input_tokens) if arrival.slo_s is None else arrival.slo_s
        flight = Flight(arrival, slo_s, self._next_router)
        self._next_router = (self._next_router + 1) % self._setup.num_routers
        self.flights.append(flight)
        if self._late_left is not None:
            heappush(self._due, (arrival.at_s + slo_s + _ROUNDING_S, len(self.flights), flight))
            self._count_late(self.loop.now_s)
        # What no instance can ever hold an engine answers with an error.
        too_large = num_blocks(arrival.input_tokens) > self._setup.kv_blocks
        if too_large or not self.pool.serving(arrival.adapter):
            flight.refused = True
            self._schedule_next()
            return
        queue = self._waiting[flight.router]
        # Who waits at the router already goes first.
        choice = None if queue else self._policy.place(flight, self._sight(flight))
        if choice is not None:
            self._dispatch(flight, choice)
        else:
            queue.append(flight)
            if len(queue) == 1:
                self.loop.after(_PROBE_S, self._probe, flight.router)
        self._schedule_next()

    def _probe(self, router: int) -> None:
        """Place who waits at a router, first come, first served, as far as they can be placed now."""
        queue = self._waiting[router]
        while queue:
            serving = self.pool.serving(queue[0].arrival.adapter)
            choice = self._policy.place(queue[0], self._sight(queue[0])) if serving else None
            if choice is None:
                self.loop.after(_PROBE_S, self._probe, router)
                return
            self._dispatch(queue.popleft(), choice)

    def _sight(self, flight: Flight) -> Sight:
        """What its router sees now, to decide on a request."""
        self._sync()
        sight = self._sights[flight.router]
        sight.now_s, sight.usable = self.loop.now_s, self.pool.serving(flight.arrival.adapter)
        return sight

    def _sync(self) -> None:
        """Routers that keep books of their own read the shared ones on a beat; called before these change or matter."""
        sync_s = self._setup.sync_s
        if sync_s and int(self.loop.now_s / sync_s) != self._beat:
            self._beat = int(self.loop.now_s / sync_s)
            for sight in self._sights:
                sight.books = self.books.copy()

    def _dispatch(self, flight: Flight, choice: Choice) -> None:
        arrival = flight.arrival
        cached = min(choice.depth * CHUNK_TOKENS, arrival.input_tokens - 1)
        charge = Charge(
            index=choice.index,
            own_s=choice.own_s,
            feasible=choice.feasible,
            tokens=arrival.input_tokens - max(cached, 0),
            blocks=num_blocks(arrival.input_tokens),
        )
        flight.choice, flight.charge = choice, charge
        flight.escaped = flight.escaped or choice.reason is Reason.ESCAPE
        for books in self._books(flight.router):
            books.book(charge)
        self.pool.holders.add(arrival.chunks, choice.index)
        self._after_hop(self._enqueue, flight, choice)

    def _enqueue(self, flight: Flight, choice: Choice) -> None:
        if not self.instances[choice.index].alive:
            self._retry(flight)
            return
        self.instances[choice.index].enqueue(flight, choice)
        if self._rebalancer is not None:
            self._rebalancer.wake()

    def _after_hop(self, callback: Callable[..., None], *args: Any) -> None:
        """Call when what is sent now has arrived; at once where hops take no time."""
        if self._setup.hop_s:
            self.loop.after(self._hop(), callback, *args)
        else:
            callback(*args)

    def _hop(self) -> float:
        """Seconds that the next hop takes."""
        return self._setup.hop_s * self._hop_rng.expovariate(1.0)

    def _books(self, router: int) -> list[Books]:
        """Where a router's own bookings go: the shared books, and its own where it keeps some."""
        self._sync()
        own = self._sights[router].books
        return [self.books] if own is self.books else [self.books, own]

    def _release(self, flight: Flight) -> None:
        charge = flight.charge
        assert charge is not None
        charge.released = True
        for books in self._books(flight.router):
            books.release(charge)

    def _move(self, source: SimInstance, request_id: str, target: int) -> None:
        flight = source.take(request_id)
        if flight is not None:
            self._after_hop(self._moved, flight, source, target)

    def _moved(self, flight: Flight, source: SimInstance, target: int) -> None:
        """Its router hears of it, and sends it on."""
        if target not in self.pool.serving(flight.arrival.adapter):
            self._retry(flight)
            return
        self._release(flight)
        self._forget_expected(source, flight.arrival)
        flight.moves += 1
        # The route function books it: under round-robin that takes a turn.
        self.pool.turn += 1
        choice = self._sight(flight).choice(flight, target, Reason.MOVED)
        key = self.pool.key(flight.arrival)
        if target not in self.pool.candidates(key, flight.arrival.adapter):
            self.pool.outposts.put(key, self.pool.names[target])
        self._dispatch(flight, replace(choice, backup=source.index))

    def _forget_expected(self, source: SimInstance, arrival: Arrival) -> None:
        """What was expected of a prompt that will not be computed there."""
        for chunk in arrival.chunks[source.engine.cached_chunks(arrival.chunks) :]:
            self.pool.holders.remove(chunk, source.index)

    # Who comes and goes

    def _change_members(self, usable: Iterable[int]) -> None:
        self.pool.change_members(dict.fromkeys(usable, 1.0))

    def _drain(self, index: int) -> None:
        self.instances[index].draining = True
        self._change_members(set(self.pool.usable) - {index})

    def _join(self, index: int) -> None:
        if not self.instances[index].alive:
            self.instances[index] = self._instance(index)
        self.instances[index].draining = False
        self._change_members({*self.pool.usable, index})

    def _lose(self, index: int) -> None:
        lost = self.instances[index].kill()
        self._change_members(set(self.pool.usable) - {index})
        for flight in lost:
            self._forget_expected(self.instances[index], flight.arrival)
            if flight.first_token_s is None:
                self._retry(flight)
            else:
                self.finished(flight)

    def _retry(self, flight: Flight) -> None:
        """Its instance is gone before its first token: its router decides anew."""
        self._release(flight)
        flight.moves += 1
        queue = self._waiting[flight.router]
        queue.appendleft(flight)
        if len(queue) == 1:
            self._probe(flight.router)

    # Ground

    def first_token(self, flight: Flight) -> None:
        """Its charge goes, its blocks stay."""
        self._release(flight)
        assert flight.charge is not None
        for books in self._books(flight.router):
            books.decodes(flight.charge)
        if self._feedback is not None:
            self._feedback.first_token(flight)
        self._count_late(self.loop.now_s)

    def finished(self, flight: Flight) -> None:
        """It is over."""
        assert flight.charge is not None
        for books in self._books(flight.router):
            books.ends(flight.charge)
        if self._feedback is not None:
            self._feedback.finished(flight)
