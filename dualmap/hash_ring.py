"""Two consistent-hash rings: every prefix key has two candidate instances that hardly change with membership.

Theory of operation. Each instance owns `weight * VIRTUAL_POINTS` points on each ring; a key belongs to the
instance of the first point at or after it. The rings hash the instance names independently, so the two
candidates of a key are two independent draws: that is the power of two choices, with a fixed pair per key
so that prefixes meet their cache. Where both draws give the same instance, the second ring walks on to the
next *distinct* one. An index+1 rule instead would reshuffle on every membership change.

Properties (tests/core/test_hash_ring.py): candidates are distinct; an instance that joins or leaves changes
about 2/(n+1) of the pairs; instances hold keys within 10 % of their weight; equal membership gives equal
rings in every process. The rings are values: `with_members` returns new ones and shares what stays.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from functools import lru_cache

import xxhash

from dualmap.errors import EmptyPoolError

VIRTUAL_POINTS = 1024
"""Points per instance and ring at weight 1: keeps shares within 10 % of even up to 256 instances."""

_RING_SEEDS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)
_KEY_SEEDS = (0x165667B19E3779F9, 0x27D4EB2F165667C5)


@lru_cache(maxsize=1024)
def _points(instance: str, num_points: int, ring_seed: int) -> tuple[int, ...]:
    """The sorted positions of an instance on one ring."""
    name = instance.encode()
    return tuple(
        sorted(xxhash.xxh3_64_intdigest(name + i.to_bytes(4, "big"), ring_seed) for i in range(num_points))
    )


class HashRing:
    """One ring: sorted points and who owns each."""

    __slots__ = ("_owners", "_positions", "members", "ring_seed")

    def __init__(self, members: Mapping[str, float], ring_seed: int) -> None:
        self.members = dict(sorted(members.items()))
        self.ring_seed = ring_seed
        owners: dict[int, str] = {}
        for instance, weight in self.members.items():
            for point in _points(instance, max(1, round(weight * VIRTUAL_POINTS)), ring_seed):
                # Names are visited in order, so a collision resolves alike everywhere.
                owners.setdefault(point, instance)
        self._owners = owners
        self._positions = sorted(owners)

    def walk(self, position: int) -> Iterator[str]:
        """Owners of the points from `position` on, once around; instances repeat."""
        positions, owners = self._positions, self._owners
        start = bisect_left(positions, position)
        for index in range(start, len(positions)):
            yield owners[positions[index]]
        for index in range(start):
            yield owners[positions[index]]


class RingPair:
    """Both rings over one membership."""

    __slots__ = ("members", "_first", "_second")  # noqa: RUF023 - the public name first

    def __init__(self, members: Mapping[str, float]) -> None:
        """`members` maps instance name to weight; a weight of 1 is one ordinary instance."""
        self.members = dict(sorted(members.items()))
        self._first = HashRing(self.members, _RING_SEEDS[0])
        self._second = HashRing(self.members, _RING_SEEDS[1])

    def with_members(self, members: Mapping[str, float]) -> "RingPair":
        """Rings over another membership; the same object when nothing changed."""
        return self if dict(members) == self.members else RingPair(members)

    def candidates(self, key: int) -> tuple[str, ...]:
        """The two distinct candidates of a prefix key; one only in a pool of one.

        Raises EmptyPoolError when there is no member.
        """
        if not self.members:
            raise EmptyPoolError("no instance takes new requests")
        raw = key.to_bytes(8, "big")
        first = next(self._first.walk(xxhash.xxh3_64_intdigest(raw, _KEY_SEEDS[0])))
        for second in self._second.walk(xxhash.xxh3_64_intdigest(raw, _KEY_SEEDS[1])):
            if second != first:
                return first, second
        return (first,)
