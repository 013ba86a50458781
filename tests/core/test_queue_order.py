"""The order of an admission queue: who can be in time goes first, and nobody waits for ever."""

import random
from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap.errors import UnknownOrderError
from dualmap.queue_order import (
    NO_DEFICITS,
    ORDERS,
    Ordered,
    OrderName,
    OrderRule,
    QueuedRequest,
    charge,
    order,
)

NOW_S = 1000.0
RULE = OrderRule()


def queued(
    name: str, age_s: float, own_s: float = 1.0, slo_s: float = 5.0, cached: int = 0, priority: int = 0,
    prompt: int = 0, tenant: str = "",
) -> QueuedRequest:  # fmt: skip
    return QueuedRequest(name, NOW_S - age_s, own_s, slo_s, cached, priority, prompt, tenant)


def names(ordered: Sequence[Ordered]) -> str:
    return "".join(entry.request.request_id for entry in ordered)


CASES = {
    "empty": ([], 0.0, ""),
    "arrival order": ([queued("b", 1), queued("a", 2), queued("c", 0)], 0.0, "abc"),
    "late ones last": ([queued("a", 2, own_s=9), queued("b", 1)], 0.0, "ba"),
    "late among themselves in arrival order": (
        [queued("a", 3, own_s=9), queued("b", 1), queued("c", 2, own_s=9)], 0.0, "bac"
    ),
    "late by what the engine has in hand": ([queued("a", 2), queued("b", 0)], 3.5, "ba"),
    "late by what is ahead": ([queued("a", 1, own_s=3), queued("b", 1, own_s=3, slo_s=4.9)], 0.0, "ab"),
    "no earliest deadline first": ([queued("a", 1, slo_s=9), queued("b", 0, slo_s=2.5)], 0.0, "ab"),
    "one that does not fit leaves room for the next": (
        [queued("a", 2, own_s=2), queued("b", 1, own_s=3), queued("c", 0, own_s=2)], 0.0, "acb"
    ),
    "longer cached prefix first among equals": ([queued("a", 1), queued("b", 1, cached=100)], 0.0, "ba"),
    "request id last": ([queued("b", 1), queued("a", 1)], 0.0, "ab"),
    "priority above all": ([queued("a", 9, priority=1), queued("b", 1, own_s=90)], 0.0, "ba"),
    "negative priority": ([queued("a", 2), queued("b", 1, priority=-1)], 0.0, "ba"),
    "an aged late one first": ([queued("a", 2), queued("b", 60, own_s=1)], 0.0, "ba"),
    "not yet aged": ([queued("a", 2), queued("b", 59.9, own_s=1)], 0.0, "ab"),
    "the oldest of the aged": ([queued("a", 61), queued("c", 0), queued("b", 62)], 0.0, "bca"),
    "aged ones in arrival order": ([queued("a", 61), queued("c", 7), queued("b", 62)], 0.0, "bac"),
    "aged and in time keeps its place": ([queued("a", 61, slo_s=100), queued("b", 62, slo_s=100)], 0.0, "ba"),
    "aging stays within its class": ([queued("a", 99, priority=1), queued("b", 1)], 0.0, "ba"),
}  # fmt: skip


@pytest.mark.parametrize(("queue", "busy_s", "expected"), CASES.values(), ids=CASES)
def test_table(queue: list[QueuedRequest], busy_s: float, expected: str) -> None:
    assert names(order(queue, NOW_S, busy_s, RULE)) == expected


def test_expected_ttft_counts_from_arrival() -> None:
    ordered = order([queued("a", 2, 1.5), queued("b", 1, 2.0)], NOW_S, 0.25, RULE)
    assert [entry.ttft_s for entry in ordered] == [pytest.approx(3.75), pytest.approx(4.75)]
    assert [entry.feasible for entry in ordered] == [True, True]


def test_every_name_has_an_order_and_any_other_names_the_known_ones() -> None:
    assert tuple(ORDERS) == get_args(OrderName)
    with pytest.raises(UnknownOrderError, match="'lifo' is not one of late-last, fcfs, edf"):
        order([], NOW_S, 0.0, OrderRule("lifo"))


TIMES = st.integers(0, 400).map(lambda quarter: quarter / 4)
QUEUES = st.lists(
    st.builds(
        queued,
        st.uuids().map(str),
        age_s=TIMES,
        own_s=TIMES.map(lambda t: t / 10),
        slo_s=st.sampled_from([0.5, 5.0, 30.0, 200.0]),
        cached=st.integers(0, 3),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        prompt=st.sampled_from([0, 100, 600, 20_000]),
        tenant=st.sampled_from("xyz"),
    ),
    max_size=12,
)
RULES = st.builds(OrderRule, st.sampled_from(list(ORDERS)), st.sampled_from([0.0, 10.0, 60.0]))
EPSILON_S = 1e-6


@given(queue=QUEUES, busy_s=TIMES, rule=RULES, shuffle=st.randoms(use_true_random=False))
def test_the_order_is_a_permutation_that_ignores_how_the_queue_was_held(
    queue: list[QueuedRequest], busy_s: float, rule: OrderRule, shuffle: random.Random
) -> None:
    ordered = order(queue, NOW_S, busy_s, rule)
    assert sorted(e.request.request_id for e in ordered) == sorted(r.request_id for r in queue)
    shuffled = list(queue)
    shuffle.shuffle(shuffled)
    assert order(shuffled, NOW_S, busy_s, rule) == ordered
    priorities = [e.request.priority for e in ordered]
    assert priorities == sorted(priorities)


