"""Charges: booked once, released once, and exactly zero when idle, whatever happens in between."""

import time

import pytest
import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dualmap.types import ChoiceRequest
from dualmap_sim.embedded_store import EmbeddedStore
from dualmap_wire.redis_functions import Overload, Routed
from tests.wire.pool import SPEED, WirePool, route_call

NAMES = ("w1", "w2", "w3")
ROUTERS = ("r1", "r2")


def booked(pool: WirePool, charge: str = "c1", router: str = "r1", tokens: int = 1000) -> Routed:
    got = pool.route(route_call(NAMES, charge, router, ChoiceRequest(tokens, 512.0, 5.0)))
    assert isinstance(got, Routed)
    return got


def test_a_booking_is_the_expected_prefill_under_its_class(pool: WirePool) -> None:
    got = booked(pool)
    own_us = int(SPEED.prefill_s(1000, 0) * 1e6)
    assert pool.charges() == {f"f:{got.instance}": own_us}
    assert pool.router_charges("r1") == {"c1": ("f", own_us, got.instance)}
    late = booked(pool, "c2", tokens=60_000)
    assert not late.feasible
    assert pool.charges()[f"i:{late.instance}"] == int(SPEED.prefill_s(60_000, 0) * 1e6)


def test_a_charge_is_released_once(pool: WirePool) -> None:
    booked(pool)
    assert pool.call("release", "r1", "c1") == 1
    assert pool.call("release", "r1", "c1") == 0
    assert pool.charges() == {}


def test_unknown_charges_and_routers_are_no_operation(pool: WirePool) -> None:
    got = booked(pool)
    assert pool.call("release", "r1", "other") == 0
    assert pool.call("release", "r2", "c1") == 0
    assert pool.call("release", "r1") == 0
    assert list(pool.charges()) == [f"f:{got.instance}"]


def test_several_are_released_in_one_call(pool: WirePool) -> None:
    for i in range(10):
        booked(pool, f"c{i}")
    assert pool.call("release", "r1", *(f"c{i}" for i in range(12)), "c1") == 10
    assert pool.client.exists(pool.keys.charges, pool.keys.router_charges("r1")) == 0


def test_booking_a_charge_again_replaces_it(pool: WirePool) -> None:
    booked(pool, tokens=60_000)
    got = booked(pool, tokens=1000)
    assert pool.charges() == {f"f:{got.instance}": int(SPEED.prefill_s(1000, 0) * 1e6)}
    assert pool.call("release", "r1", "c1") == 1
    assert pool.charges() == {}


def test_bookings_spread_since_each_sees_the_one_before(pool: WirePool) -> None:
    chosen = [booked(pool, f"c{i}").instance for i in range(4)]
    assert sorted(chosen[:2]) == sorted(chosen[2:]) == ["w1", "w2"]


def test_overload_books_nothing_and_says_how_late(pool: WirePool) -> None:
    huge = ChoiceRequest(60_000, 512.0, 60.0)
    # The third is not of the pair: nobody is turned away while somebody is idle.
    for charge, instance in (("c1", "w1"), ("c2", "w2"), ("c3", "w3")):
        got = pool.route(route_call(NAMES, request=huge, charge=charge, max_wait_s=2.0))
        assert isinstance(got, Routed) and got.instance == instance
    before = pool.charges()
    got = pool.route(route_call(NAMES, request=huge, charge="late", max_wait_s=2.0))
    assert isinstance(got, Overload)
    assert got.wait_s == pytest.approx(SPEED.prefill_s(60_000, 0), abs=1e-6)
    assert pool.charges() == before


def tenants(pool: WirePool) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in NAMES:
        for tenant, us in pool.client.hgetall(pool.keys.tenants(name)).items():
            found[tenant.decode()] = found.get(tenant.decode(), 0) + int(us)
    return found


def test_a_charge_counts_for_the_tenant_that_its_id_names(pool: WirePool) -> None:
    booked(pool, "c1@acme", tokens=60_000)
    booked(pool, "c1@acme")
    booked(pool, "c2@acme", router="r2")
    booked(pool, "c3")
    own_us = int(SPEED.prefill_s(1000, 0) * 1e6)
    assert tenants(pool) == {"acme": 2 * own_us}
    pool.call("release", "r1", "c1@acme", "c1@acme")
    assert tenants(pool) == {"acme": own_us}
    pool.call("release", "r2", "c2@acme")
    assert not any(pool.client.exists(pool.keys.tenants(name)) for name in NAMES)


def test_what_a_tenant_sends_in_excess_turns_no_other_away(pool: WirePool) -> None:
    huge, small = ChoiceRequest(60_000, 512.0, 60.0), ChoiceRequest(1000, 512.0, 5.0)
    for number in range(9):
        assert isinstance(pool.route(route_call(NAMES, f"c{number}@flood", request=huge)), Routed)
    # 1. The flood is over its bound, and so is who has no turns to take.
    for charge in ("c9@flood", "c9"):
        assert isinstance(pool.route(route_call(NAMES, charge, request=small, max_wait_s=2.0)), Overload)
    # 2. Another tenant is not: the flood is served no more than it before it is.
    own_s = SPEED.prefill_s(1000, 0)
    got = pool.route(route_call(NAMES, "q0@quiet", request=small, max_wait_s=2.0))
    assert isinstance(got, Routed) and got.feasible
    assert (got.wait_s, got.ttft_s) == (pytest.approx(own_s, abs=2e-6), pytest.approx(2 * own_s, abs=2e-6))
    # 3. Its own excess turns itself away: twice what it has booked, by turns, is the bound.
    let_in = 1
    while isinstance(
        pool.route(route_call(NAMES, f"q{let_in}@quiet", request=small, max_wait_s=2.0)), Routed
    ):
        let_in += 1
        assert let_in < 100
    assert let_in == pytest.approx(2 * 2.0 / (2 * own_s), abs=3)


