"""Late last: who can be in time goes first, in arrival order; who cannot waits behind them.

So a lost cause never costs another request its objective. An age bound keeps the late ones from starving: past
it, a late request goes before everything of its priority class. Deadlines decide only *whether* a request is
feasible, never which feasible request is first: that (`edf`) loses 8-14 % of capacity against arrival order.
Source: DESIGN section 5.5.
"""

from collections.abc import Sequence

from dualmap.queue_order.types import Deficits, Discipline, OrderRule, QueuedRequest


def _serve(
    waiting: Sequence[QueuedRequest], now_s: float, ready_s: float, rule: OrderRule, deficits: Deficits
) -> Sequence[QueuedRequest]:
    served: list[QueuedRequest] = []
    in_line: list[QueuedRequest] = []
    # 1. Aged requests go first if they are late anyway; a feasible one keeps its place in line. In arrival order
    #    the aged are at the front.
    num_aged = 0
    for request in waiting:
        if now_s - request.arrival_s < rule.age_bound_s:
            break
        num_aged += 1
        if ready_s + request.own_s > request.arrival_s + request.slo_s:
            ready_s += request.own_s
            served.append(request)
        else:
            in_line.append(request)
    in_line.extend(waiting[num_aged:])
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


LATE_LAST = Discipline(_serve, puts_late_last=True)
