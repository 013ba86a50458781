"""Measured: the store down for long, ten times the load, and a rolling restart. `--long` for their full length."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import aiohttp
import pytest
import pytest_asyncio

from dualmap_cli.load import RequestRecord
from dualmap_sim.engine import named_profile
from dualmap_wire.redis_keys import PoolKeys

from ..integration.load_checks import fetch, metric, prompts, until, within_slo
from . import faults
from .load import Mix, ask
from .rest import Footprint, settle
from .trial import Planned, run_trial
from .world import OPTIONS, World, with_flags

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]

TOKENS = 6000
"""Prompt tokens of each request here: many, so that engines are busy and this machine is not."""
SLOW = "slow"
"""The engines of the flood: ten times what four fast ones can do is more than a small machine can send."""
OWN_S = {profile: named_profile(profile).prefill_s(TOKENS) for profile in ("default", SLOW)}
"""Prefill seconds of a request."""


def capacity_of(world: World) -> float:
    """Requests per second that the engines can prefill."""
    return world.options.workers / OWN_S[SLOW if SLOW in world.options.engine_flags else "default"]


async def attempt(world: World, name: str, load: float, seconds: float) -> list[RequestRecord]:
    """Distinct prompts at a share of the fleet's capacity; no client asks twice."""
    rate_req_s = load * capacity_of(world)
    return await ask(
        world, [(prompts(name, rate_req_s, int(rate_req_s * seconds), TOKENS, 8), True)], retries=0
    )


def later(records: Sequence[RequestRecord], from_s: float, to_s: float = float("inf")) -> list[RequestRecord]:
    """Those that were due in a time."""
    return [record for record in records if from_s <= record.due_s < to_s]


