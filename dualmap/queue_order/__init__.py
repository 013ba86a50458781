"""The order of an admission queue: what an engine starts next.

Smaller priorities go first, and within a priority class one of a family of orders decides: one file each, with
its source and what is not known of it. An order only says who is next. Whether a request is feasible means the
same under all of them: it meets its SLO at its place. Orders are pure; those that count what tenants were served
get the counts passed in, `charge` gives the new ones when a request starts, and `give_back` when it waits again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from dualmap.errors import UnknownOrderError
from dualmap.queue_order.apt import APT
from dualmap.queue_order.dlpm import DLPM
from dualmap.queue_order.edf import EDF
from dualmap.queue_order.fcfs import FCFS
from dualmap.queue_order.late_last import LATE_LAST
from dualmap.queue_order.longest_prefix import LONGEST_PREFIX
from dualmap.queue_order.shortest_prefill import SHORTEST_PREFILL
from dualmap.queue_order.turns import give_back_turn
from dualmap.queue_order.types import (
    NO_DEFICITS,
    Deficits,
    Discipline,
    Ordered,
    OrderName,
    OrderRule,
    QueuedRequest,
)

__all__ = [
    "NO_DEFICITS",
    "ORDERS",
    "Deficits",
    "Discipline",
    "OrderName",
    "OrderRule",
    "Ordered",
    "QueuedRequest",
    "charge",
    "discipline",
    "give_back",
    "order",
]

ORDERS: Mapping[str, Discipline] = {
    "late-last": LATE_LAST,
    "fcfs": FCFS,
    "edf": EDF,
    "shortest-prefill": SHORTEST_PREFILL,
    "longest-prefix": LONGEST_PREFIX,
    "dlpm": DLPM,
    "apt": APT,
}
"""Every order by its `OrderName`."""


def order(
    queue: Iterable[QueuedRequest],
    now_s: float,
    busy_s: float,
    rule: OrderRule,
    deficits: Deficits = NO_DEFICITS,
) -> Sequence[Ordered]:
    """The queue in serving order, each with its expected TTFT.

    `busy_s` is what the engine still has to prefill of requests that it started.
    Stable: equal requests keep arrival order, then the longer cached prefix, then the request id.
    """
    serve = discipline(rule).serve
    waiting = sorted(queue, key=lambda r: (r.priority, r.arrival_s, -r.cached_tokens, r.request_id))
    ready_s = now_s + busy_s
    ordered: list[Ordered] = []
    for members in _classes(waiting):
        for request in serve(members, now_s, ready_s, rule, deficits):
            ready_s += request.own_s
            arrival_s = request.arrival_s
            ordered.append(Ordered(request, ready_s <= arrival_s + request.slo_s, ready_s - arrival_s))
    return ordered


def charge(
    deficits: Deficits,
    started: QueuedRequest,
    waiting: Sequence[QueuedRequest],
    now_s: float,
    rule: OrderRule,
) -> Deficits:
    """The deficits once `started`, one of the `waiting`, was started; the same value if the order has none."""
    count = discipline(rule).charge
    return deficits if count is None else count(deficits, started, waiting, now_s, rule)


def give_back(deficits: Deficits, undone: QueuedRequest, rule: OrderRule) -> Deficits:
    """The deficits once a request that was started waits again; `undone.own_s` is what it was not served."""
    if not deficits.left_s:
        return deficits
    return replace(deficits, left_s=give_back_turn(deficits.left_s, undone, rule))


def discipline(rule: OrderRule) -> Discipline:
    """The order that a rule names."""
    try:
        return ORDERS[rule.order]
    except KeyError:
        raise UnknownOrderError(f"order {rule.order!r} is not one of {', '.join(ORDERS)}") from None


def _classes(waiting: Sequence[QueuedRequest]) -> Iterable[Sequence[QueuedRequest]]:
    """The priority classes of a queue that is sorted by them, mostly one."""
    if not waiting:
        return ()
    if waiting[0].priority == waiting[-1].priority:
        return (waiting,)
    return [list(members) for _, members in groupby(waiting, key=lambda request: request.priority)]
