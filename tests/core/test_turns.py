"""Turns of tenants over late-last: everybody has a share of the seconds, and one tenant alone sees nothing of it."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap.queue_order import NO_DEFICITS, Deficits, OrderRule, QueuedRequest, charge, give_back, order
from tests.core.test_queue_order import NOW_S, QUEUES, TIMES, names, queued

FAIR = OrderRule(quantum_s=1.0)
PLAIN = replace(FAIR, tenant_fairness=False)
NEVER_S = 1e9


def of(
    tenant: str, names: str, age_s: float = 1.0, own_s: float = 1.0, slo_s: float = 100.0
) -> list[QueuedRequest]:
    return [queued(name, age_s, own_s, slo_s, tenant=tenant) for name in names]


CASES = {
    "a quantum each in turn": ([*of("x", "abc", 2), *of("y", "pqr")], {}, "apbqcr"),
    "of those in credit arrival order decides": ([*of("x", "a", 1), *of("y", "p", 2)], {}, "pa"),
    "who has something left goes before who was there first": (
        [*of("x", "a", 9), *of("y", "p")], {"x": -1.0, "y": 0.5}, "pa"
    ),
    "late behind those in credit that can be in time": (
        [*of("x", "a", 9, slo_s=1), *of("y", "p")], {"x": 0.5, "y": 0.5}, "pa"
    ),
    "a lost cause has its turn too": (
        [*of("x", "a", 9, slo_s=1), *of("y", "p")], {"x": 0.5, "y": -0.5}, "ap"
    ),
    "each tenant's late behind its own": (
        [*of("x", "a", 9, slo_s=1), *of("x", "b"), *of("y", "pq", 0.5)], {}, "bpqa"
    ),
    "each tenant's oldest that has aged goes first in its turn": (
        [*of("x", "a", 70, slo_s=5), *of("x", "b"), *of("y", "p", 80, slo_s=5), *of("y", "q")], {}, "pabq"
    ),
    "a debt lasts over rounds": ([*of("x", "abc", 9), *of("y", "pqrs")], {"x": -3.0}, "pqrasbc"),
    "a class of its own": ([*of("x", "a"), replace(of("y", "p")[0], priority=1)], {"x": -9.0, "y": 1.0}, "ap"),
}  # fmt: skip


@pytest.mark.parametrize(("queue", "left_s", "expected"), CASES.values(), ids=CASES)
def test_table(queue: list[QueuedRequest], left_s: dict[str, float], expected: str) -> None:
    assert names(order(queue, NOW_S, 0.0, FAIR, Deficits(left_s))) == expected


def serve(queue: list[QueuedRequest], rule: OrderRule) -> tuple[list[str], list[Deficits]]:
    """One after the other, as a queue's owner does it, while time passes."""
    waiting, served, deficits, now_s = list(queue), list[str](), [NO_DEFICITS], NOW_S
    while waiting:
        head = order(waiting, now_s, 0.0, rule, deficits[-1])[0].request
        deficits.append(charge(deficits[-1], head, waiting, now_s, rule))
        waiting.remove(head)
        served.append(head.request_id)
        now_s += head.own_s
    return served, deficits


@given(
    queue=QUEUES, busy_s=TIMES, name=st.sampled_from(["", "x"]), bound_s=st.sampled_from([0.0, 10.0, 60.0])
)
def test_one_tenant_alone_is_served_as_if_there_were_no_turns(
    queue: list[QueuedRequest], busy_s: float, name: str, bound_s: float
) -> None:
    queue = [replace(request, tenant=name) for request in queue]
    fair, plain = replace(FAIR, age_bound_s=bound_s), replace(PLAIN, age_bound_s=bound_s)
    assert order(queue, NOW_S, busy_s, fair) == order(queue, NOW_S, busy_s, plain)
    (served, counted), (expected, _) = serve(queue, fair), serve(queue, plain)
    assert served == expected
    assert name or not any(deficits.left_s for deficits in counted)


@given(queue=QUEUES)
def test_without_turns_tenants_are_nothing(queue: list[QueuedRequest]) -> None:
    served, counted = serve(queue, PLAIN)
    assert served == serve([replace(request, tenant="") for request in queue], FAIR)[0]
    assert not any(deficits.left_s for deficits in counted)


BACKLOG = st.lists(
    st.tuples(st.integers(1, 12), st.sampled_from([0.5, 5.0, 500.0]), st.sampled_from([0.0, 5.0, 70.0])),
    min_size=1, max_size=12,
)  # fmt: skip


