"""Preemption: a late prefill gives way to a request that can be in time, and to nothing else."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap.preempt import (
    Line,
    Preemption,
    PreemptRule,
    RunningRequest,
    computed_tokens,
    order_behind,
    plan_preemption,
    split,
)
from dualmap.queue_order import ORDERS, OrderRule, QueuedRequest
from dualmap.ttft import DEFAULT_SPEED

NOW_S = 1000.0
ORDER = OrderRule()
RULE = PreemptRule()


def queued(
    name: str, age_s: float = 0.0, own_s: float = 1.0, slo_s: float = 5.0, priority: int = 0
) -> QueuedRequest:
    return QueuedRequest(name, NOW_S - age_s, own_s, slo_s, 0, priority)


def running(
    name: str = "v", age_s: float = 1.0, left_s: float = 20.0, ran_s: float = 1.0, times: int = 0, priority: int = 0,
    stop_s: float = 0.0,
) -> RunningRequest:  # fmt: skip
    return RunningRequest(queued(name, age_s, left_s, 5.0, priority), ran_s, times, stop_s)


def plan(
    line: list[RunningRequest], queue: list[QueuedRequest], order_rule: OrderRule = ORDER, rule: PreemptRule = RULE
) -> Preemption | None:  # fmt: skip
    return plan_preemption(split(line, NOW_S, order_rule, rule), queue, NOW_S, order_rule, rule)


GOOD = queued("good")
PLANS = {
    "a late prefill gives way": ([running()], [GOOD], Preemption("v", 0.0)),
    "nobody waits": ([running()], [], None),
    "nothing runs": ([], [GOOD], None),
    "one that can be in time is left alone": ([running(left_s=3.5)], [GOOD], None),
    "nobody who waits can be in time": ([running()], [queued("late", 4.5)], None),
    "in time but for what gives way": ([running()], [queued("tight", 3.9)], Preemption("v", 0.0)),
    "late behind what does not": (
        [running("first", left_s=0.2, ran_s=0.1), running("v", ran_s=0.0)], [queued("tight", 3.9)], None
    ),
    "not past half its age bound": ([running(age_s=30.0)], [GOOD], None),
    "nearly past it": ([running(age_s=29.9)], [GOOD], Preemption("v", 0.0)),
    "not for a little rest": ([running(age_s=9, left_s=0.25)], [GOOD], None),
    "for a little more": ([running(age_s=9, left_s=0.26)], [GOOD], Preemption("v", 0.0)),
    "not for what its last step leaves": ([running(age_s=9, left_s=0.7, stop_s=0.5)], [GOOD], None),
    "in time behind its last step": ([running(stop_s=0.5)], [queued("tight", 3.4)], Preemption("v", 0.0)),
    "late behind its last step": ([running(stop_s=0.5)], [queued("tight", 3.6)], None),
    "a run lasts a while": ([running(ran_s=0.1)], [GOOD], Preemption("v", 0.15)),
    "but not for ever": ([running(times=31)], [GOOD], Preemption("v", 0.0)),
    "and not for ever anew": ([running(times=32)], [GOOD], None),
    "only the head has computed something": (
        [running("first", left_s=1.0), running("v", ran_s=0.0)], [GOOD], None
    ),
    "a higher class goes first": ([running(priority=1)], [GOOD], Preemption("v", 0.0)),
    "a lower class does not": ([running(priority=-1)], [GOOD], None),
    "an aged one that waits is no reason": ([running()], [queued("aged", 70.0)], None),
}  # fmt: skip


@pytest.mark.parametrize(("line", "queue", "expected"), PLANS.values(), ids=PLANS)
def test_table(line: list[RunningRequest], queue: list[QueuedRequest], expected: Preemption | None) -> None:
    found = plan(line, queue)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert (found.request_id, found.after_s) == (expected.request_id, pytest.approx(expected.after_s))


def test_off_stops_nothing() -> None:
    assert plan([running()], [GOOD], rule=PreemptRule(enabled=False)) is None


@pytest.mark.parametrize("name", ORDERS)
def test_only_an_order_that_puts_the_late_last_stops_anything(name: str) -> None:
    assert (plan([running()], [GOOD], OrderRule(name)) is not None) == (name == "late-last")


def test_what_gives_way_is_in_nobodys_way_but_of_who_is_late_too() -> None:
    line = split([running(stop_s=0.5)], NOW_S, ORDER, RULE)
    assert (line.blocking_s, line.giving_way_s) == (0.5, 19.5)
    waiting = [queued("late", 0.5, own_s=6.0), GOOD]
    found = [(e.request.request_id, e.feasible) for e in order_behind(line, waiting, NOW_S, ORDER)]
    assert found == [("good", True), ("v", False), ("late", False)]


SECONDS = st.integers(0, 400).map(lambda quarter: quarter / 4)
NAMES = st.uuids().map(str)
QUEUED = st.builds(
    queued, NAMES, SECONDS, SECONDS.map(lambda t: t / 10), st.sampled_from([0.5, 5.0, 90.0]), st.sampled_from([0, 0, 1])
)  # fmt: skip
LINES = st.lists(
    st.builds(RunningRequest, QUEUED, st.just(0.0), st.integers(0, 40), st.just(0.0)), max_size=4
).flatmap(
    lambda line: SECONDS.map(
        lambda ran_s: [replace(entry, ran_s=ran_s, stop_s=entry.queued.own_s / 8) for entry in line[:1]] + line[1:]
    )
)  # fmt: skip
ANY_ORDER = st.builds(OrderRule, st.sampled_from(list(ORDERS)), st.sampled_from([10.0, 60.0]))
RULES = st.builds(
    PreemptRule, st.booleans(), st.sampled_from([0.1, 2.0]), st.sampled_from([0.25, 5.0]), st.sampled_from([1, 32])
)  # fmt: skip


@given(line=LINES, queue=st.lists(QUEUED, max_size=8), order_rule=ANY_ORDER, rule=RULES)
def test_who_is_preempted(
    line: list[RunningRequest], queue: list[QueuedRequest], order_rule: OrderRule, rule: PreemptRule
) -> None:
    found = plan(line, queue, order_rule, rule)
    if found is None:
        return
    # 1. Only where it is asked for, and only the head, which has computed something.
    assert rule.enabled and ORDERS[order_rule.order].puts_late_last
    victim = line[0]
    assert found.request_id == victim.queued.request_id
    assert victim.ran_s > 0.0 and victim.ran_s + found.after_s >= rule.min_run_s
    # 2. Late even if it went on, not aged, worth the abort, not stopped too often.
    assert NOW_S + victim.queued.own_s > victim.queued.arrival_s + victim.queued.slo_s
    assert NOW_S - victim.queued.arrival_s < 0.5 * order_rule.age_bound_s
    assert victim.queued.own_s > rule.min_s and victim.preemptions < rule.max_times
    # 3. For one of its class or a higher one, which is in time when it starts now and goes first.
    ordered = order_behind(split(line, NOW_S, order_rule, rule), queue, NOW_S, order_rule)
    names = [entry.request.request_id for entry in ordered]
    ahead = ordered[: names.index(found.request_id)]
    assert any(e.feasible and e.request.priority <= victim.queued.priority for e in ahead)


@given(line=LINES, queue=st.lists(QUEUED, max_size=8), order_rule=ANY_ORDER, rule=RULES)
def test_the_split_keeps_all_seconds_and_puts_nobody_in_time_behind_what_gives_way(
    line: list[RunningRequest], queue: list[QueuedRequest], order_rule: OrderRule, rule: PreemptRule
) -> None:
    parts = split(line, NOW_S, order_rule, rule)
    busy_s = sum(entry.queued.own_s for entry in line)
    assert parts.blocking_s + parts.giving_way_s == pytest.approx(busy_s)
    # What gives way stays behind every request of its class that is in time.
    ordered = order_behind(parts, queue, NOW_S, order_rule)
    for victim in parts.giving_way:
        place = next(i for i, e in enumerate(ordered) if e.request is victim.queued)
        behind = [e for e in ordered[place:] if e.request.priority == victim.queued.priority]
        assert not any(e.feasible for e in behind)


@given(
    uncached=st.integers(1, 100_000),
    cached=st.integers(0, 30_000),
    share=st.floats(0.0, 1.5),
)
def test_the_computed_part_is_never_overstated(uncached: int, cached: int, share: float) -> None:
    own_s = DEFAULT_SPEED.prefill_s(uncached, cached)
    done = computed_tokens(uncached, share * own_s, own_s)
    assert 0 <= done < uncached
    # So many tokens take no longer than it ran, but for the constant part, which comes first.
    spent_s = DEFAULT_SPEED.prefill_s(done, cached) - DEFAULT_SPEED.a_s
    assert spent_s <= share * own_s + 1e-9


def test_everybody_makes_progress_under_endless_feasible_load() -> None:
    """A long prefill and a stream of short ones on one engine: it ends soon after its age bound at the latest."""
    rule, long_s, own_s = PreemptRule(min_run_s=0.3), 20.0, 0.4
    now_s, left_s, times, short_done, arrivals = 0.0, long_s, 0, 0, 0
    waiting: list[QueuedRequest] = []
    while left_s > 0.0:
        while arrivals * 1.0 <= now_s:
            waiting.append(QueuedRequest(f"s{arrivals}", arrivals * 1.0, own_s, 5.0))
            arrivals += 1
        ran_s = 0.0
        while left_s > 0.0:
            now_s, left_s, ran_s = now_s + 0.1, left_s - 0.1, ran_s + 0.1
            while arrivals * 1.0 <= now_s:
                waiting.append(QueuedRequest(f"s{arrivals}", arrivals * 1.0, own_s, 5.0))
                arrivals += 1
            head = RunningRequest(QueuedRequest("long", 0.0, left_s, 5.0), ran_s, times)
            line: Line = split([head], now_s, ORDER, rule)
            found = plan_preemption(line, waiting, now_s, ORDER, rule)
            if found is not None and found.after_s <= 0.0:
                assert ran_s >= rule.min_run_s - 1e-9
                times += 1
                break
        if left_s > 0.0:
            short_done += len(waiting)
            now_s += own_s * len(waiting)
            waiting.clear()
    assert times > 5 and short_done > 10
    assert now_s < ORDER.age_bound_s + long_s
