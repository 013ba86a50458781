"""Tenants' limits as routers keep them: together through Redis, by their share without it, and exactly zero at rest."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from dualmap.limits import Limits
from dualmap_router.caller import Caller
from dualmap_router.errors import ApiError
from dualmap_router.tenant_limits import TenantLimits
from dualmap_service.store import Store
from dualmap_sim.embedded_store import EmbeddedStore
from dualmap_wire.redis_keys import LEASE_MS, PoolKeys

from ...waiting import eventually

KEYS = PoolKeys("p")
ACME = Caller("key", "acme")


@dataclass
class Router:
    """One router's limits, and what it told of them."""

    store: Store
    name: str
    refused: list[str] = field(default_factory=list)
    alone: int = 0

    def __post_init__(self) -> None:
        self.limits = TenantLimits(self.store, "p", self.name, 1.0, self.refused.append, self._by_itself)

    def _by_itself(self) -> None:
        self.alone += 1

    async def poll(self) -> None:
        """What keeps a router's lease."""
        await self.store.function("members", KEYS.prefix, self.name, LEASE_MS)

    async def enters(self, limits: Limits, caller: Caller = ACME) -> bool:
        """Whether one more request may come in."""
        try:
            await self.limits.enter(caller, limits)
        except ApiError as error:
            assert (error.status, error.code) == (429, "rate_limit_exceeded")
            return False
        return True


@pytest.fixture
async def routers(shared: Store) -> AsyncIterator[list[Router]]:
    """Two routers with leases, on one connection."""
    pair = [Router(shared, "r1"), Router(shared, "r2")]
    for router in pair:
        await router.poll()
    yield pair
    assert [router.limits.inside for router in pair] == [0, 0]


async def inside(shared: Store) -> int:
    """Requests of the tenant that Redis knows of."""
    return sum(int(count) for count in await shared.command("HVALS", KEYS.inside("acme")))


async def test_requests_at_once_over_two_routers(shared: Store, routers: list[Router]) -> None:
    limits = Limits(concurrency=5)
    results = await asyncio.gather(*(router.enters(limits) for _ in range(6) for router in routers))
    assert sum(results) == 5
    assert await inside(shared) == 5
    for router in routers:
        while router.limits.inside:
            router.limits.leave(ACME, limits)
    await eventually(lambda: asyncio.ensure_future(_none(shared)))
    assert await routers[0].enters(limits)
    routers[0].limits.leave(ACME, limits)
    assert {why for router in routers for why in router.refused} == {"concurrency"}
    assert not any(router.alone for router in routers)


async def _none(shared: Store) -> bool:
    return await inside(shared) == 0


async def test_a_rate_over_two_routers_and_what_is_said_of_it(routers: list[Router]) -> None:
    limits = Limits(0.1, 3)
    standing = dict(await routers[0].limits.enter(ACME, limits))
    assert standing["x-ratelimit-limit-requests"] == "3"
    assert standing["x-ratelimit-remaining-requests"] == "2"
    assert 9000 < float(standing["x-ratelimit-reset-requests"].removesuffix("ms")) <= 10_000
    assert [await routers[n % 2].enters(limits) for n in range(1, 5)] == [True, True, False, False]
    with pytest.raises(ApiError) as caught:
        await routers[1].limits.enter(ACME, limits)
    error = caught.value
    assert error.retry_after_s == pytest.approx(10.0, abs=1.0)
    assert dict(error.headers)["x-ratelimit-remaining-requests"] == "0"
    assert float(dict(error.headers)["retry-after-ms"]) == pytest.approx(10_000, abs=1000)
    assert "acme" in error.message
    for router in routers:
        while router.limits.inside:
            router.limits.leave(ACME, limits)


async def test_without_redis_each_keeps_to_its_share(
    store: EmbeddedStore, shared: Store, routers: list[Router]
) -> None:
    limits = Limits(concurrency=4)
    router = routers[0]
    # It has heard that there are two.
    assert await router.enters(limits)
    store.kill()
    await eventually(lambda: not shared.available)
    assert [await router.enters(limits) for _ in range(3)] == [True, False, False]
    assert router.alone == 3
    router.limits.leave(ACME, limits)
    assert await router.enters(limits)
    # ... and of a rate.
    rated, burst = Caller("key", "other"), Limits(0.1, 4)
    assert [await router.enters(burst, rated) for _ in range(3)] == [True, True, False]
    for _ in range(2):
        router.limits.leave(ACME, limits)
        router.limits.leave(rated, burst)


async def test_who_never_heard_of_others_has_the_whole_limit(store: EmbeddedStore, shared: Store) -> None:
    router, limits = Router(shared, "r1"), Limits(concurrency=4)
    store.kill()
    await eventually(lambda: not shared.available)
    assert [await router.enters(limits) for _ in range(5)] == [True, True, True, True, False]
    for _ in range(4):
        router.limits.leave(ACME, limits)
    assert router.limits.inside == 0


async def test_counts_that_were_lost_are_told_again(shared: Store, routers: list[Router]) -> None:
    limits = Limits(concurrency=3)
    for router in routers:
        assert await router.enters(limits)
    await shared.command("FLUSHDB")
    for router in routers:
        await router.poll()
        await router.limits.sync()
    assert await routers[0].enters(limits)
    assert not await routers[1].enters(limits)
    for router in (routers[0], *routers):
        router.limits.leave(ACME, limits)
    await eventually(lambda: asyncio.ensure_future(_none(shared)))


async def test_a_call_that_came_too_late_leaves_no_count(
    store: EmbeddedStore, shared: Store, routers: list[Router]
) -> None:
    limits, hasty = (
        Limits(concurrency=1),
        TenantLimits(shared, "p", "r1", 0.001, lambda why: None, lambda: None),
    )
    store.pause()
    await hasty.enter(ACME, limits)
    hasty.leave(ACME, limits)
    store.resume()
    await eventually(lambda: shared.available)
    await hasty.sync()
    await eventually(lambda: asyncio.ensure_future(_none(shared)))
    assert await routers[1].enters(limits)
    routers[1].limits.leave(ACME, limits)


async def test_nothing_is_kept_of_tenants_at_rest(routers: list[Router]) -> None:
    router = routers[0]
    for number in range(50):
        caller, limits = Caller("key", f"t{number}"), Limits(1000.0, 5, 5)
        assert await router.enters(limits, caller)
        router.limits.leave(caller, limits)
    await router.limits.sync()
    assert router.limits._tenants == {}
