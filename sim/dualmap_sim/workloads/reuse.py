"""Which of a workload's prompt chunks are found again: in an infinite cache, in bounded ones, and after how long."""

import random
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dualmap_sim.workloads.arrival import Arrival


class LruChunks:
    """A prefix cache of `capacity` chunks; of a prompt the later chunks go before the earlier ones, as in vLLM."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held: OrderedDict[int, None] = OrderedDict()

    def serve(self, chunks: Sequence[int]) -> int:
        """How many leading chunks are held; afterwards all of them are, as far as there is room."""
        held = self._held
        hits = len(chunks)
        for place, chunk in enumerate(chunks):
            if chunk not in held:
                hits = place
                break
        for chunk in reversed(chunks[: self._capacity]):
            held[chunk] = None
            held.move_to_end(chunk)
        while len(held) > self._capacity:
            held.popitem(last=False)
        return hits


def bounded_hits(arrivals: Iterable[Arrival], capacity: int) -> list[int]:
    """Hits of each request, in chunks, when all of them meet in one cache."""
    cache = LruChunks(capacity)
    return [cache.serve(arrival.chunks) for arrival in arrivals]


def random_placement_hits(arrivals: Iterable[Arrival], capacity: int, instances: int) -> list[int]:
    """Hits of each request when each goes to any of `instances` caches of `capacity` chunks."""
    rng = random.Random(0)
    caches = [LruChunks(capacity) for _ in range(instances)]
    return [rng.choice(caches).serve(arrival.chunks) for arrival in arrivals]


@dataclass(frozen=True, slots=True)
class Reuse:
    """What an infinite cache would find.

    The distances are (distance, reused chunks): how many requests after its last use a chunk is used again, and
    how many distinct other chunks were used meanwhile, which is the room that an LRU cache needs to hold it.
    """

    hits: list[int]
    in_requests: Counter[int]
    in_chunks: Counter[int]


def find_reuse(arrivals: Sequence[Arrival]) -> Reuse:
    """Walk a workload once in order of arrival."""
    last_used: dict[int, int] = {}
    latest = _Sums(len(arrivals))
    reuse = Reuse([], Counter(), Counter())
    for now, arrival in enumerate(arrivals):
        chunks = arrival.chunks
        hits = 0
        while hits < len(chunks) and chunks[hits] in last_used:
            hits += 1
        reuse.hits.append(hits)
        # A prompt's chunks were mostly last used together: one sum for all that were.
        groups = Counter(last_used[chunk] for chunk in chunks[:hits])
        for before, count in groups.items():
            reuse.in_requests[now - before] += count
            # Up to and with the request that used it: its own chunks take room as well.
            reuse.in_chunks[latest.since(before)] += count
        for before, count in groups.items():
            latest.add(before, -count)
        latest.add(now, len(set(chunks)))
        last_used.update(dict.fromkeys(chunks, now))
    return reuse


class _Sums:
    """At each request the number of chunks that it was the last to use; sums by a Fenwick tree."""

    def __init__(self, size: int) -> None:
        self._tree = [0] * (size + 1)
        self._total = 0

    def add(self, index: int, count: int) -> None:
        self._total += count
        index += 1
        while index < len(self._tree):
            self._tree[index] += count
            index += index & -index

    def since(self, index: int) -> int:
        """The sum from `index` on."""
        before = 0
        while index > 0:
            before += self._tree[index]
            index -= index & -index
        return self._total - before
