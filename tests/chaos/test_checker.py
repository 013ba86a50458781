"""The checker itself: what must not happen is seen when it is made to happen."""

import pytest

from dualmap_wire.redis_keys import PoolKeys

from . import faults
from .load import Mix
from .rest import Footprint, remains, settle
from .trial import Planned, make_lanes, run_trial
from .world import World

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]

_MIX = Mix(chats=8, wholes=3, longs=1)


class Lies(faults.Late):
    """An engine that answers something else: nobody in between can know."""

    def settings(self) -> dict[str, object]:
        return {"garbage": True, "times": 3}


def _everywhere(world: World, kind: type[faults.Fault]) -> list[list[Planned]]:
    return [[Planned(0.5, 2.0, kind(worker))] for worker in world.workers]


async def test_a_wrong_text_and_an_unexplained_error_are_seen(world: World) -> None:
    outcome = await run_trial(world, _everywhere(world, Lies), 3.0, mix=_MIX)
    assert outcome.wrong
    with pytest.raises(AssertionError, match="wrong_text"):
        outcome.check()
    outcome = await run_trial(world, _everywhere(world, faults.Fails), 3.0, mix=_MIX)
    # The fault explains what it does ...
    assert {record.error for record in outcome.records} == {None, "http_500"}
    outcome.check()
    # ... and nothing else does.
    outcome.happened.clear()
    with pytest.raises(AssertionError, match="http_500"):
        outcome.check()


async def test_a_hung_engine_is_a_timeout_and_leaves_nothing(world: World) -> None:
    outcome = await run_trial(world, [[Planned(0.5, 1.5, faults.Hangs("worker-1"))]], 3.0, mix=_MIX)
    assert {record.error for record in outcome.records} == {None, "http_504"}
    outcome.check()


async def test_what_is_left_is_seen(world: World) -> None:
    keys = PoolKeys(world.options.pool)
    async with world.redis() as redis, redis.pipeline(transaction=True) as pipe:
        pipe.hset(keys.router_charges("router-1"), "nobody", "f 1000000 worker-1")
        pipe.hincrby(keys.charges, "f:worker-1", 1000000)
        await pipe.execute()
        # Its router mends that within two seconds; before, it is seen.
        assert "leftovers" in await remains(world, Footprint.of(world))
    assert not await settle(world, Footprint.of(world))


async def test_a_seed_makes_one_schedule() -> None:
    def drawn(seed: int) -> list[str]:
        counts = {"worker": 4, "engine": 4, "router": 2}
        return [str(planned) for lane in make_lanes(seed, 120.0, counts) for planned in lane]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