@given(
    backlogs=st.lists(BACKLOG, min_size=2, max_size=4),
    quantum_s=st.sampled_from([0.25, 1.0, 4.0]),
    bound_s=st.sampled_from([10.0, NEVER_S]),
)
def test_over_any_window_who_waits_has_its_share(
    backlogs: list[list[tuple[int, float, float]]], quantum_s: float, bound_s: float
) -> None:
    """Late or not, aged or not: no tenant gets more than one that waits, but for a quantum and a request each."""
    rule = OrderRule(age_bound_s=bound_s, quantum_s=quantum_s)
    queue = [
        queued(f"{tenant}{i}", age_s, own / 4, slo_s, tenant=str(tenant))
        for tenant, backlog in enumerate(backlogs)
        for i, (own, slo_s, age_s) in enumerate(backlog)
    ]
    own_s = {request.request_id: request.own_s for request in queue}
    slack_s = 2 * (quantum_s + max(own_s.values()))
    served, _ = serve(queue, rule)
    left = Counter(request.tenant for request in queue)
    for begin in range(len(served)):
        got_s, waits = Counter[str](), Counter(left)
        for name in served[begin:]:
            got_s[name[0]] += own_s[name]
            waits[name[0]] -= 1
            for tenant in (tenant for tenant, num in waits.items() if num):
                assert max(got_s.values()) - got_s[tenant] <= slack_s + 1e-9
        left[served[begin][0]] -= 1


@given(queue=QUEUES, left_s=st.dictionaries(st.sampled_from("xyz"), st.integers(-40, 4).map(lambda n: n / 4)))
def test_nothing_is_left_out_and_the_counts_stay_small(
    queue: list[QueuedRequest], left_s: dict[str, float]
) -> None:
    ordered = order(queue, NOW_S, 0.0, FAIR, Deficits(left_s))
    assert sorted(e.request.request_id for e in ordered) == sorted(r.request_id for r in queue)
    served, counted = serve(queue, FAIR)
    assert len(served) == len(queue)
    for deficits in counted:
        assert set(deficits.left_s) | set(deficits.aged_owe_s) <= set("xyz")
        assert all(seconds <= FAIR.quantum_s for seconds in deficits.left_s.values())
        assert all(seconds > 0.0 for seconds in deficits.aged_owe_s.values())


def test_a_tenants_aged_requests_have_their_share_of_its_own_time() -> None:
    """Work that never ends, of two tenants: a quarter of x's time, and nothing of y's."""
    rule, deficits, served = OrderRule(aged_share=0.25), NO_DEFICITS, Counter[str]()
    for turn in range(1200):
        queue = [
            queued(f"{turn}old", 100, own_s=3.0, tenant="x"),
            queued(f"{turn}new", 0, own_s=0.5, slo_s=NEVER_S, tenant="x"),
            queued(f"{turn}yyy", 0, own_s=0.5, slo_s=NEVER_S, tenant="y"),
        ]
        first = order(queue, NOW_S, 0.0, rule, deficits)[0].request
        deficits = charge(deficits, first, queue, NOW_S, rule)
        served[first.request_id[-3:]] += int(first.own_s * 2)
    assert served["yyy"] / served.total() == pytest.approx(0.5, abs=0.02)
    assert served["old"] / (served["old"] + served["new"]) == pytest.approx(0.25, abs=0.03)


def test_nobody_starves_while_another_tenant_floods() -> None:
    """A late one of a quiet tenant against endless work in time: it has its turn, not only its age."""
    deficits = NO_DEFICITS
    late = queued("late", 20, own_s=3.0, tenant="quiet")
    for turn in range(10):
        queue = [late, *(queued(f"{turn}.{i}", 0, 0.5, tenant="flood") for i in range(8))]
        first = order(queue, NOW_S, 0.0, FAIR, deficits)[0].request
        if first is late:
            break
        deficits = charge(deficits, first, queue, NOW_S, FAIR)
    assert turn == 2


def test_what_a_preemption_leaves_undone_is_given_back() -> None:
    x = queued("a", 1, own_s=3.0, tenant="x")
    charged = charge(NO_DEFICITS, x, [x], NOW_S, FAIR)
    assert charged.left_s == {"x": -2.0}
    assert give_back(charged, replace(x, own_s=2.5), FAIR).left_s == {"x": 0.5}
    # Rounds may have paid it off meanwhile: nobody has more than a quantum.
    assert give_back(Deficits({"y": 0.5}), x, FAIR).left_s == {"y": 0.5, "x": 1.0}
    assert give_back(NO_DEFICITS, x, FAIR) is NO_DEFICITS