@given(queue=QUEUES, busy_s=TIMES, rule=RULES)
def test_ttfts_add_up_and_the_feasible_flag_is_true(
    queue: list[QueuedRequest], busy_s: float, rule: OrderRule
) -> None:
    ready_s = NOW_S + busy_s
    for entry in order(queue, NOW_S, busy_s, rule):
        ready_s += entry.request.own_s
        assert entry.ttft_s == pytest.approx(ready_s - entry.request.arrival_s)
        slack_s = entry.request.slo_s - entry.ttft_s
        if abs(slack_s) > EPSILON_S:
            assert entry.feasible == (slack_s > 0)


def by_class(ordered: Sequence[Ordered]) -> list[list[Ordered]]:
    classes: dict[int, list[Ordered]] = {}
    for entry in ordered:
        classes.setdefault(entry.request.priority, []).append(entry)
    return list(classes.values())


@given(queue=QUEUES, busy_s=TIMES, bound_s=st.sampled_from([10.0, 60.0]))
def test_feasible_before_late_but_for_the_aged(
    queue: list[QueuedRequest], busy_s: float, bound_s: float
) -> None:
    rule = OrderRule(age_bound_s=bound_s, tenant_fairness=False)
    for entries in by_class(order(queue, NOW_S, busy_s, rule)):
        flags = [e.feasible for e in entries]
        first = flags.index(True) if True in flags else len(flags)
        ages = [NOW_S - e.request.arrival_s for e in entries]
        if True in flags:
            # 1. Only aged requests are ahead of the first feasible one, and feasible ones have no gap.
            assert all(age >= bound_s for age in ages[:first])
            assert flags[first:] == sorted(flags[first:], reverse=True)
        # 2. Arrival order among the feasible, and among the late behind them.
        feasible = [e.request.arrival_s for e in entries if e.feasible]
        assert feasible == sorted(feasible)
        if True in flags:
            behind = [e.request.arrival_s for e in entries[first:] if not e.feasible]
            assert behind == sorted(behind)


@given(queue=QUEUES, busy_s=TIMES)
def test_fcfs_is_arrival_order_within_a_class(queue: list[QueuedRequest], busy_s: float) -> None:
    for entries in by_class(order(queue, NOW_S, busy_s, OrderRule("fcfs"))):
        keys = [(e.request.arrival_s, -e.request.cached_tokens, e.request.request_id) for e in entries]
        assert keys == sorted(keys)


@given(queue=QUEUES, busy_s=TIMES)
def test_late_last_serves_at_least_as_many_in_time_as_fcfs_head_of_line(
    queue: list[QueuedRequest], busy_s: float
) -> None:
    """A late request never costs a feasible one its objective: drop the late ones, nothing gets worse."""
    ordered = order(queue, NOW_S, busy_s, OrderRule(age_bound_s=1e9))
    for entries in by_class(ordered)[:1]:
        alone = [e.request for e in entries if e.feasible]
        assert all(e.feasible for e in order(alone, NOW_S, busy_s, OrderRule(age_bound_s=1e9)))


@pytest.mark.parametrize("age_bound_s", [5.0, 20.0])
def test_nobody_starves_under_endless_feasible_load(age_bound_s: float) -> None:
    """One server, always enough feasible work to fill it: late requests still go when they reach the bound."""
    rule = OrderRule(age_bound_s=age_bound_s)
    queue = [QueuedRequest(f"late{i}", 0.0, 2.0, 0.5) for i in range(3)]
    served_at: dict[str, float] = {}
    now_s, arrived = 0.0, 0
    while now_s < 60.0:
        while arrived <= now_s / 0.5:
            queue.append(QueuedRequest(f"r{arrived}", arrived * 0.5, 0.5, 4.0))
            arrived += 1
        head = order(queue, now_s, 0.0, rule)[0].request
        queue.remove(head)
        served_at[head.request_id] = now_s
        now_s += head.own_s
    for i in range(3):
        assert age_bound_s <= served_at[f"late{i}"] <= age_bound_s + 3 * 2.0 + 0.5


def test_aged_requests_take_turns_with_those_that_can_be_in_time() -> None:
    """Two pools of work that never end: the aged ones get their share of the time, and no more."""
    rule = OrderRule(aged_share=0.25)
    deficits = NO_DEFICITS
    served = {"aged": 0.0, "fresh": 0.0}
    for turn in range(400):
        queue = [queued(f"{turn}old", 100, own_s=6.0), queued(f"{turn}new", 0, own_s=1.0)]
        first = order(queue, NOW_S, 0.0, rule, deficits)[0].request
        deficits = charge(deficits, first, queue, NOW_S, rule)
        served["aged" if first is queue[0] else "fresh"] += first.own_s
    assert served["aged"] / sum(served.values()) == pytest.approx(0.25, abs=0.02)


def test_aged_requests_have_all_the_time_that_nobody_else_needs() -> None:
    deficits = NO_DEFICITS
    queue = [queued("a", 100, own_s=6.0), queued("b", 99, own_s=6.0)]
    for first, rest in ((queue[0], queue), (queue[1], queue[1:])):
        assert order(rest, NOW_S, 0.0, RULE, deficits)[0].request is first
        deficits = charge(deficits, first, rest, NOW_S, RULE)
    # Nobody else waited, so nothing is owed to whoever comes.
    assert names(order([queued("c", 98), queued("d", 0)], NOW_S, 0.0, RULE, deficits)) == "cd"
