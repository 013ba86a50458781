"""Membership: registered by heartbeat, versioned, forgotten when the lease is gone."""

import time

from tests.wire.pool import WirePool, perf


def test_a_registration_is_a_member(pool: WirePool) -> None:
    assert pool.register("w1", 7, b'{"a":1}') == 1
    version, now_us, member = pool.members()
    assert version == 1
    assert abs(now_us / 1e6 - time.time()) < 60
    assert member == [b"w1", b'{"a":1}', b"7", 1, b""]


def test_a_heartbeat_alone_does_not_change_the_version(pool: WirePool) -> None:
    assert [pool.register("w1") for _ in range(3)] == [1, 1, 1]
    assert pool.register("w1", registration=b'{"state":"draining"}') == 2
    assert pool.register("w2") == 3


def test_a_restart_drops_what_was_known_of_the_instance(pool: WirePool) -> None:
    pool.register("w1", 1)
    fence = pool.lead("leader")
    pool.fold(fence, ("w1", 1, perf()))
    pool.own_add("w1", [1, 2])
    pool.register("w1", 2, b'{"new":1}')
    (member,) = pool.members()[2:]
    assert member == [b"w1", b'{"new":1}', b"2", 1, b""]
    assert pool.owned("w1") == []


def test_of_two_that_share_a_name_the_later_start_holds_it(pool: WirePool) -> None:
    assert pool.register("w1", 9, b'{"old":1}') == 1
    assert pool.register("w1", 10, b'{"new":1}') == 2
    assert pool.register("w1", 9, b'{"old":1}') == -1
    assert pool.members()[2] == [b"w1", b'{"new":1}', b"10", 1, b""]
    assert pool.call("deregister", "w1", 9) == 0
    # Once the later one is gone, a clock that ran ahead keeps nobody out.
    pool.client.delete(pool.keys.instance_lease("w1"))
    assert pool.register("w1", 9, b'{"old":1}') == 3
    assert pool.members()[2] == [b"w1", b'{"old":1}', b"9", 1, b""]


def test_deregistering_leaves_nothing_but_the_version(pool: WirePool) -> None:
    pool.register("w1", 7)
    pool.fold(pool.lead("leader"), ("w1", 7, perf()))
    pool.own_add("w1", [1, 2], generation=7)
    assert pool.call("deregister", "w1", 6) == 0
    assert len(pool.members()) == 3
    assert pool.call("deregister", "w1", 7) == 1
    assert pool.call("deregister", "w1", 7) == 0
    assert pool.members()[0] == 2 and len(pool.members()) == 2
    left = {key.decode().removeprefix(pool.keys.prefix) for key in pool.client.scan_iter()}
    assert left == {"version", "fence", "leader"}


def test_an_expired_lease_shows_and_its_return_counts_as_a_change(pool: WirePool) -> None:
    pool.register("w1", lease_ms=20)
    deadline = time.monotonic() + 5
    while pool.members()[2][3] == 1:
        assert time.monotonic() < deadline
    assert pool.members()[0] == 1
    assert pool.register("w1") == 2
    assert pool.members()[2][3] == 1


def test_a_lost_instance_is_reaped(pool: WirePool) -> None:
    pool.register("w1")
    pool.register("w2")
    pool.own_add("w1", [1])
    pool.client.delete(pool.keys.instance_lease("w1"))
    assert pool.call("reap", pool.lead("leader")) == [0, 0, 1]
    version, _, *members = pool.members()
    assert version == 3
    assert [member[0] for member in members] == [b"w2"]
    assert pool.client.exists(pool.keys.own("w1")) == 0


def test_a_poll_renews_the_routers_lease(pool: WirePool) -> None:
    pool.members("r1", lease_ms=5000)
    assert pool.client.smembers(pool.keys.routers) == {b"r1"}
    assert 0 < pool.client.pttl(pool.keys.router_lease("r1")) <= 5000
    # Others may look without becoming a router.
    pool.members()
    assert pool.client.smembers(pool.keys.routers) == {b"r1"}


def test_pools_share_nothing(pool: WirePool) -> None:
    other = WirePool(pool.client, "q")
    pool.register("w1")
    assert other.members()[2:] == []
    assert other.register("w1", registration=b"q") == 1
    assert pool.members()[2][1] == b"{}"
