"""Which prefill inside the engine gives way to a request that can still be in time.

Theory of operation. A prefill of 10-30 s that can no longer meet its SLO would cost every feasible request
behind it theirs. Until its first byte nobody was sent anything, so it may be aborted and queued again: what
it has computed stays in the engine's prefix cache, and it resumes from there. A prefill *gives way* when it
is late anyway, not too old, and worth the abort; it is then ordered as if it still waited. It is preempted when
a feasible request is ahead of it in that order and its run has lasted long enough to have computed something:
each run makes progress, and their number is bounded. Where tenants take turns that order has them too: who would
be the next to start again is left alone. Too old is well before the age bound: work that is put off
until it goes first costs every feasible request behind it, and a whole pool of it would miss all objectives.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dualmap.queue_order import (
    NO_DEFICITS,
    Deficits,
    Ordered,
    OrderRule,
    QueuedRequest,
    discipline,
    give_back,
    order,
)


@dataclass(frozen=True, slots=True)
class RunningRequest:
    """A prefill inside the engine that has shown no first byte; `queued.own_s` is what is left of it."""

    queued: QueuedRequest
    ran_s: float
    """Since the engine began to compute it, in this run; 0 while others are ahead of it."""
    preemptions: int = 0
    stop_s: float = 0.0
    """How long the engine still computes it after an abort: it ends the step that it is in."""


@dataclass(frozen=True, slots=True)
class PreemptRule:
    """The settings of preemption; times are seconds."""

    enabled: bool = True
    min_s: float = 0.25
    """An abort must save more than this: it costs a request sent twice and a block computed twice."""
    min_run_s: float = 0.25
    """Each run lasts at least this long, so that each one makes progress."""
    max_times: int = 32
    """A request that was preempted this often runs to its end."""
    until_age: float = 0.5
    """... and so does one that waited for this share of the age bound."""


@dataclass(frozen=True, slots=True)
class Preemption:
    """Abort this request and queue it again, in `after_s` seconds if nothing changes until then."""

    request_id: str
    after_s: float


@dataclass(frozen=True, slots=True)
class Line:
    """The engine's prefills by what a feasible request sees of them."""

    blocking_s: float
    """Prefill seconds that a feasible request waits for."""
    giving_way: tuple[RunningRequest, ...] = ()

    @property
    def giving_way_s(self) -> float:
        """Prefill seconds left of those that give way."""
        return sum(running.queued.own_s for running in self.giving_way)


def split(line: Iterable[RunningRequest], now_s: float, order_rule: OrderRule, rule: PreemptRule) -> Line:
    """Tell which prefills of the engine, given in its order, give way."""
    blocking_s = 0.0
    giving_way: list[RunningRequest] = []
    for running in line:
        if _gives_way(running, now_s + blocking_s, now_s, order_rule, rule):
            queued = replace(running.queued, own_s=running.queued.own_s - running.stop_s)
            giving_way.append(replace(running, queued=queued))
            blocking_s += running.stop_s
        else:
            blocking_s += running.queued.own_s
    return Line(blocking_s, tuple(giving_way))


def order_behind(
    line: Line,
    queue: Iterable[QueuedRequest],
    now_s: float,
    order_rule: OrderRule,
    deficits: Deficits = NO_DEFICITS,
) -> Sequence[Ordered]:
    """The queue in serving order, among it the prefills that give way, as if they waited: their tenants have back
    what is left of them."""
    deficits = _given_back(deficits, line, order_rule)
    waiting = [*queue, *(running.queued for running in line.giving_way)]
    return order(waiting, now_s, line.blocking_s, order_rule, deficits)


def plan_preemption(
    line: Line,
    queue: Sequence[QueuedRequest],
    now_s: float,
    order_rule: OrderRule,
    rule: PreemptRule,
    deficits: Deficits = NO_DEFICITS,
) -> Preemption | None:
    """The prefill to preempt: the engine's head, if it gives way and a feasible request is ahead of it.

    While its tenant has some of its quantum left it may be ahead for that alone: then until that is used up.
    """
    # Only the head has computed anything; whoever is behind it would be stopped without having begun.
    head = next((running for running in line.giving_way if running.ran_s > 0.0), None)
    if head is None:
        return None
    run_s = max(rule.min_run_s - head.ran_s, 0.0)
    if _one_is_ahead(head, order_behind(line, queue, now_s, order_rule, deficits)):
        return Preemption(head.queued.request_id, run_s)
    turn = _rest_of_turn(head, line, queue, now_s, order_rule, deficits)
    if turn is None or not _one_is_ahead(head, order_behind(line, queue, now_s, order_rule, turn[1])):
        return None
    return Preemption(head.queued.request_id, max(run_s, turn[0]))


def _given_back(deficits: Deficits, line: Line, order_rule: OrderRule) -> Deficits:
    for running in line.giving_way:
        deficits = give_back(deficits, running.queued, order_rule)
    return deficits


def _rest_of_turn(
    head: RunningRequest,
    line: Line,
    queue: Sequence[QueuedRequest],
    now_s: float,
    order_rule: OrderRule,
    deficits: Deficits,
) -> tuple[float, Deficits] | None:
    """How long the head runs until a tenant that has one in time is in its round of turns, and the deficits then."""
    tenant, quantum_s = head.queued.tenant, order_rule.quantum_s
    left_s = _given_back(deficits, line, order_rule).left_s
    ready_s = now_s + line.blocking_s
    in_time = (r for r in queue if r.tenant != tenant and r.is_in_time(ready_s))
    most_s = max((left_s.get(request.tenant, 0.0) for request in in_time), default=None)
    if tenant not in left_s or most_s is None:
        return None
    # Rounds that only pay the other's debt are the head's alone.
    then_s = -math.floor(max(-most_s, 0.0) / quantum_s) * quantum_s
    if left_s[tenant] <= then_s:
        return None
    undone_s = sum(r.queued.own_s for r in line.giving_way if r.queued.tenant == tenant)
    return left_s[tenant] - then_s, replace(
        deficits, left_s={**deficits.left_s, tenant: then_s - undone_s - quantum_s * 1e-9}
    )


def _one_is_ahead(head: RunningRequest, entries: Iterable[Ordered]) -> bool:
    for entry in entries:
        if entry.request is head.queued:
            return False
        if entry.feasible:
            return True
    return False


def computed_tokens(uncached_tokens: int, ran_s: float, own_s: float) -> int:
    """How much of a prefill is done for certain after `ran_s` of its `own_s`.

    Later tokens attend to more and cost more, so the share of the tokens is no less than that of the time.
    """
    share = min(max(ran_s / own_s, 0.0), 1.0) if own_s > 0.0 else 0.0
    return int(share * max(uncached_tokens - 1, 0))


def _gives_way(
    running: RunningRequest, ready_s: float, now_s: float, order_rule: OrderRule, rule: PreemptRule
) -> bool:
    queued = running.queued
    # Under an order that leaves it its place, a late prefill would be the next to start again.
    if not rule.enabled or not discipline(order_rule).puts_late_last or running.preemptions >= rule.max_times:
        return False
    is_late = not queued.is_in_time(ready_s)
    # Past the age bound itself it would go before everything of its class, and so be the next to start again.
    is_old = now_s - queued.arrival_s >= min(rule.until_age, 1.0) * order_rule.age_bound_s
    return is_late and not is_old and queued.own_s - running.stop_s > rule.min_s
