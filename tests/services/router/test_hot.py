"""The hottest keys out of many counts, read in steps."""

from dualmap.prefix_key import DECAY
from dualmap_router.ui.hot import NUM_HOT, HotPrefixes
from dualmap_service.store import Store
from dualmap_wire.redis_keys import PoolKeys

KEYS = PoolKeys("test")
SEEN = 5000


def member(prefix: int) -> bytes:
    return prefix.to_bytes(8, "big")


async def counted(shared: Store, key: str, counts: dict[int, tuple[float, int]]) -> None:
    flat = [part for prefix, (count, at) in counts.items() for part in (member(prefix), f"{count!r} {at}")]
    await shared.command("HSET", key, *flat)


async def test_the_hottest_of_many(shared: Store) -> None:
    current, older = KEYS.hot_keys
    await shared.command("HSET", KEYS.key_counts, "seen", SEEN, "total", "500.0")
    await counted(shared, current, {prefix: (1.0, SEEN - prefix % 900) for prefix in range(100, 4000)})
    await counted(shared, current, {prefix: (10.0 * prefix, SEEN) for prefix in range(1, 16)})
    # 1. What the newer generation says stands; what only the older one knows has decayed.
    await counted(shared, older, {1: (400.0, SEEN - 2048), 50: (250.0, SEEN - 400)})
    await shared.command("ZADD", KEYS.own("w1"), 1, member(14))
    await shared.command("HSET", KEYS.outposts[1], member(14), "w2")

    hot = HotPrefixes(shared, "test")
    # 2. What is split is no key.
    await hot.refresh(("w1", "w2"), frozenset((15,)))
    assert 120.0 < 250.0 * DECAY**400 < 130.0
    assert [prefix.key for prefix in hot.found] == [14, 13, 50, 12, 11, 10, 9, 8, 7, 6, 5, 4][:NUM_HOT]
    first = hot.found[0]
    assert (first.share, first.owners, first.outpost) == (140 / 500, ("w1",), "w2")


async def test_an_empty_pool_has_none(shared: Store) -> None:
    hot = HotPrefixes(shared, "test")
    await hot.refresh(("w1",), frozenset())
    assert hot.found == []