async def test_the_store_is_down_for_long_at_seven_tenths_load(
    world: World, say: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    long = request.config.getoption("--long")
    calm_s, down_s, after_s = (10.0, 60.0, 14.0) if long else (7.0, 10.0, 9.0)
    assert world.store is not None
    before = Footprint.of(world)
    load = asyncio.create_task(attempt(world, f"down{time.time()}", 0.7, calm_s + down_s + after_s))
    try:
        await asyncio.sleep(calm_s)
        world.store.kill()
        await asyncio.sleep(down_s)
        await world.store.restart()
        back_s = time.monotonic()
        await until(lambda: _charges_are_true(world), 10.0, "charges as the routers hold them")
        true_s = time.monotonic() - back_s
        await world.whole(10.0 - true_s)
        whole_s = time.monotonic() - back_s
        records = await load
    finally:
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
    shares = [
        within_slo(later(records, *span))
        for span in ((2.0, calm_s), (calm_s, calm_s + down_s), (calm_s + down_s + 4.0, float("inf")))
    ]
    failed = Counter(record.error for record in records if record.error is not None)
    say(
        f"store down {down_s:g} s at 70 % load: {len(records)} requests, failed {dict(failed)}",
        "in time before {:.1%}, meanwhile {:.1%}, after {:.1%}".format(*shares),
        f"charges true {true_s:.1f} s, everything whole {whole_s:.1f} s after its return",
    )
    assert not failed
    assert shares[1] > shares[0] - 0.1
    assert shares[2] > shares[0] - 0.1
    assert not await settle(world, before)


async def _charges_are_true(world: World) -> bool:
    """Whether the store holds what the routers hold, and its totals are the sums of that."""
    keys = PoolKeys(world.options.pool)
    live = [int(await metric(url, "dualmap_live_charges")) for url in world.router_urls]
    async with world.redis() as redis:
        held = [await redis.hgetall(keys.router_charges(router)) for router in world.routers]
        totals = await redis.hgetall(keys.charges)
        known = await redis.hlen(keys.instances)
    booked = [charge.split() for charges in held for charge in charges.values()]
    sums: Counter[bytes] = Counter()
    for kind, cost_us, instance in booked:
        sums[kind + b":" + instance] += int(cost_us)
    return (
        known == len(world.workers)
        and [len(charges) for charges in held] == live
        and {name: int(us) for name, us in totals.items()} == sums
    )


@pytest_asyncio.fixture(loop_scope="session")
async def shedding() -> AsyncIterator[World]:
    """A world whose routers turn away what would wait for more than half of its objective."""
    # A store that this machine keeps waiting would have every router decide by its own bookings alone.
    slow = replace(OPTIONS, slo_s=10.0, engine_flags=("--profile", SLOW), route_deadline_ms=1000.0)
    async with World(with_flags(slow, router_flags={"shed_at": 0.5})) as world:
        yield world


async def test_ten_times_the_load_leaves_who_is_let_in_in_time(
    shedding: World, say: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    world, warm_s, after_s = shedding, 15.0, 20.0
    flood_s = 60.0 if request.config.getoption("--long") else 12.0
    end_s = warm_s + flood_s
    await world.whole()
    before = Footprint.of(world)
    peak: Counter[str] = Counter()

    async def watch() -> None:
        while True:
            for name, rss in Footprint.of(world).rss.items():
                peak[name] = max(peak[name], rss)
            await asyncio.sleep(0.5)

    watching = asyncio.create_task(watch())
    try:
        calm = asyncio.create_task(attempt(world, "calm", 0.7, end_s + after_s))
        # A fleet that has not prefilled much does not know how slow it is, and lets in what it cannot do.
        await asyncio.sleep(warm_s)
        flood = asyncio.create_task(attempt(world, "flood", 10.0, flood_s))
        await asyncio.sleep(flood_s / 2)
        retry_after = await _retry_after(world)
        flooded = await flood
        records = await calm
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    during = [*flooded, *later(records, warm_s, end_s)]
    admitted = [record for record in during if record.error != "http_429"]
    shed = len(during) - len(admitted)
    failed = Counter(record.error for record in admitted if record.error is not None)
    recovered = later(records, end_s + 10.0)
    growth_mb = {name: (rss - before.rss[name]) / 2**20 for name, rss in peak.items()}
    most = max(growth_mb, key=lambda name: growth_mb[name])
    say(
        f"10x load for {flood_s:g} s: {len(during)} requests, {shed} refused (Retry-After {retry_after} s), "
        f"{len(admitted)} let in, {within_slo(admitted):.1%} of them in time, failed {dict(failed)}",
        f"TTFT p50 {_at(admitted, 0.5):.1f} s, p90 {_at(admitted, 0.9):.1f} s; "
        f"let in {len(admitted) / flood_s / capacity_of(world):.0%} of capacity; "
        f"most growth {most} {growth_mb[most]:.0f} MB",
        f"decided without the store: {await local_decisions(world):.0f}",
        f"from 10 s after it: {within_slo(recovered):.1%} of {len(recovered)} in time",
    )
    assert shed > len(admitted)
    assert not failed
    assert within_slo(admitted) >= 0.9
    assert retry_after and min(retry_after) >= 1
    assert len(admitted) > 0.7 * flood_s * capacity_of(world), "shedding must not idle the engines"
    assert all(grown < 100 for grown in growth_mb.values())
    assert recovered and all(record.ok for record in recovered) and within_slo(recovered) > 0.95
    assert not await settle(world, before)


def _at(records: Sequence[RequestRecord], share: float) -> float:
    ttfts = sorted(record.ttft_s for record in records if record.ttft_s is not None)
    return ttfts[int(share * (len(ttfts) - 1))]


async def local_decisions(world: World) -> float:
    """How many placements routers made alone since they started."""
    return sum([await metric(url, "dualmap_local_decisions_total") for url in world.router_urls])


async def _retry_after(world: World) -> list[int]:
    """What refusals say about when to come back.

    Ten knock at once: one that is let in waits as long as half of a flood lasts, and more than one finds no room.
    """
    async with aiohttp.ClientSession() as http:

        async def knock(number: int) -> int | None:
            body = {"model": "sim-model", "prompt": f"{number} " + "knock " * 4000, "max_tokens": 1}
            async with http.post(f"{world.router_urls[0]}/v1/completions", json=body) as answer:
                return int(answer.headers["retry-after"]) if answer.status == 429 else None

        answers = await asyncio.gather(*map(knock, range(10)))
    return [seconds for seconds in answers if seconds is not None]


async def test_everything_restarts_under_load_and_nobody_notices(
    world: World, say: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    everything = faults.RestartEverything()
    starts = {name: child.pid for name, child in world.children.items()}
    seconds = 60.0 if request.config.getoption("--long") else 25.0
    outcome = await run_trial(world, [[Planned(2.0, 0.0, everything)]], seconds, mix=Mix(4, 1, 1))
    say("rolling restart", *outcome.lines())
    outcome.check()
    assert all(world.children[name].pid != pid for name, pid in starts.items())
    # Asked again is only what a router had not begun.
    assert not any("cut" in record.retried for record in outcome.records)
    assert await fetch(f"{world.router_urls[0]}/readyz")
