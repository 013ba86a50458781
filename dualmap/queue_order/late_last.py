"""Late last: who can be in time goes first, in arrival order; who cannot waits behind them.

So a lost cause never costs another request its objective. An age bound keeps the late ones from starving: past
it, late requests go first, the oldest one at a time, for a share of the engine's time. All of them at once would
cost every other request its objective, and for as long as an overload lasts nobody would be in time. Deadlines
decide only *whether* a request is feasible, never which feasible request is first: that (`edf`) loses 8-14 % of
capacity against arrival order. Source: DESIGN section 5.5; the share is docs/decisions/0015.

Tenants take turns (`turns`): of those that have some of their quantum left, whoever can be in time goes first, in
arrival order, and who cannot behind them. Each tenant's aged requests have their share of that tenant's time. So
what one sends costs another no more than a quantum and a request, and for one tenant alone nothing of this shows.
Source: docs/decisions/0024.
"""

from collections.abc import Iterable, Sequence

from dualmap.queue_order.turns import charge_turn, serve_in_turns
from dualmap.queue_order.types import NO_DEFICITS, Deficits, Discipline, OrderRule, QueuedRequest


def _serve(
    waiting: Sequence[QueuedRequest], now_s: float, ready_s: float, rule: OrderRule, deficits: Deficits
) -> Sequence[QueuedRequest]:
    if rule.tenant_fairness and _several_tenants(waiting):
        return _serve_in_turns(waiting, now_s, ready_s, rule, deficits)
    served: list[QueuedRequest] = []
    in_line = list(waiting)
    # 1. The oldest goes first if it has aged and is late anyway, unless aged ones have had their share.
    if _goes_first(waiting[0], now_s, ready_s, rule, deficits):
        ready_s += waiting[0].own_s
        served.append(in_line.pop(0))
    # 2. Who meets the SLO behind the feasible ones ahead is feasible; the others wait behind all of them.
    late: list[QueuedRequest] = []
    for request in in_line:
        if request.is_in_time(ready_s):
            ready_s += request.own_s
            served.append(request)
        else:
            late.append(request)
    served.extend(late)
    return served


def _first(
    oldest: QueuedRequest,
    oldest_in_time: QueuedRequest | None,
    now_s: float,
    ready_s: float,
    rule: OrderRule,
    deficits: Deficits,
) -> QueuedRequest:
    if oldest_in_time is None or _goes_first(oldest, now_s, ready_s, rule, deficits):
        return oldest
    return oldest_in_time


def _serve_in_turns(
    waiting: Sequence[QueuedRequest], now_s: float, ready_s: float, rule: OrderRule, deficits: Deficits
) -> Sequence[QueuedRequest]:
    """The same, tenant by tenant: each one's oldest may go first."""
    oldest: dict[str, QueuedRequest] = {}
    for request in waiting:
        oldest.setdefault(request.tenant, request)
    aged = {r.request_id for r in oldest.values() if _goes_first(r, now_s, ready_s, rule, deficits)}
    if not aged:
        return serve_in_turns(waiting, ready_s, rule, deficits.left_s, QueuedRequest.is_in_time)
    ranked = sorted(waiting, key=lambda request: request.request_id not in aged)
    return serve_in_turns(
        ranked, ready_s, rule, deficits.left_s, lambda r, at_s: r.request_id in aged or r.is_in_time(at_s)
    )


def _charge(
    deficits: Deficits,
    started: QueuedRequest,
    waiting: Sequence[QueuedRequest],
    now_s: float,
    rule: OrderRule,
) -> Deficits:
    owed_s = _owed_by_aged(deficits, started, waiting, now_s, rule)
    left_s = deficits.left_s
    # Where no tenant is named there is nobody to count for.
    if rule.tenant_fairness and (left_s or _any_named(waiting)):
        left_s = charge_turn(left_s, started, waiting, rule)
    return Deficits(left_s, owed_s) if left_s or owed_s else NO_DEFICITS


def _owed_by_aged(
    deficits: Deficits,
    started: QueuedRequest,
    waiting: Sequence[QueuedRequest],
    now_s: float,
    rule: OrderRule,
) -> dict[str, float]:
    """What aged requests were served beyond their share is owed to their tenant's others, who are served it first."""
    ours = _whose(started, rule)
    owed_s = deficits.aged_owe_s.get(ours, 0.0)
    if _is_aged(started, now_s, now_s, rule):
        # Time that nobody else needs is owed to nobody.
        if any(request.is_in_time(now_s) for request in waiting if _whose(request, rule) == ours):
            owed_s += started.own_s * (1.0 / rule.aged_share - 1.0)
    elif owed_s > 0.0:
        owed_s = max(owed_s - started.own_s, 0.0)
    if not deficits.aged_owe_s and not owed_s:
        return {}
    # Nobody waits to be paid by a tenant that does not wait.
    present = {_whose(request, rule) for request in waiting}
    return {
        who: seconds
        for who, seconds in {**deficits.aged_owe_s, ours: owed_s}.items()
        if seconds and who in present
    }


def _goes_first(
    request: QueuedRequest, now_s: float, ready_s: float, rule: OrderRule, deficits: Deficits
) -> bool:
    return _is_aged(request, now_s, ready_s, rule) and not deficits.aged_owe_s.get(_whose(request, rule))


def _whose(request: QueuedRequest, rule: OrderRule) -> str:
    return request.tenant if rule.tenant_fairness else ""


def _several_tenants(waiting: Sequence[QueuedRequest]) -> bool:
    first = waiting[0].tenant
    return any(request.tenant != first for request in waiting)


def _any_named(waiting: Iterable[QueuedRequest]) -> bool:
    return any(request.tenant for request in waiting)


def _is_aged(request: QueuedRequest, now_s: float, ready_s: float, rule: OrderRule) -> bool:
    return now_s - request.arrival_s >= rule.age_bound_s and not request.is_in_time(ready_s)


LATE_LAST = Discipline(_serve, puts_late_last=True, charge=_charge, first=_first)
