"""One rebalancer leads; one that was deposed changes nothing, however late its calls arrive."""

import time

from dualmap.types import PrefillSpeed
from dualmap_wire.redis_functions import parse_perf
from tests.wire.pool import SPEED, WirePool, perf, route_call


def stored(pool: WirePool, instance: str = "w1") -> bytes | None:
    packed: bytes | None = pool.client.hget(pool.keys.perf, instance)
    return packed


def test_one_leads_and_renews(pool: WirePool) -> None:
    fence = pool.lead("a")
    assert fence > 0
    assert pool.lead("b") == 0
    assert pool.lead("a") == fence
    assert 0 < pool.client.pttl(pool.keys.key("leader")) <= 60_000


def test_every_new_lead_has_a_larger_token(pool: WirePool) -> None:
    tokens = []
    for i in range(5):
        tokens.append(pool.lead(f"leader{i}"))
        assert pool.call("resign", f"leader{i}") == 1
    assert tokens == sorted(set(tokens))


def test_resigning_is_for_the_leader_only(pool: WirePool) -> None:
    fence = pool.lead("a")
    assert pool.call("resign", "b") == 0
    assert pool.lead("a") == fence
    assert pool.call("resign", "a") == 1
    assert pool.call("resign", "a") == 0
    assert pool.lead("b") > fence


def test_an_expired_lead_is_taken_over(pool: WirePool) -> None:
    fence = pool.lead("a", lease_ms=20)
    deadline = time.monotonic() + 5
    while not (taken := pool.lead("b")):
        assert time.monotonic() < deadline
    assert taken > fence


def test_tokens_grow_across_a_flush(pool: WirePool) -> None:
    # Workers refuse a token that is smaller than one they obeyed, and they outlive the store's memory.
    fence = pool.lead("a")
    pool.client.flushall()
    assert pool.lead("b") > fence


def test_a_deposed_leader_folds_and_reaps_nothing(pool: WirePool) -> None:
    pool.register("w1")
    pool.members("r1")
    pool.route(route_call(["w1"]))
    old = pool.lead("a")
    pool.call("resign", "a")
    new = pool.lead("b")
    for lease in (pool.keys.instance_lease("w1"), pool.keys.router_lease("r1")):
        pool.client.delete(lease)
    before = {key: pool.client.dump(key) for key in pool.client.scan_iter()}
    for fence in (old, 0, new + 1):
        assert pool.fold(fence, ("w1", 1, perf())) == -1
        assert pool.call("reap", fence) == [-1, 0, 0]
    assert {key: pool.client.dump(key) for key in pool.client.scan_iter()} == before
    assert pool.fold(new, ("w1", 1, perf())) == 1
    assert pool.call("reap", new) == [1, 1, 1]


def test_whoever_never_led_is_fenced_off_an_empty_store(pool: WirePool) -> None:
    assert pool.fold(0) == -1
    assert pool.call("reap", 0) == [-1, 0, 0]


def test_a_fold_is_dated_by_the_servers_clock(pool: WirePool) -> None:
    pool.register("w1")
    fence = pool.lead("a")
    speed = PrefillSpeed(0.0123456789, 1.0, 2.5e-9)
    report = perf(speed, "r1", "c1", elapsed_us=1_500_000, cost_us=2_000_000, feasible=False, held=True)
    assert pool.fold(fence, ("w1", 1, report)) == 1
    got = parse_perf(stored(pool) or b"")
    assert got is not None
    assert got.speed == speed
    assert (got.running_router, got.running_charge) == ("r1", "c1")
    assert (got.cost_us, got.feasible, got.held) == (2_000_000, False, True)
    assert got.reported_us - got.started_us == 1_500_000
    seconds, micros = pool.client.time()
    assert 0 <= seconds * 1_000_000 + micros - got.reported_us < 60_000_000


def test_a_fold_of_another_generation_is_ignored(pool: WirePool) -> None:
    pool.register("w1", 2)
    pool.register("w2", 1)
    fence = pool.lead("a")
    assert pool.fold(fence, ("w1", 1, perf()), ("w2", 1, perf()), ("gone", 1, perf())) == 1
    assert stored(pool, "w1") is None and stored(pool, "gone") is None
    assert stored(pool, "w2") is not None


def test_a_running_prefill_counts_until_its_charge_is_released(pool: WirePool) -> None:
    pool.register("w1")
    pool.route(route_call(["w1"], charge="c1", router="r1"))
    fence = pool.lead("a")
    assert pool.fold(fence, ("w1", 1, perf(SPEED, "r1", "c1", 50_000, 110_000))) == 1
    running = pool.views(["w1"])[0].running
    assert running is not None and running.elapsed_s >= 0.05 and running.cost_s == 0.11
    pool.call("release", "r1", "c1")
    assert pool.views(["w1"])[0].running is None
    assert pool.views(["w1"])[0].feasible_s == 0.0
