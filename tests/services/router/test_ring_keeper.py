"""The rings follow the membership: at once in a small pool, beside the loop in a large one."""

import asyncio

from dualmap.hash_ring import RingPair
from dualmap_router.ring_keeper import RingKeeper


def pool(num: int) -> dict[str, float]:
    return {f"w{i}": 1.0 for i in range(num)}


async def follow_all(*sizes: int) -> tuple[RingKeeper, list[int]]:
    """A keeper after memberships that came in one turn, and how many members its rings had when it told."""
    told: list[int] = []
    keeper = RingKeeper(lambda: told.append(len(keeper.current.members)))
    for size in sizes:
        keeper.follow(pool(size))
    return keeper, told


async def settled(keeper: RingKeeper) -> None:
    if keeper._making is not None:
        await keeper._making


async def test_a_small_pool_follows_at_once() -> None:
    keeper, told = await follow_all(3, 5, 2)
    assert told == [3, 5, 2]
    assert keeper.current.candidates(7) == RingPair(pool(2)).candidates(7)


async def test_a_large_pool_keeps_its_rings_until_the_new_ones_are_made() -> None:
    keeper, told = await follow_all(40)
    assert told == [0]
    await settled(keeper)
    assert told == [0, 40]
    keeper.follow(pool(41))
    assert told == [0, 40, 40]
    await settled(keeper)
    assert told == [0, 40, 40, 41]
    assert keeper.current.candidates(7) == RingPair(pool(41)).candidates(7)


async def test_the_latest_membership_wins() -> None:
    keeper, _ = await follow_all(40, 44, 42, 3)
    await asyncio.sleep(0)
    keeper.follow(pool(43))
    keeper.follow(pool(41))
    await settled(keeper)
    assert keeper.current.members == pool(41)
    # Small again: still behind what is under way, and at once when nothing is.
    keeper.follow(pool(2))
    await settled(keeper)
    assert keeper.current.members == pool(2)
    keeper.follow(pool(3))
    assert keeper.current.members == pool(3)


async def test_the_loop_runs_on_meanwhile() -> None:
    keeper, _ = await follow_all(64)
    turns = 0
    while keeper._making is not None:
        await asyncio.sleep(0)
        turns += 1
    assert turns > 3


async def test_what_is_there_already_is_not_made_again() -> None:
    keeper, _ = await follow_all(40)
    await settled(keeper)
    rings = keeper.current
    keeper.follow(dict(reversed(pool(40).items())))
    assert keeper._making is None
    assert keeper.current is rings
