"""The lease: one leads, its token grows with every change of hands, and it stops before its lease ends."""

import time
from collections.abc import Callable

import pytest

from dualmap_rebalancer.leadership import Leadership
from dualmap_service.store import Store
from dualmap_sim.embedded_store import EmbeddedStore

from ...waiting import eventually
from .conftest import KEYS
from .recording_worker import POOL

Candidate = Callable[..., Leadership]


@pytest.fixture
def candidate(shared: Store) -> Candidate:
    def stand(who: str, lease_s: float = 3.0) -> Leadership:
        return Leadership(shared, POOL, who, lease_s=lease_s, renew_s=1.0, standby_poll_s=0.25)

    return stand


async def test_one_leads_and_the_fence_grows_with_each_term(candidate: Candidate) -> None:
    a, b = candidate("a"), candidate("b")
    assert (a.fence, a.settled) == (None, False)
    await a.renew()
    await b.renew()
    first = a.fence
    assert first is not None
    assert (b.fence, b.settled) == (None, True)
    await a.renew()
    assert a.fence == first
    await a.resign()
    assert a.fence is None
    await b.renew()
    assert b.fence is not None and b.fence > first


async def test_resigning_takes_nothing_from_another(candidate: Candidate) -> None:
    a, b = candidate("a"), candidate("b")
    await a.renew()
    fence = a.fence
    await b.resign()
    await a.renew()
    assert a.fence == fence is not None


async def test_stops_before_the_lease_ends(candidate: Candidate, shared: Store) -> None:
    a = candidate("a", lease_s=0.6)
    await a.renew()
    started = time.monotonic()
    await eventually(lambda: a.fence is None)
    assert time.monotonic() - started < 0.6
    # In the store the lease still stands, so that nobody else can have taken it.
    assert await shared.command("PTTL", KEYS.key("leader")) > 0


async def test_a_stolen_lease_ends_the_term(candidate: Candidate, shared: Store) -> None:
    a = candidate("a")
    await a.renew()
    await shared.command("SET", KEYS.key("leader"), "thief")
    await a.renew()
    assert (a.fence, a.settled) == (None, True)


async def test_a_failed_renewal_stops_acting(candidate: Candidate, store: EmbeddedStore) -> None:
    a = candidate("a", lease_s=60.0)
    await a.renew()
    fence = a.fence
    store.pause()
    await a.renew()
    assert (a.fence, a.settled) == (None, False)
    assert a.steady_s < 1.0
    store.resume()

    async def again() -> bool:
        await a.renew()
        return a.fence == fence

    await eventually(again)
