"""The orders beside late-last: who is next, by a table each; and what all of them owe."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap.queue_order import ORDERS, OrderRule, QueuedRequest, order
from tests.core.test_queue_order import NOW_S, QUEUES, TIMES, by_class, names, queued

CASES = {
    "fcfs: a late one keeps its place": ("fcfs", [queued("b", 1), queued("a", 2, own_s=9)], "ab"),
    "edf: deadline, not arrival": ("edf", [queued("a", 2, slo_s=9), queued("b", 1, slo_s=4)], "ba"),
    "edf: late ones too": ("edf", [queued("a", 1), queued("b", 9)], "ba"),
    "edf: one SLO is arrival order": ("edf", [queued("b", 1), queued("c", 0), queued("a", 2)], "abc"),
    "edf: ties by arrival": ("edf", [queued("b", 1, slo_s=4), queued("a", 2, slo_s=5)], "ab"),
    "shortest prefill": (
        "shortest-prefill", [queued("c", 9, own_s=3), queued("a", 1, own_s=1), queued("b", 5, own_s=2)], "abc"
    ),
    "shortest prefill: ties by arrival": ("shortest-prefill", [queued("b", 1), queued("a", 2)], "ab"),
    "longest prefix": (
        "longest-prefix", [queued("c", 9), queued("a", 1, cached=900), queued("b", 5, cached=20)], "abc"
    ),
    "longest prefix: ties by arrival": (
        "longest-prefix", [queued("b", 1, cached=7), queued("a", 2, cached=7)], "ab"
    ),
    "apt: the longer wait at equal blocks": ("apt", [queued("b", 1, prompt=400), queued("a", 2, prompt=100)], "ab"),
    "apt: the smaller prompt at equal waits": ("apt", [queued("b", 2, prompt=513), queued("a", 2, prompt=512)], "ab"),
    "apt: twice the wait makes up for twice the blocks": (
        "apt", [queued("a", 4, prompt=1024), queued("b", 2, prompt=512), queued("c", 3, prompt=1024)], "abc"
    ),
    "apt: past the SLO comes last": ("apt", [queued("b", 5.1), queued("a", 0.1, prompt=9000)], "ab"),
    "apt: at the SLO is not past it": ("apt", [queued("a", 5.0), queued("b", 0.1)], "ab"),
    "apt: hopeless but not past it keeps its place": ("apt", [queued("a", 4.5, own_s=9), queued("b", 1)], "ab"),
    "apt: density among the demoted": ("apt", [queued("b", 20, prompt=9000), queued("a", 10, prompt=9)], "ab"),
    "priority above all": ("shortest-prefill", [queued("b", 1, priority=1), queued("a", 0, own_s=9)], "ab"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "queue", "expected"), CASES.values(), ids=CASES)
def test_table(name: str, queue: list[QueuedRequest], expected: str) -> None:
    assert names(order(queue, NOW_S, 0.0, OrderRule(name))) == expected


@pytest.mark.parametrize(("name", "feasible"), [("fcfs", [False, False]), ("late-last", [True, False])])
def test_feasible_is_in_time_at_its_place(name: str, feasible: list[bool]) -> None:
    ordered = order([queued("a", 2, own_s=9), queued("b", 1)], NOW_S, 0.0, OrderRule(name))
    assert [entry.feasible for entry in ordered] == feasible


@given(queue=QUEUES, busy_s=TIMES)
def test_apt_puts_everybody_past_the_slo_behind_the_others(queue: list[QueuedRequest], busy_s: float) -> None:
    for entries in by_class(order(queue, NOW_S, busy_s, OrderRule("apt"))):
        past = [NOW_S - e.request.arrival_s > e.request.slo_s for e in entries]
        assert past == sorted(past)


@given(queue=QUEUES, busy_s=TIMES, name=st.sampled_from([n for n, d in ORDERS.items() if d.puts_late_last]))
def test_who_puts_late_last_lets_nobody_late_pass_before_it_has_aged(
    queue: list[QueuedRequest], busy_s: float, name: str
) -> None:
    rule = OrderRule(name, age_bound_s=1e9, tenant_fairness=False)
    for entries in by_class(order(queue, NOW_S, busy_s, rule)):
        flags = [entry.feasible for entry in entries]
        assert flags == sorted(flags, reverse=True)


@given(queue=QUEUES)
def test_without_prompts_tenants_or_prefixes_the_others_are_arrival_order(queue: list[QueuedRequest]) -> None:
    alike = [
        queued(r.request_id, NOW_S - r.arrival_s, slo_s=200.0, cached=1, priority=r.priority) for r in queue
    ]
    fcfs = names(order(alike, NOW_S, 0.0, OrderRule("fcfs")))
    for name in ORDERS:
        assert names(order(alike, NOW_S, 0.0, OrderRule(name))) == fcfs
