"""Deficit longest prefix match: tenants are served alike, and the cache decides inside of that."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap.queue_order import NO_DEFICITS, Deficits, OrderRule, QueuedRequest, charge, order
from tests.core.test_queue_order import NOW_S, QUEUES, names, queued

RULE = OrderRule("dlpm", quantum_s=2.0)


def request(name: str, tenant: str, own_s: float = 1.0, cached: int = 0, priority: int = 0) -> QueuedRequest:
    return queued(name, 1.0, own_s, cached=cached, priority=priority, tenant=tenant)


def serve(
    queue: Sequence[QueuedRequest], deficits: Deficits = NO_DEFICITS, rule: OrderRule = RULE, num: int | None = None
) -> tuple[list[QueuedRequest], Deficits]:  # fmt: skip
    """One after the other, as a queue's owner does it."""
    waiting, served = list(queue), []
    while waiting and len(served) != num:
        head = order(waiting, NOW_S, 0.0, rule, deficits)[0].request
        deficits = charge(deficits, head, waiting, NOW_S, rule)
        waiting.remove(head)
        served.append(head)
    return served, deficits


X3 = [request(name, "x", cached=9) for name in "abc"]
CASES = {
    "one tenant: longest prefix": ([request("b", "x"), request("a", "x", cached=5)], {}, "ab"),
    "a quantum each in turn": ([*X3, *(request(n, "y") for n in "pqr")], {}, "abpqcr"),
    "the cache decides who is first of those in credit": (
        [request("a", "x", cached=3), request("p", "y", cached=4)], {}, "pa"
    ),
    "what is left counts": ([*X3, request("p", "y")], {"x": 0.5}, "abcp"),
    "a debt lasts over rounds": ([*X3, *(request(n, "y") for n in "pqrs")], {"x": -3.0}, "pqarsbc"),
    "nobody waits for a debt alone": (X3, {"x": -100.0}, "abc"),
    "a class is not served for another's sake": (
        [request("a", "x"), request("p", "y", priority=1)], {"x": -9.0, "y": 1.0}, "ap"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("queue", "left_s", "expected"), CASES.values(), ids=CASES)
def test_table(queue: list[QueuedRequest], left_s: dict[str, float], expected: str) -> None:
    assert names(order(queue, NOW_S, 0.0, RULE, Deficits(left_s))) == expected


def test_charges() -> None:
    x, y = request("a", "x", own_s=3.0), request("p", "y")
    # 1. Nobody has anything left: a round, then the charge.
    assert charge(NO_DEFICITS, x, [x, y], NOW_S, RULE) == Deficits({"x": -1.0, "y": 2.0})
    # 2. Somebody has: no round.
    assert charge(Deficits({"x": -1.0, "y": 2.0}), y, [x, y], NOW_S, RULE) == Deficits({"x": -1.0, "y": 1.0})
    # 3. Who does not wait loses what was left and keeps a debt, which rounds pay off.
    assert charge(Deficits({"z": 1.0, "w": -3.0}), x, [x], NOW_S, RULE) == Deficits({"x": -1.0, "w": -1.0})
    assert charge(Deficits({"x": -1.0, "w": -1.0}), x, [x], NOW_S, RULE) == Deficits({"x": -2.0})
    # 4. As many rounds as it takes.
    assert charge(Deficits({"x": -8.0}), x, [x], NOW_S, RULE) == Deficits({"x": -1.0})
    # 5. A lower class waits elsewhere: it has no part in the round, and what it had left is lost.
    assert charge(Deficits({"y": 1.0}), x, [x, request("p", "y", priority=1)], NOW_S, RULE) == Deficits(
        {"x": -1.0}
    )


@pytest.mark.parametrize("name", ["fcfs", "longest-prefix", "edf"])
def test_other_orders_count_nothing(name: str) -> None:
    assert charge(NO_DEFICITS, X3[0], X3, 0.0, OrderRule(name)) is NO_DEFICITS


LEFT = st.dictionaries(st.sampled_from("xyzw"), st.integers(-40, 8).map(lambda n: n / 4))


@given(queue=QUEUES, left_s=LEFT, quantum_s=st.sampled_from([0.25, 1.0, 8.0]))
def test_the_order_is_what_happens_if_nobody_else_arrives(
    queue: list[QueuedRequest], left_s: dict[str, float], quantum_s: float
) -> None:
    rule = OrderRule("dlpm", quantum_s=quantum_s)
    # Sums of quarters are exact, so that the two agree to the last bit.
    queue = [request(r.request_id, r.tenant, int(r.own_s * 4) / 4, r.cached_tokens) for r in queue]
    served, _ = serve(queue, Deficits(left_s), rule)
    assert [e.request for e in order(queue, NOW_S, 0.0, rule, Deficits(left_s))] == served


BACKLOG = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 3)), min_size=1, max_size=12)


@given(ours=BACKLOG, theirs=BACKLOG, quantum_s=st.sampled_from([0.5, 1.0, 4.0]))
def test_two_tenants_that_wait_are_served_alike(
    ours: list[tuple[int, int]], theirs: list[tuple[int, int]], quantum_s: float
) -> None:
    """At any time while both wait: within a quantum, and one request that overdraws it."""
    rule = OrderRule("dlpm", quantum_s=quantum_s)
    queue = [
        request(f"{tenant}{i}", tenant, own / 4, cached)
        for tenant, backlog in (("x", ours), ("y", theirs))
        for i, (own, cached) in enumerate(backlog)
    ]
    longest_s = max(r.own_s for r in queue)
    left, got_s = Counter(r.tenant for r in queue), Counter({"x": 0.0, "y": 0.0})
    for entry in order(queue, NOW_S, 0.0, rule):
        if min(left.values()) == 0:
            break
        left[entry.request.tenant] -= 1
        got_s[entry.request.tenant] += entry.request.own_s
        assert abs(got_s["x"] - got_s["y"]) <= quantum_s + longest_s


@pytest.mark.parametrize("num", range(1, 40))
def test_equal_backlogs_get_equal_service_within_one_quantum(num: int) -> None:
    """... whatever the cache says, when requests fit the quantum."""
    queue = [request(f"{t}{i:02}", t, 0.5, cached) for t, cached in (("x", 9), ("y", 0)) for i in range(20)]
    served, _ = serve(queue, num=num)
    got = Counter(r.tenant for r in served)
    assert abs(got["x"] - got["y"]) * 0.5 <= RULE.quantum_s


@given(queue=QUEUES, left_s=LEFT)
def test_the_value_stays_small(queue: list[QueuedRequest], left_s: dict[str, float]) -> None:
    """Nobody has more than a quantum left, and nobody who does not wait has anything."""
    served, deficits = serve(queue, Deficits(left_s))
    if served:
        assert all(seconds <= RULE.quantum_s for seconds in deficits.left_s.values())
        assert all(
            seconds < 0.0 or tenant == served[-1].tenant for tenant, seconds in deficits.left_s.items()
        )
