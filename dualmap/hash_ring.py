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

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Set
from functools import lru_cache
from operator import itemgetter

import xxhash

from dualmap.errors import EmptyPoolError

VIRTUAL_POINTS = 1024
"""Points per instance and ring at weight 1: keeps shares within 10 % of even up to 256 instances."""

_RING_SEEDS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)
_KEY_SEEDS = (0x165667B19E3779F9, 0x27D4EB2F165667C5)

_RING = 1 << 64


def places(key: int) -> tuple[float, float]:
    """Where a prefix key falls on either ring, as a share of the way round."""
    first, second = _positions(key)
    return first / _RING, second / _RING


def _positions(key: int) -> tuple[int, int]:
    raw = key.to_bytes(8, "big")
    first_seed, second_seed = _KEY_SEEDS
    return xxhash.xxh3_64_intdigest(raw, first_seed), xxhash.xxh3_64_intdigest(raw, second_seed)


def _num_points(weight: float) -> int:
    """How many points a weight stands for."""
    return max(1, round(weight * VIRTUAL_POINTS))


@lru_cache(maxsize=1024)
def _points(instance: str, num_points: int, ring_seed: int) -> tuple[int, ...]:
    """The sorted positions of an instance on one ring."""
    name = instance.encode()
    return tuple(
        sorted(xxhash.xxh3_64_intdigest(name + i.to_bytes(4, "big"), ring_seed) for i in range(num_points))
    )


class HashRing:
    """One ring: sorted points and, beside them, who owns each."""

    __slots__ = ("_owners", "_positions", "members", "ring_seed")

    def __init__(self, members: Mapping[str, float], ring_seed: int) -> None:
        self.members = dict(sorted(members.items()))
        self.ring_seed = ring_seed
        owners: dict[int, str] = {}
        for instance in self.members:
            for point in self._points_of(instance):
                # Names are visited in order, so a collision resolves alike everywhere.
                owners.setdefault(point, instance)
        self._positions = sorted(owners)
        self._owners = [owners[point] for point in self._positions]

    def with_members(self, members: Mapping[str, float]) -> "HashRing":
        """The ring over another membership, made from this one: most of its points stay where they are."""
        ring = HashRing({}, self.ring_seed)
        ring.members = dict(sorted(members.items()))
        left = {name for name, weight in self.members.items() if ring.members.get(name) != weight}
        joined = {name for name, weight in ring.members.items() if self.members.get(name) != weight}
        if len(joined) > len(ring.members) // 2:
            return HashRing(members, self.ring_seed)
        self._splice_into(ring, left, joined)
        if len(ring._positions) != sum(_num_points(weight) for weight in ring.members.values()):
            # Two points collide: only a ring made afresh gives the collision to the same owner everywhere.
            return HashRing(members, self.ring_seed)
        return ring

    def _splice_into(self, ring: "HashRing", left: Set[str], joined: Set[str]) -> None:
        """Copy the runs between the points that go and come: the work is in a few thousand slices, not in points."""
        changes: list[tuple[int, str | None]]
        changes = [(point, None) for name in left for point in self._points_of(name)]
        changes += [(point, name) for name in joined for point in ring._points_of(name)]
        at = 0
        for point, owner in sorted(changes, key=itemgetter(0)):
            cut = bisect_left(self._positions, point, at)
            ring._positions += self._positions[at:cut]
            ring._owners += self._owners[at:cut]
            at = cut
            if owner is not None:
                ring._positions.append(point)
                ring._owners.append(owner)
            elif at < len(self._positions) and self._positions[at] == point:
                at += 1
        ring._positions += self._positions[at:]
        ring._owners += self._owners[at:]

    def _points_of(self, instance: str) -> tuple[int, ...]:
        return _points(instance, _num_points(self.members[instance]), self.ring_seed)

    def sampled(self, num_slots: int) -> tuple[str, ...]:
        """Who owns the middle of each of `num_slots` equal parts of the ring: a picture of it, not the whole."""
        return tuple(self.owner((2 * slot + 1) * _RING // (2 * num_slots)) for slot in range(num_slots))

    def owner(self, position: int) -> str:
        """The first whom `walk` meets."""
        index = bisect_left(self._positions, position)
        return self._owners[index if index < len(self._owners) else 0]

    def walk(self, position: int) -> Iterator[str]:
        """Owners of the points from `position` on, once around; instances repeat."""
        owners = self._owners
        start = bisect_left(self._positions, position)
        for index in range(start, len(owners)):
            yield owners[index]
        for index in range(start):
            yield owners[index]


class RingPair:
    """Both rings over one membership."""

    __slots__ = ("_first", "_second", "members")

    def __init__(self, members: Mapping[str, float]) -> None:
        """`members` maps instance name to weight; a weight of 1 is one ordinary instance."""
        self.members = dict(sorted(members.items()))
        self._first = HashRing(self.members, _RING_SEEDS[0])
        self._second = HashRing(self.members, _RING_SEEDS[1])

    def with_members(self, members: Mapping[str, float]) -> "RingPair":
        """Rings over another membership; the same object when nothing changed."""
        if dict(members) == self.members:
            return self
        pair = RingPair({})
        pair.members = dict(sorted(members.items()))
        pair._first = self._first.with_members(members)
        pair._second = self._second.with_members(members)
        return pair

    def sampled(self, num_slots: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Both rings in `num_slots` samples each; empty in an empty pool."""
        if not self.members:
            return (), ()
        return self._first.sampled(num_slots), self._second.sampled(num_slots)

    def candidates(self, key: int, among: Set[str] | None = None) -> tuple[str, ...]:
        """The two distinct candidates of a prefix key; one only in a pool of one.

        With `among`, the first of these members that the walks meet: where only some serve what is asked for,
        each key has its fixed two of them. Raises EmptyPoolError when there is no member.
        """
        if not self.members:
            raise EmptyPoolError("no instance takes new requests")
        if len(self.members) == 1:
            return tuple(self.members)
        first_position, second_position = _positions(key)
        if among is not None:
            return self._candidates_among(first_position, second_position, among)
        first = self._first.owner(first_position)
        second = self._second.owner(second_position)
        if second != first:
            return first, second
        others = (name for name in self._second.walk(second_position) if name != first)
        return first, *itertools.islice(others, 1)

    def _candidates_among(
        self, first_position: int, second_position: int, among: Set[str]
    ) -> tuple[str, ...]:
        among = among & self.members.keys()
        if len(among) < 2:
            return tuple(among)
        first = next(name for name in self._first.walk(first_position) if name in among)
        others = (name for name in self._second.walk(second_position) if name in among and name != first)
        return first, next(others)
