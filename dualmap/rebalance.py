"""Which queued requests leave a hot instance, and where they go.

Theory of operation. The choice books work on what it expects; a slow engine, a burst or a lost instance
makes it wrong afterwards. An instance is *hot* when its feasible queue is expected to wait longer than the
SLO, or its oldest feasible request waited too long already. Then requests move while a move pays: the
benefit of moving r from i to j is TTFT(r, i) - TTFT(r, j), where only work ahead of r counts on i. Largest
benefit first, one batch, everything estimated again after each move, until i is expected to hold its SLO.
The other candidate comes first, since it may hold the prefix; then any instance, because the other
candidate alone recovers nothing when it is blocked too. A request moves at most once.
Sources: DualMap section 3.4, DESIGN section 5.6.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dualmap.queue_order import Ordered, OrderRule, QueuedRequest, order
from dualmap.types import PrefillSpeed


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
    """Prefill seconds that the engine has started and not finished."""
    queue: tuple[QueuedWork, ...] = ()
    accepts: bool = True
    """False while draining, held or with unknown telemetry: nothing moves there."""


@dataclass(frozen=True, slots=True)
class RebalanceRule:
    """The settings of rebalancing; times are seconds."""

    slo_s: float = 5.0
    max_wait_s: float = 3.0
    """An instance is hot when its oldest feasible request waited this long."""
    margin_s: float = 0.25
    """A move must gain more than this: it costs affinity and a hop."""
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
    state = {queue.instance: queue for queue in instances}
    cooling = last_batch_s or {}
    moves: list[Move] = []
    for name in sorted(state):
        if now_s - cooling.get(name, float("-inf")) < rule.cool_down_s:
            continue
        for _ in range(rule.max_batch):
            if not is_hot(state[name], rule, now_s):
                break
            move = _best_move(state, name, rule, now_s)
            if move is None:
                break
            moves.append(move)
            _apply(state, move)
    return moves


def _best_move(
    state: Mapping[str, InstanceQueue], source: str, rule: RebalanceRule, now_s: float
) -> Move | None:
    """The eligible move with the largest benefit, ties to the earliest in serving order."""
    works = {work.queued.request_id: work for work in state[source].queue}
    waits = {
        name: _feasible_wait_s(queue, rule, now_s)
        for name, queue in state.items()
        if name != source and queue.accepts
    }
    best: Move | None = None
    for here in _ordered(state[source], rule, now_s)[: rule.max_queue_scan]:
        work = works[here.request.request_id]
        if not work.movable:
            continue
        age_s = now_s - here.request.arrival_s
        ttfts = {name: age_s + wait_s + _own_s(work, state[name]) for name, wait_s in waits.items()}

        def pays(name: str, here: Ordered = here, ttfts: Mapping[str, float] = ttfts) -> bool:
            return ttfts[name] <= here.request.slo_s and here.ttft_s - ttfts[name] > rule.margin_s

        target = _target(work.backup, ttfts, pays)
        if target is None:
            continue
        benefit_s = here.ttft_s - ttfts[target]
        if best is None or benefit_s > best.benefit_s:
            best = Move(here.request.request_id, source, target, benefit_s)
    return best


def _target(backup: str | None, ttfts: Mapping[str, float], pays: Callable[[str], bool]) -> str | None:
    """Where a request goes, if anywhere: the other candidate if that pays, else who answers soonest."""
    if backup is not None and backup in ttfts and pays(backup):
        return backup
    return min((name for name in ttfts if pays(name)), key=lambda name: (ttfts[name], name), default=None)


def _ordered(queue: InstanceQueue, rule: RebalanceRule, now_s: float) -> Sequence[Ordered]:
    """The queue as its worker will serve it."""
    return order((work.queued for work in queue.queue), now_s, queue.busy_s, rule.order)


def _feasible_wait_s(queue: InstanceQueue, rule: RebalanceRule, now_s: float) -> float:
    """What a feasible newcomer would wait for."""
    ordered = _ordered(queue, rule, now_s)
    return queue.busy_s + sum(entry.request.own_s for entry in ordered if entry.feasible)


def _own_s(work: QueuedWork, target: InstanceQueue) -> float:
    """Prefill seconds on another instance: warm on the other candidate as far as known, cold elsewhere."""
    cached = work.backup_cached_tokens if target.instance == work.backup else 0
    cached = max(min(cached, work.prompt_tokens - 1), 0)
    return target.speed.prefill_s(max(work.prompt_tokens - cached, 1), cached)


def _apply(state: dict[str, InstanceQueue], move: Move) -> None:
    """What the queues look like after a move."""
    source, target = state[move.source], state[move.target]
    work = next(w for w in source.queue if w.queued.request_id == move.request_id)
    arrived = replace(
        work,
        queued=replace(work.queued, own_s=_own_s(work, target)),
        movable=False,
        feasible=True,
    )
    state[move.source] = replace(source, queue=tuple(w for w in source.queue if w is not work))
    state[move.target] = replace(target, queue=(*target.queue, arrived))
