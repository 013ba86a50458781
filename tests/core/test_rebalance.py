"""Rebalancing: only moves that pay, once each, off hot instances only."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap.queue_order import Deficits, Ordered, OrderRule, QueuedRequest, order
from dualmap.rebalance import InstanceQueue, Move, QueuedWork, RebalanceRule, is_hot, plan_moves
from dualmap.types import PrefillSpeed

NOW_S = 1000.0
FLAT = PrefillSpeed(0.0, 1e-3, 0.0)
RULE = RebalanceRule()


def work(
    name: str,
    age_s: float = 0.0,
    own_s: float = 1.0,
    backup: str | None = "b",
    cached: int = 0,
    movable: bool = True,
    feasible: bool = True,
    slo_s: float = 5.0,
) -> QueuedWork:
    """A request of 1,000 tokens: one second where nothing is cached."""
    return QueuedWork(
        QueuedRequest(name, NOW_S - age_s, own_s, slo_s), 1000, backup, cached, feasible, movable
    )


def queue(name: str, *works: QueuedWork, busy_s: float = 0.0, accepts: bool = True) -> InstanceQueue:
    return InstanceQueue(name, FLAT, busy_s, works, accepts)


def hot(name: str = "a", count: int = 8) -> InstanceQueue:
    return queue(name, *(work(f"{name}{i}", age_s=1 - i / 100) for i in range(count)))


def plan(
    *queues: InstanceQueue, rule: RebalanceRule = RULE, last: dict[str, float] | None = None
) -> list[Move]:
    return plan_moves(queues, rule, NOW_S, last)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (queue("a"), False),
        (queue("a", busy_s=99), False),  # nothing to move
        (queue("a", *[work(str(i)) for i in range(5)]), False),
        (queue("a", *[work(str(i)) for i in range(6)]), True),
        (queue("a", work("r"), busy_s=4.5), True),
        (queue("a", *[work(str(i), feasible=False) for i in range(9)]), False),
        (queue("a", work("r", age_s=3.0)), False),
        (queue("a", work("r", age_s=3.1)), True),
        (queue("a", work("r", age_s=3.1, feasible=False)), False),
    ],
)
def test_is_hot(seen: InstanceQueue, expected: bool) -> None:
    assert is_hot(seen, RULE, NOW_S) is expected


def test_nothing_leaves_a_cool_instance_however_well_it_would_pay() -> None:
    assert plan(queue("a", *[work(str(i)) for i in range(5)]), queue("b")) == []


def test_the_batch_stops_when_the_instance_is_expected_to_hold_its_slo() -> None:
    moves = plan(hot(count=8), queue("b"), queue("c"))
    assert len(moves) == 3
    left = 8 - len(moves)
    assert not is_hot(queue("a", *[work(str(i)) for i in range(left)]), RULE, NOW_S)


def test_the_largest_benefit_goes_first() -> None:
    # The last in line has waited through all others.
    assert [m.request_id for m in plan(hot(count=6), queue("b"))] == ["a5"]


def test_benefit_counts_only_work_ahead() -> None:
    (move,) = plan(hot(count=6), queue("b", busy_s=0.5))
    age_s = 1 - 5 / 100
    assert (move.request_id, move.source, move.target) == ("a5", "a", "b")
    assert move.benefit_s == pytest.approx((age_s + 6.0) - (age_s + 0.5 + 1.0))


@pytest.mark.parametrize(
    ("b", "c", "expected"),
    [
        (queue("b", busy_s=1.0), queue("c"), "b"),  # the other candidate, even if another is quicker
        (queue("b", busy_s=4.0), queue("c"), "c"),  # unless it cannot hold the SLO
        (queue("b", accepts=False), queue("c"), "c"),
        (queue("b", accepts=False), queue("c", accepts=False), None),
        (queue("b", busy_s=4.0), queue("c", busy_s=4.0), None),
    ],
)
def test_the_other_candidate_goes_first(b: InstanceQueue, c: InstanceQueue, expected: str | None) -> None:
    moves = plan(hot(count=6), b, c)
    assert [m.target for m in moves] == ([expected] if expected else [])


def test_without_the_other_candidate_the_soonest_answer_wins_ties_by_name() -> None:
    lone = queue("a", *(work(f"a{i}", backup=None) for i in range(6)))
    assert plan(lone, queue("d"), queue("c"), queue("e", busy_s=0.1))[0].target == "c"
    gone = queue("a", *(work(f"a{i}", backup="gone") for i in range(6)))
    assert plan(gone, queue("d"), queue("c", busy_s=0.1))[0].target == "d"


def test_only_the_other_candidate_may_be_warm() -> None:
    # b is blocked for 3.8 s: only a warm prefix (0.1 s instead of 1 s) still meets the SLO there.
    for cached, target in ((900, "b"), (0, "c")):
        kept = (work(f"a{i}", age_s=1, movable=False) for i in range(5))
        source = queue("a", *kept, work("r", age_s=1, cached=cached))
        assert plan(source, queue("b", busy_s=3.8), queue("c"))[0].target == target


def test_a_move_must_gain_more_than_the_margin() -> None:
    source = queue("a", work("r", age_s=3.2), busy_s=0.0)  # hot by age, first in line
    assert plan(source, queue("b")) == []
    slow = queue("a", work("r", age_s=3.2), busy_s=0.3)
    assert [m.request_id for m in plan(slow, queue("b"))] == ["r"]
    assert plan(slow, queue("b"), rule=RebalanceRule(margin_s=0.3)) == []


def test_what_a_move_would_compute_again_counts_as_in_the_choice() -> None:
    # Behind 4 s of others it would take 0.1 s here; there, where nobody waits, 1 s.
    kept = (work(f"a{i}", age_s=1, movable=False) for i in range(5))
    source = queue("a", *kept, work("warm", age_s=0.5, own_s=0.1, backup=None))
    assert plan(source, queue("b"), rule=RebalanceRule(lambda_own=16)) == []
    (move,) = plan(source, queue("b"), rule=RebalanceRule(lambda_own=2))
    assert move.benefit_s == pytest.approx(4.6 - 1.5 - 2 * 0.9)


def test_of_what_is_late_twice_the_slo_counts() -> None:
    kept = (work(f"a{i}", age_s=1, movable=False, slo_s=100) for i in range(90))
    source = queue("a", *kept, work("late", age_s=0.5, backup=None))
    (move,) = plan(source, queue("b"))
    assert move.benefit_s == pytest.approx(2 * 5.0 - 1.5)
    (move,) = plan(source, queue("b"), rule=RebalanceRule(lambda_own=0))
    assert move.benefit_s == pytest.approx(90.5 + 1.0 - 1.5)


def test_requests_that_may_not_move_stay() -> None:
    kept = queue("a", *(work(f"a{i}", movable=False) for i in range(9)))
    assert plan(kept, queue("b")) == []


def test_a_request_moves_at_most_once_even_to_a_hot_instance() -> None:
    # b is hot by age and c idle: what arrives on b would leave again at once.
    kept = (work(f"a{i}", age_s=1, movable=False) for i in range(5))
    source = queue("a", *kept, work("r", age_s=0.5))
    b = queue("b", work("old", age_s=3.2, movable=False), busy_s=0.5)
    assert is_hot(b, RULE, NOW_S)
    assert [(m.request_id, m.target) for m in plan(source, b, queue("c"))] == [("r", "b")]


def test_cool_down() -> None:
    args = (hot(), queue("b"))
    assert plan(*args, last={"a": NOW_S - 0.5}) == []
    assert plan(*args, last={"a": NOW_S - 1.5}) == plan(*args) != []
    assert plan(*args, last={"b": NOW_S}) == plan(*args)


def test_the_batch_and_the_scan_are_bounded() -> None:
    targets = [queue(f"t{i}") for i in range(30)]
    source = queue("a", *(work(f"a{i:03}", age_s=1 - i / 1000, backup=None) for i in range(60)))
    assert len(plan(source, *targets, rule=RebalanceRule(max_batch=7))) == 7
    moved = {m.request_id for m in plan(source, *targets, rule=RebalanceRule(max_queue_scan=2, max_batch=1))}
    assert moved <= {"a000", "a001"}


def test_a_target_fills_up_within_one_batch() -> None:
    # Nine seconds of work leave a; each target takes what still meets the SLO there.
    moves = plan(hot(count=14), queue("b"), queue("c"))
    for target in ("b", "c"):
        assert sum(m.target == target for m in moves) <= 5


TIMES = st.integers(0, 40).map(lambda quarter: quarter / 4)
NAMES = "abcde"


@st.composite
def pools(draw: st.DrawFn) -> list[InstanceQueue]:
    """A few instances with queues; tokens give own times on any instance."""
    queues = []
    for name in NAMES[: draw(st.integers(1, 5))]:
        works = []
        for i in range(draw(st.integers(0, 8))):
            tokens = draw(st.integers(1, 4000))
            works.append(
                QueuedWork(
                    QueuedRequest(
                        f"{name}{i}",
                        NOW_S - draw(TIMES),
                        tokens / 1000,
                        draw(st.sampled_from([2.0, 5.0, 20.0])),
                    ),
                    tokens,
                    draw(st.none() | st.sampled_from(NAMES)),
                    draw(st.integers(0, 5000)),
                    draw(st.sampled_from([True, True, False])),
                    draw(st.sampled_from([True, True, False])),
                )
            )
        speed = PrefillSpeed(draw(st.floats(0, 0.1)), draw(st.floats(1e-4, 3e-3)), 0.0)
        queues.append(
            InstanceQueue(
                name, speed, draw(TIMES) / 4, tuple(works), draw(st.sampled_from([True, True, False]))
            )
        )
    return queues


def waiting_s(queue: InstanceQueue, rule: RebalanceRule) -> float:
    """What a feasible newcomer would wait for."""
    ordered = order((w.queued for w in queue.queue), NOW_S, queue.busy_s, rule.order)
    return queue.busy_s + sum(e.request.own_s for e in ordered if e.feasible)


def own_s(work: QueuedWork, target: InstanceQueue) -> float:
    """Prefill seconds of a request on another instance."""
    cached = min(work.backup_cached_tokens, work.prompt_tokens - 1) if target.instance == work.backup else 0
    return target.speed.prefill_s(work.prompt_tokens - cached, cached)


def benefit_s(here: Ordered, there_s: float, added_s: float, lambda_own: float) -> float:
    """What a move gains: TTFT, of which twice the SLO counts at most, less what the prefill that it adds costs."""
    if not lambda_own:
        return here.ttft_s - there_s
    return min(here.ttft_s, 2 * here.request.slo_s) - there_s - lambda_own * added_s


@given(
    pool=pools(),
    margin_s=st.sampled_from([0.0, 0.25, 2.0]),
    lambda_own=st.sampled_from([0.0, 1.0, 16.0]),
    shuffle=st.randoms(use_true_random=False),
)
def test_every_planned_move_is_eligible(
    pool: list[InstanceQueue], margin_s: float, lambda_own: float, shuffle: random.Random
) -> None:
    """Replays the plan move by move, with the estimates as they stand before each."""
    rule = RebalanceRule(margin_s=margin_s, lambda_own=lambda_own)
    moves = plan_moves(pool, rule, NOW_S)
    shuffled = list(pool)
    shuffle.shuffle(shuffled)
    assert plan_moves(shuffled, rule, NOW_S) == moves

    state = {q.instance: q for q in pool}
    for move in moves:
        source, target = state[move.source], state[move.target]
        moved = next(w for w in source.queue if w.queued.request_id == move.request_id)
        assert is_hot(source, rule, NOW_S)
        assert target.accepts and target is not source and moved.movable
        here = next(
            e
            for e in order((w.queued for w in source.queue), NOW_S, source.busy_s, rule.order)
            if e.request is moved.queued
        )
        age_s = NOW_S - moved.queued.arrival_s
        there_s = age_s + waiting_s(target, rule) + own_s(moved, target)
        assert there_s <= moved.queued.slo_s + 1e-9
        added_s = own_s(moved, target) - moved.queued.own_s
        assert move.benefit_s == pytest.approx(benefit_s(here, there_s, added_s, lambda_own))
        assert move.benefit_s > margin_s
        # The other candidate, if it is not the target, was no place to go.
        other = state.get(moved.backup or "")
        if other is not None and other.accepts and other.instance not in (move.source, move.target):
            other_s = age_s + waiting_s(other, rule) + own_s(moved, other)
            gain_s = benefit_s(here, other_s, own_s(moved, other) - moved.queued.own_s, lambda_own)
            assert other_s > moved.queued.slo_s - 1e-9 or gain_s <= margin_s + 1e-9
        arrived = replace(
            moved, queued=replace(moved.queued, own_s=own_s(moved, target)), movable=False, feasible=True
        )
        state[move.source] = replace(source, queue=tuple(w for w in source.queue if w is not moved))
        state[move.target] = replace(target, queue=(*target.queue, arrived))
    moved_ids = [m.request_id for m in moves]
    assert len(moved_ids) == len(set(moved_ids))


def test_moves_follow_the_tenants_turns_as_the_worker_does() -> None:
    """Who is last in the queue gains most by a move: whose tenant has overdrawn its turn, not who came last."""
    flood = [work(f"f{i}", age_s=1 - i / 100, slo_s=20.0) for i in range(7)]
    flood = [replace(w, queued=replace(w.queued, tenant="flood")) for w in flood]
    quiet = work("quiet", slo_s=20.0)
    quiet = replace(quiet, queued=replace(quiet.queued, tenant="quiet"))
    source = replace(queue("a", *flood, quiet), deficits=Deficits({"flood": -0.5}))
    one = replace(RULE, max_batch=1)
    [move] = plan(source, queue("b"), rule=one)
    assert move.request_id == "f6"
    [move] = plan(source, queue("b"), rule=replace(one, order=OrderRule(tenant_fairness=False)))
    assert move.request_id == "quiet"
