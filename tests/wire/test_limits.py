"""Tenants' limits in Redis: the rate is the core's, and counts of requests heal by themselves."""

import time

from hypothesis import given
from hypothesis import strategies as st

from dualmap.limits import Limits, take
from dualmap_wire.redis_keys import INSIDE_MS
from tests.wire.pool import WirePool

ACROSS = Limits(concurrency=3)


@given(
    rate=st.floats(0.5, 5000.0),
    burst=st.integers(1, 12),
    pauses=st.lists(st.sampled_from([0.0, 0.0, 0.001, 0.004]), min_size=5, max_size=30),
)
def test_the_rate_is_the_cores(pool: WirePool, rate: float, burst: int, pauses: list[float]) -> None:
    pool.client.flushdb()
    limits, full_at_s, epoch_us = Limits(rate, burst), 0.0, 0
    for number, pause_s in enumerate(pauses):
        # The function keeps whole microseconds: each request that it counts adds up to half of one.
        rounding_s = (2.0 + 0.5 * number) * 1e-6
        time.sleep(pause_s)
        entered, now_us = pool.enter(limits)
        epoch_us = epoch_us or now_us
        # The core in floats from this test's start, the function in microseconds since 1970.
        now_s = (now_us - epoch_us) / 1e6
        taken = take(full_at_s, now_s, limits)
        if abs(taken.wait_s) < rounding_s and bool(taken.wait_s) != bool(entered.refused):
            return  # within the rounding of either; from here on they differ by a request
        full_at_s = taken.full_at_s
        assert entered.refused == ("rate" if taken.wait_s else "")
        assert abs(entered.wait_s - taken.wait_s) < 1e-6 + rounding_s
        assert abs(entered.full_s - max(taken.full_at_s - now_s, 0.0)) < 2e-6 + rounding_s
        assert abs(entered.remaining - taken.remaining) <= (taken.remaining > 0)


def test_a_full_bucket_leaves_nothing(pool: WirePool) -> None:
    # One interval: of two milliseconds, as at 500/s, nothing was left on a busy machine before it was asked for.
    pool.enter(Limits(5.0, 2))
    assert 0 < pool.client.pttl(pool.keys.key("rate", "acme")) <= 200
    deadline = time.monotonic() + 5
    while pool.client.exists(pool.keys.key("rate", "acme")):
        assert time.monotonic() < deadline


def test_a_clock_that_was_set_back_leaves_nobody_out(pool: WirePool) -> None:
    """An hour's worth of requests seems to be taken: at most a bucket can be."""
    limits = Limits(0.5, 3)
    _, now_us = pool.enter(limits)
    pool.client.set(pool.keys.key("rate", "acme"), now_us + 3_600_000_000)
    refused, later_us = pool.enter(limits)
    assert (refused.refused, refused.wait_s) == ("rate", 2.0)
    taken = take(later_us / 1e6 + 3600.0, later_us / 1e6, limits)
    assert abs(taken.wait_s - refused.wait_s) < 1e-5


def test_tenants_have_buckets_of_their_own(pool: WirePool) -> None:
    limits = Limits(0.1, 1)
    assert [pool.enter(limits, tenant=tenant)[0].refused for tenant in ("a", "b", "a")] == ["", "", "rate"]


def test_requests_at_once_over_all_routers(pool: WirePool) -> None:
    for router in ("r1", "r2"):
        pool.members(router)
    assert [pool.enter(ACROSS, router)[0].refused for router in ("r1", "r2", "r2")] == ["", "", ""]
    refused, _ = pool.enter(ACROSS, "r1")
    assert (refused.refused, refused.routers) == ("concurrency", 2)
    # Whoever is refused is not counted.
    assert pool.inside() == {"r1": 1, "r2": 2}
    pool.call("leave", "r2", "acme")
    assert pool.enter(ACROSS, "r1")[0].refused == ""
    for router in ("r1", "r1", "r2"):
        pool.call("leave", router, "acme")
    assert not pool.client.exists(pool.keys.inside("acme"))
    # One that was lost already is lost once.
    pool.call("leave", "r1", "acme")
    assert pool.inside() == {}


def test_a_router_that_died_has_no_requests(pool: WirePool) -> None:
    pool.members("r1")
    pool.members("dead", lease_ms=50)
    for _ in range(3):
        assert pool.enter(ACROSS, "dead")[0].refused == ""
    deadline = time.monotonic() + 5
    while pool.client.exists(pool.keys.router_lease("dead")):
        assert time.monotonic() < deadline
    assert pool.enter(ACROSS, "r1")[0].refused == ""
    assert pool.inside() == {"r1": 1}


def test_what_nobody_renews_is_forgotten(pool: WirePool) -> None:
    pool.enter(ACROSS)
    assert 0 < pool.client.pttl(pool.keys.inside("acme")) <= INSIDE_MS
    pool.client.pexpire(pool.keys.inside("acme"), 100)
    pool.call("inside", "r1", "acme", 1)
    assert pool.client.pttl(pool.keys.inside("acme")) > INSIDE_MS / 2


def test_a_count_is_set_right(pool: WirePool) -> None:
    pool.call("inside", "r1", "acme", 2, "other", 5)
    assert (pool.inside(), pool.inside("other")) == ({"r1": 2}, {"r1": 5})
    assert pool.enter(ACROSS)[0].refused == ""
    assert pool.enter(ACROSS)[0].refused == "concurrency"
    pool.call("inside", "r1", "acme", 0, "other", 0)
    assert (pool.inside(), pool.inside("other")) == ({}, {})


def test_the_rate_counts_nobody_whom_concurrency_refuses(pool: WirePool) -> None:
    limits = Limits(0.1, 2, 1)
    assert pool.enter(limits)[0].refused == ""
    assert pool.enter(limits)[0].refused == "concurrency"
    pool.call("leave", "r1", "acme")
    assert pool.enter(limits)[0].refused == ""
    pool.call("leave", "r1", "acme")
    assert pool.enter(limits)[0].refused == "rate"
    # Refused by the rate, it is not among those at once either.
    assert pool.inside() == {}
