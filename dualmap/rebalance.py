"""Which queued requests leave a hot instance, and where they go.

Theory of operation. The choice books work on what it expects; a slow engine, a burst or a lost instance
makes it wrong afterwards. An instance is *hot* when its feasible queue is expected to wait longer than the
SLO, or its oldest feasible request waited too long already. Then requests move while a move pays: the
benefit of moving r from i to j is TTFT(r, i) - TTFT(r, j), where only work ahead of r counts on i, less
lambda times the prefill that j would compute again, which delays all that follow there, as in the choice.
Of a TTFT that is late no more counts than twice the SLO: or in a pool whose queues are minutes long every
move would pay, and the work that they add would keep the queues so (docs/decisions/0022). Largest
benefit first, one batch, everything estimated again after each move, until i is expected to hold its SLO.
The other candidate comes first, since it may hold the prefix; then any instance, because the other
candidate alone recovers nothing when it is blocked too. A request moves at most once.
Sources: DualMap section 3.4, DESIGN section 5.6.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import nsmallest

from dualmap.queue_order import NO_DEFICITS, Deficits, Ordered, OrderRule, QueuedRequest, order
from dualmap.types import PrefillSpeed

_TARGETS_WEIGHED = 4
_LATE_AT = 2.0
"""What of a TTFT counts towards a benefit, in SLOs."""


@dataclass(frozen=True, slots=True)
class QueuedWork:
    """A queued request as rebalancing sees it: its place in the order, and what it would cost elsewhere."""

    queued: QueuedRequest
    prompt_tokens: int
    backup: str | None
    """The other candidate, tried first."""
    backup_cached_tokens: int = 0
    feasible: bool = True
    """It could meet its SLO when it was booked here."""
    movable: bool = True
    """False once it moved, or when its router asked to keep it."""


@dataclass(frozen=True, slots=True)
class InstanceQueue:
    """One instance as rebalancing sees it: what its engine has in hand, and its queue."""

    instance: str
    speed: PrefillSpeed
    busy_s: float
    """Prefill seconds that the engine has started and not finished, without what gives way (`preempt`)."""
    queue: tuple[QueuedWork, ...] = ()
    accepts: bool = True
    """False while draining, held or with unknown telemetry: nothing moves there."""
    deficits: Deficits = NO_DEFICITS
    """Where tenants take turns: what each may still be served."""


@dataclass(frozen=True, slots=True)
class RebalanceRule:
    """The settings of rebalancing; times are seconds."""

    slo_s: float = 5.0
    max_wait_s: float = 3.0
    """An instance is hot when its oldest feasible request waited this long."""
    margin_s: float = 0.25
    """A move must gain more than this: it costs a hop."""
    lambda_own: float = 16.0
    """Weight of the prefill that a move adds; 0 to look at the TTFT alone, however late. More than in the choice:
    whoever is moved is in a queue already, and mostly where its prefix is."""
    cool_down_s: float = 1.0
    """The least time between two batches off one instance, so that telemetry shows the first one's effect."""
    max_batch: int = 64
    max_queue_scan: int = 512
    """Requests looked at per hot instance; bounds the time of a pass."""
    order: OrderRule = field(default_factory=OrderRule)


@dataclass(frozen=True, slots=True)
class Move:
    """Take a request off the queue of `source` and send it to `target`."""

    request_id: str
    source: str
    target: str
    benefit_s: float


def is_hot(queue: InstanceQueue, rule: RebalanceRule, now_s: float) -> bool:
    """Whether the instance needs relief: see the module's theory."""
    feasible = [work for work in queue.queue if work.feasible]
    if not feasible:
        return False
    wait_s = queue.busy_s + sum(work.queued.own_s for work in feasible)
    oldest_s = max(now_s - work.queued.arrival_s for work in feasible)
    return wait_s > rule.slo_s or oldest_s > rule.max_wait_s


def plan_moves(
    instances: Sequence[InstanceQueue],
    rule: RebalanceRule,
    now_s: float,
    last_batch_s: Mapping[str, float] | None = None,
) -> list[Move]:
    """One batch of moves off every hot instance that is not cooling down."""
    pool = _Pool(instances, rule, now_s)
    cooling = last_batch_s or {}
    moves: list[Move] = []
    for name in sorted(pool.queues):
        if now_s - cooling.get(name, float("-inf")) < rule.cool_down_s:
            continue
        for _ in range(rule.max_batch):
            if not is_hot(pool.queues[name], rule, now_s):
                break
            move = pool.best_move(name)
            if move is None:
                break
            moves.append(move)
            pool.apply(move)
    return moves


