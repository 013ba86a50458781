"""One consistent-hash ring over the members of now, for the baselines that have one."""

from collections.abc import Iterator

import xxhash

from dualmap.hash_ring import HashRing, RingPair
from dualmap_sim.fleet.router import Sight
from dualmap_sim.workloads.arrival import Arrival

KEY_CHUNKS = 2
"""Leading chunks that are hashed: one alone is the same for most prompts of a deployment."""

_RING_SEED = 0x27D4EB2F165667C5
_KEY_SEED = 0x85EBCA77C2B2AE63


class MemberRing:
    """A ring that follows the pool's membership."""

    def __init__(self) -> None:
        self._ring = HashRing({}, _RING_SEED)
        self._seen: RingPair | None = None

    def walk(self, key: int, sight: Sight) -> Iterator[int]:
        """The usable instances from a key's position on, each once."""
        pool = sight.pool
        if pool.rings is not self._seen:
            self._ring = self._ring.with_members(pool.rings.members)
            self._seen = pool.rings
        met: set[str] = set()
        for name in self._ring.walk(key):
            if name not in met:
                met.add(name)
                if pool.index_of[name] in sight.usable:
                    yield pool.index_of[name]
                if len(met) == len(self._ring.members):
                    return


def prefix_ring_key(arrival: Arrival, num_chunks: int = KEY_CHUNKS) -> int:
    """Where a prompt's first chunks lie on the ring; a prompt without a full chunk shares with none."""
    if not arrival.chunks:
        return text_ring_key(arrival.request_id)
    chunk = arrival.chunks[min(num_chunks, len(arrival.chunks)) - 1]
    return xxhash.xxh3_64_intdigest(chunk.to_bytes(8, "big"), _KEY_SEED)


def text_ring_key(text: str) -> int:
    """Where a name lies on the ring."""
    return xxhash.xxh3_64_intdigest(text.encode(), _KEY_SEED)
