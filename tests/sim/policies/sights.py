"""A router's sight made by hand: what each instance is busy with, holds, and was last seen doing."""

from collections.abc import Sequence
from random import Random

from dualmap.ttft import DEFAULT_SPEED
from dualmap.types import PrefillSpeed
from dualmap_sim.fleet.flight import Flight
from dualmap_sim.fleet.loop import Loop
from dualmap_sim.fleet.router import Pool, Sight, Telemetry
from dualmap_sim.fleet.state import Books, Charge, Perf
from dualmap_sim.workloads.arrival import Arrival


class HandMade:
    """A pool whose state is set from outside."""

    def __init__(self, num_instances: int = 4, seed: int = 0, speed: PrefillSpeed = DEFAULT_SPEED) -> None:
        self.perfs = [Perf(speed) for _ in range(num_instances)]
        self.loop = Loop()
        telemetry = Telemetry(self.loop, lambda index: self.perfs[index], num_instances, 0.0)
        names = tuple(f"i{index}" for index in range(num_instances))
        self.pool = Pool.of(names, [1.0] * num_instances, telemetry)
        self.books = Books.empty(num_instances)
        self.sight = Sight(self.pool, self.books, 0.0, Random(seed), usable=self.pool.usable)

    def at(self, now_s: float) -> Sight:
        """The sight at a time."""
        self.sight.now_s, self.sight.usable = now_s, self.pool.usable
        return self.sight

    def holds(self, index: int, chunks: Sequence[int]) -> None:
        """An instance has these chunks cached."""
        self.pool.holders.add(chunks, index)

    def pending(self, index: int, own_s: float = 0.1, tokens: int = 1000, blocks: int = 2) -> Charge:
        """A request waits for its prefill there."""
        charge = Charge(index, own_s, True, tokens, blocks)
        self.books.book(charge)
        return charge

    def decoding(self, index: int, num: int = 1, blocks: int = 2) -> None:
        """Requests decode there."""
        for _ in range(num):
            charge = self.pending(index, blocks=blocks)
            self.books.release(charge)
            self.books.decodes(charge)


def flight(
    chunks: Sequence[int] = (),
    tail_tokens: int = 0,
    at_s: float = 0.0,
    tenant: str = "",
    session: str | None = None,
) -> Flight:
    """A request whose prompt is these chunks and some tokens more."""
    tokens = 512 * len(chunks) + tail_tokens or 1
    return Flight(Arrival(at_s, "r", tokens, 10, tuple(chunks), tenant=tenant, session=session), 5.0, 0)
