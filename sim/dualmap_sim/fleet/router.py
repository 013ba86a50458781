"""The routers of a simulated fleet: what each of them knows when it decides."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import xxhash

from dualmap.hash_ring import RingPair
from dualmap.outposts import Outposts
from dualmap.prefix_key import PrefixCounts, key_depth
from dualmap.ttft import estimate
from dualmap.types import ChoiceRequest, ChoiceRule, InstanceView, PrefillSpeed, Reason
from dualmap_sim.fleet.engine import CHUNK_TOKENS
from dualmap_sim.fleet.flight import Choice, Flight
from dualmap_sim.fleet.loop import Loop
from dualmap_sim.fleet.state import Books, Holders, Load, Perf, view
from dualmap_sim.workloads.arrival import Arrival

_NOISE_SEED = 0x51ED270B
_NO_RULE = ChoiceRule()


class Telemetry:
    """What instances last said of themselves: read again when it is needed and older than `every_s`."""

    def __init__(self, loop: Loop, read: Callable[[int], Perf], num_instances: int, every_s: float) -> None:
        self._loop = loop
        self._read = read
        self._every_s = every_s
        self._at_s = [-math.inf] * num_instances
        self._perf = [read(index) for index in range(num_instances)]

    def of(self, index: int) -> Perf:
        """One instance's."""
        now_s = self._loop.now_s
        if now_s - self._at_s[index] >= self._every_s:
            self._at_s[index] = now_s
            self._perf[index] = self._read(index)
        return self._perf[index]


@dataclass(slots=True)
class Pool:
    """What holds for all routers: the members, their rings, the counts of prefixes, who holds what."""

    names: tuple[str, ...]
    telemetry: "Telemetry"
    usable: list[int]
    """Indexes of the instances that take new requests, sorted."""
    rings: RingPair
    counts: PrefixCounts = field(default_factory=PrefixCounts)
    holders: Holders = field(default_factory=Holders)
    outposts: Outposts = field(default_factory=Outposts)
    index_of: dict[str, int] = field(default_factory=dict)
    turn: int = -1
    """Of the last decision: the first one's is 0, as in the store."""
    adapters: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Who serves an adapter, where not everybody does."""
    _pairs: dict[tuple[int, str], tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        names: tuple[str, ...],
        weights: Sequence[float],
        telemetry: "Telemetry",
        adapters: Mapping[str, Sequence[int]] | None = None,
    ) -> "Pool":
        """A pool whose instances all take requests."""
        rings = RingPair(dict(zip(names, weights, strict=True)))
        index_of = {name: index for index, name in enumerate(names)}
        usable = list(range(len(names)))
        return cls(names, telemetry, usable, rings, index_of=index_of, adapters=adapters or {})

    def change_members(self, weights: Mapping[int, float]) -> None:
        """Other instances take new requests from now on: index to weight."""
        self.usable = sorted(weights)
        self.rings = self.rings.with_members({self.names[index]: weights[index] for index in self.usable})
        self._pairs.clear()

    def serving(self, adapter: str) -> list[int]:
        """The instances that take new requests for an adapter, sorted."""
        if adapter not in self.adapters:
            return self.usable
        return [index for index in self.usable if index in self.adapters[adapter]]

    def candidates(self, key: int, adapter: str = "") -> tuple[int, ...]:
        """The candidates of a prefix key among who serves an adapter, by index."""
        pair = self._pairs.get((key, adapter))
        if pair is None:
            among = None
            if adapter in self.adapters:
                among = {self.names[index] for index in self.adapters[adapter]}
            pair = tuple(self.index_of[name] for name in self.rings.candidates(key, among))
            self._pairs[key, adapter] = pair
        return pair

    def key(self, arrival: Arrival) -> int:
        """The prefix key of a request as its prompt's prefixes are split now."""
        if not arrival.chunks:
            return xxhash.xxh3_64_intdigest(arrival.request_id.encode())
        return arrival.chunks[key_depth(arrival.chunks, self.counts.splits) - 1]


@dataclass(slots=True)
class Sight:
    """What one router sees at a decision. Baselines see the same books as the core's policies do."""

    pool: Pool
    books: Books
    now_s: float
    rng: Random
    router: int = 0
    noise: float = 0.0
    """Half the width of a uniform error in each prefill estimate, the same for the same request and instance."""
    knows_holders: bool = True
    usable: Sequence[int] = ()
    """Indexes of the instances that take the request that is decided on."""

    @property
    def loads(self) -> Sequence[Load]:
        """Counts of what is placed on each instance, by index."""
        return self.books.loads

    def depth(self, arrival: Arrival, index: int) -> int:
        """Leading chunks of a prompt that one instance holds."""
        return self.pool.holders.depth(arrival.chunks, index) if self.knows_holders else 0

    def depths(self, arrival: Arrival) -> list[int]:
        """Leading chunks of a prompt that each instance holds, by index."""
        num = len(self.pool.names)
        return self.pool.holders.depths(arrival.chunks, num) if self.knows_holders else [0] * num

    def view(self, flight: Flight, index: int, depth: int) -> InstanceView:
        """One instance as a decision of the core sees it."""
        books, pool = self.books, self.pool
        feasible_s, infeasible_s = books.feasible_s[index], books.infeasible_s[index]
        seen = view(pool.names[index], depth, feasible_s, infeasible_s, pool.telemetry.of(index), self.now_s)
        return self._noisy(seen, flight, index) if self.noise else seen

    def choice(self, flight: Flight, index: int, reason: Reason = Reason.POLICY) -> Choice:
        """A request sent to one instance, with what the core expects of it there."""
        depth = self.depth(flight.arrival, index)
        request = ChoiceRequest(flight.arrival.input_tokens, CHUNK_TOKENS, flight.slo_s)
        seen = estimate(request, self.view(flight, index, depth), _NO_RULE)
        return Choice(index, reason, seen.feasible, seen.own_s, depth, seen.ttft_s)

    def _noisy(self, seen: InstanceView, flight: Flight, index: int) -> InstanceView:
        digest = xxhash.xxh3_64_intdigest(f"{flight.arrival.request_id}/{index}".encode(), _NOISE_SEED)
        factor = 1.0 + self.noise * (2.0 * digest / 2**64 - 1.0)
        s = seen.speed
        return replace(
            seen, speed=PrefillSpeed(s.a_s * factor, s.b_s_per_token * factor, s.c_s_per_token2 * factor)
        )
