"""Late last: who can be in time goes first, in arrival order; who cannot waits behind them.

So a lost cause never costs another request its objective. An age bound keeps the late ones from starving: past
it, late requests go first, the oldest one at a time, for a share of the engine's time. All of them at once would
cost every other request its objective, and for as long as an overload lasts nobody would be in time. Deadlines
decide only *whether* a request is feasible, never which feasible request is first: that (`edf`) loses 8-14 % of
capacity against arrival order. Source: DESIGN section 5.5; the share is docs/decisions/0015.
"""

from collections.abc import Sequence

from dualmap.queue_order.types import NO_DEFICITS, Deficits, Discipline, OrderRule, QueuedRequest

_AGED = "aged"


def _serve(
    waiting: Sequence[QueuedRequest], now_s: float, ready_s: float, rule: OrderRule, deficits: Deficits
) -> Sequence[QueuedRequest]:
    served: list[QueuedRequest] = []
    in_line = list(waiting)
    # 1. The oldest goes first if it has aged and is late anyway, unless aged ones have had their share.
    if deficits.left_s.get(_AGED, 0.0) >= 0.0 and _is_aged(waiting[0], now_s, ready_s, rule):
        ready_s += waiting[0].own_s
        served.append(in_line.pop(0))
    # 2. Who meets the SLO behind the feasible ones ahead is feasible; the others wait behind all of them.
    late: list[QueuedRequest] = []
    for request in in_line:
        done_s = ready_s + request.own_s
        if done_s <= request.arrival_s + request.slo_s:
            ready_s = done_s
            served.append(request)
        else:
            late.append(request)
    served.extend(late)
    return served


def _charge(
    deficits: Deficits,
    started: QueuedRequest,
    waiting: Sequence[QueuedRequest],
    now_s: float,
    rule: OrderRule,
) -> Deficits:
    """What aged requests were served beyond their share is owed to the others, who are served it first."""
    left_s = deficits.left_s.get(_AGED, 0.0)
    if _is_aged(started, now_s, now_s, rule):
        # Time that nobody else needs is owed to nobody.
        if any(not _is_late(request, now_s) for request in waiting):
            left_s -= started.own_s * (1.0 / rule.aged_share - 1.0)
    elif left_s < 0.0:
        left_s = min(left_s + started.own_s, 0.0)
    return Deficits({_AGED: left_s}) if left_s < 0.0 else NO_DEFICITS


def _is_aged(request: QueuedRequest, now_s: float, ready_s: float, rule: OrderRule) -> bool:
    return now_s - request.arrival_s >= rule.age_bound_s and _is_late(request, ready_s)


def _is_late(request: QueuedRequest, ready_s: float) -> bool:
    return ready_s + request.own_s > request.arrival_s + request.slo_s


LATE_LAST = Discipline(_serve, puts_late_last=True, charge=_charge)