class _Pool:
    """The queues as they will be after the moves planned so far, and what a feasible newcomer waits for on each.

    A pass over a large pool must take milliseconds, so a move changes the figures of its two ends only, and a
    request is weighed against its backup and the few instances with the shortest wait.
    """

    def __init__(self, instances: Sequence[InstanceQueue], rule: RebalanceRule, now_s: float) -> None:
        self.queues = {queue.instance: queue for queue in instances}
        self._rule = rule
        self._now_s = now_s
        self._waits = {name: self._wait_s(queue) for name, queue in self.queues.items() if queue.accepts}

    def best_move(self, source: str) -> Move | None:
        """The eligible move off `source` with the largest benefit, ties to the earliest in serving order."""
        works = {work.queued.request_id: work for work in self.queues[source].queue}
        shortest = [
            name
            for _, name in nsmallest(
                _TARGETS_WEIGHED + 1, ((wait_s, name) for name, wait_s in self._waits.items())
            )
            if name != source
        ]
        best: Move | None = None
        for here in self._ordered(self.queues[source])[: self._rule.max_queue_scan]:
            work = works[here.request.request_id]
            if not work.movable:
                continue
            found = self._target(work, here, source, shortest)
            if found is not None and (best is None or found[0] > best.benefit_s):
                best = Move(here.request.request_id, source, found[1], found[0])
        return best

    def apply(self, move: Move) -> None:
        """Do a move on paper."""
        source, target = self.queues[move.source], self.queues[move.target]
        work = next(w for w in source.queue if w.queued.request_id == move.request_id)
        queued = replace(work.queued, own_s=_own_s(work, target))
        arrived = replace(work, queued=queued, movable=False, feasible=True)
        self._put(replace(source, queue=tuple(w for w in source.queue if w is not work)))
        self._put(replace(target, queue=(*target.queue, arrived)))

    def _put(self, queue: InstanceQueue) -> None:
        self.queues[queue.instance] = queue
        if queue.accepts:
            self._waits[queue.instance] = self._wait_s(queue)

    def _target(
        self, work: QueuedWork, here: Ordered, source: str, shortest: Sequence[str]
    ) -> tuple[float, str] | None:
        """(benefit, instance) of where a request goes, if anywhere: its backup if that pays, else what pays most."""
        if work.backup is not None and work.backup != source and work.backup in self._waits:
            benefit_s = self._benefit_s(work, here, work.backup)
            if benefit_s > self._rule.margin_s:
                return benefit_s, work.backup
        found = ((self._benefit_s(work, here, name), name) for name in shortest)
        paying = (one for one in found if one[0] > self._rule.margin_s)
        return min(paying, key=lambda one: (-one[0], one[1]), default=None)

    def _benefit_s(self, work: QueuedWork, here: Ordered, name: str) -> float:
        """What a move to an instance gains; nothing when the request would be late there."""
        own_s = _own_s(work, self.queues[name])
        # Counted from the request's arrival.
        ttft_s = self._now_s - work.queued.arrival_s + self._waits[name] + own_s
        slo_s, lambda_own = here.request.slo_s, self._rule.lambda_own
        if ttft_s > slo_s:
            return 0.0
        if not lambda_own:
            return here.ttft_s - ttft_s
        return min(here.ttft_s, _LATE_AT * slo_s) - ttft_s - lambda_own * (own_s - here.request.own_s)

    def _ordered(self, queue: InstanceQueue) -> Sequence[Ordered]:
        """The queue as its worker will serve it."""
        works = (work.queued for work in queue.queue)
        return order(works, self._now_s, queue.busy_s, self._rule.order, queue.deficits)

    def _wait_s(self, queue: InstanceQueue) -> float:
        """What a feasible newcomer would wait for."""
        return queue.busy_s + sum(entry.request.own_s for entry in self._ordered(queue) if entry.feasible)


def _own_s(work: QueuedWork, target: InstanceQueue) -> float:
    """Prefill seconds on another instance: warm on the other candidate as far as known, cold elsewhere."""
    cached = work.backup_cached_tokens if target.instance == work.backup else 0
    cached = max(min(cached, work.prompt_tokens - 1), 0)
    return target.speed.prefill_s(max(work.prompt_tokens - cached, 1), cached)