def test_a_router_whose_lease_expires_is_reaped(pool: WirePool) -> None:
    pool.members("r1", lease_ms=30)
    pool.members("r2")
    booked(pool, "c1", "r1")
    kept = booked(pool, "c2", "r2")
    fence = pool.lead("leader")
    deadline = time.monotonic() + 5
    while (reaped := pool.call("reap", fence)) == [0, 0, 0]:
        assert time.monotonic() < deadline
    assert reaped == [1, 1, 0]
    assert list(pool.charges()) == [f"f:{kept.instance}"]
    assert pool.client.smembers(pool.keys.routers) == {b"r2"}


def test_a_router_that_was_reaped_while_it_stalled_can_be_reaped_again(pool: WirePool) -> None:
    fence = pool.lead("leader")
    booked(pool)
    assert pool.call("reap", fence) == [1, 1, 0]
    # It wakes up, books before its next poll, and dies.
    booked(pool)
    assert pool.call("reap", fence) == [1, 1, 0]
    assert pool.charges() == {}


class ChargeMachine(RuleBasedStateMachine):
    """Any interleaving of routers, reaps, flushes and restarts; the sums hold after each step."""

    pool: WirePool

    @initialize()
    def begin(self) -> None:
        self.pool.client.flushall()
        self.held: dict[tuple[str, str], str] = {}
        self.fence = self.pool.lead("leader")
        for name in NAMES:
            self.pool.register(name)

    routers = st.sampled_from(ROUTERS)
    ids = st.sampled_from(["c1", "c2", "c3@acme", "c4@acme", "c5@other"])

    @rule(router=routers, charge=ids, tokens=st.integers(1, 80_000))
    def book(self, router: str, charge: str, tokens: int) -> None:
        self.held[router, charge] = booked(self.pool, charge, router, tokens).instance

    @rule(
        router=routers,
        charges=st.lists(ids, max_size=3),
        kind=st.sampled_from("fi"),
        us=st.integers(1, 10**8),
        name=st.sampled_from(NAMES),
    )
    def book_what_was_decided_alone(
        self, router: str, charges: list[str], kind: str, us: int, name: str
    ) -> None:
        flat = [arg for charge in charges for arg in (charge, kind, us, name)]
        assert self.pool.call("book", router, *flat) == len(charges)
        self.held |= {(router, charge): name for charge in charges}

    @rule(router=routers, charges=st.lists(ids, max_size=5))
    def release(self, router: str, charges: list[str]) -> None:
        gone = [self.held.pop((router, charge), None) for charge in charges]
        assert self.pool.call("release", router, *charges) == sum(name is not None for name in gone)

    @rule(router=routers)
    def poll(self, router: str) -> None:
        self.pool.members(router)

    @rule(router=routers)
    def router_dies_and_is_reaped(self, router: str) -> None:
        known = {r.decode() for r in self.pool.client.smembers(self.pool.keys.routers)}
        live = {r for r in ROUTERS if r != router and self.pool.client.exists(self.pool.keys.router_lease(r))}
        self.pool.client.delete(self.pool.keys.router_lease(router))
        dead = known - live
        lost = [key for key in self.held if key[0] in dead]
        assert self.pool.call("reap", self.fence) == [len(dead), len(lost), 0]
        for key in lost:
            del self.held[key]

    @rule(name=st.sampled_from(NAMES))
    def instance_dies_and_is_reaped(self, name: str) -> None:
        for router in ROUTERS:
            self.pool.members(router)
        had = self.pool.client.hexists(self.pool.keys.instances, name)
        self.pool.client.delete(self.pool.keys.instance_lease(name))
        # Its charges stay until their routers release or resubmit them.
        assert self.pool.call("reap", self.fence) == [0, 0, int(had)]

    @rule(name=st.sampled_from(NAMES), generation=st.integers(1, 3))
    def register(self, name: str, generation: int) -> None:
        self.pool.register(name, generation)

    @rule()
    @precondition(lambda self: self.held)
    def flush(self) -> None:
        self.pool.client.flushall()
        self.held.clear()
        fence = self.pool.lead("leader")
        assert fence > self.fence
        self.fence = fence
        for name in NAMES:
            self.pool.register(name)

    @invariant()
    def totals_are_the_sums_of_the_routers(self) -> None:
        sums: dict[str, int] = {}
        by_tenant: dict[str, int] = {}
        held = {}
        for router in ROUTERS:
            for charge, (kind, us, instance) in self.pool.router_charges(router).items():
                sums[f"{kind}:{instance}"] = sums.get(f"{kind}:{instance}", 0) + us
                held[router, charge] = instance
                if "@" in charge:
                    tenant = charge.partition("@")[2]
                    by_tenant[tenant] = by_tenant.get(tenant, 0) + us
        assert held == self.held
        assert tenants(self.pool) == by_tenant
        assert self.pool.charges() == sums
        known = {r.decode() for r in self.pool.client.smembers(self.pool.keys.routers)}
        assert {router for router, _ in held} <= known

    def teardown(self) -> None:
        if not hasattr(self, "held"):
            return
        for router, charge in self.held:
            assert self.pool.call("release", router, charge) == 1
        names = [self.pool.keys.charges, *(self.pool.keys.router_charges(router) for router in ROUTERS)]
        assert self.pool.client.exists(*names) == 0


def test_any_interleaving(store: EmbeddedStore) -> None:
    with redis.Redis.from_url(store.url) as client:
        pool = WirePool(client)

        class Machine(ChargeMachine):
            pass

        Machine.pool = pool
        run_state_machine_as_test(Machine, settings=settings(max_examples=40, stateful_step_count=30))
