"""The checker itself: what must not happen is seen when it is made to happen."""

import pytest

from dualmap_cli.load import FailedTry, RequestRecord
from dualmap_wire.redis_keys import PoolKeys

from . import faults
from .load import Mix
from .rest import Footprint, remains, settle
from .trial import ECHO_S, Happened, Outcome, Planned, make_lanes, run_trial
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


ROUTERS = {"http://one": "router-1", "http://two": "router-2"}
EXPLAINED = [
    (faults.RestartRouter("router-1"), "http_503", "http://one", 3.0, True),
    (faults.RestartRouter("router-1"), "http_503", "http://one", 4.0 + ECHO_S - 0.1, True),
    (faults.RestartEverything(), "http_503", "http://two", 3.0, True),
    (faults.KillRouter("router-1"), "disconnected", "http://one", 2.0, True),
    # Another router's ...
    (faults.RestartRouter("router-1"), "http_503", "http://two", 3.0, False),
    (faults.KillRouter("router-2"), "disconnected", "http://one", 3.0, False),
    # ... before it, or long after it ...
    (faults.RestartRouter("router-1"), "http_503", "http://one", 1.9, False),
    (faults.RestartRouter("router-1"), "http_503", "http://one", 4.0 + ECHO_S, False),
    # ... or not what it does.
    (faults.RestartRouter("router-1"), "cut", "http://one", 3.0, False),
    (faults.StoreFreezes(), "http_503", "http://one", 3.0, False),
    (faults.KillWorker("worker-1"), "disconnected", "http://one", 3.0, False),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "error", "target", "at_s", "explained"), EXPLAINED)
async def test_a_fault_explains_what_its_own_router_did_then(
    fault: faults.Fault, error: str, target: str, at_s: float, explained: bool
) -> None:
    """Of a request that was under way all the time, and was answered by the other router in the end."""
    other = next(url for url in ROUTERS if url != target)
    tries = [FailedTry(error, target, at_s)]
    record = RequestRecord(
        request_id="a",
        target=other,
        due_s=0.0,
        sent_s=0.0,
        slo_s=5.0,
        finished=True,
        e2e_s=50.0,
        failed_tries=tries,
    )
    outcome = Outcome([record], [Happened(fault, 2.0, 4.0)], ROUTERS)
    if explained:
        outcome.check()
    else:
        with pytest.raises(AssertionError, match=f"retried {error}"):
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
