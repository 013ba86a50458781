"""The order of an admission queue: what an engine starts next.

Feasible requests first, in arrival order; those that can no longer meet their SLO after them, so that a
lost cause never costs another request its objective. An age bound keeps the late ones from starving: past
it, a late request goes before everything of its priority class. Serving the earliest deadline first would
lose 8-14 % of capacity against plain arrival order (DESIGN section 5.5), so deadlines decide only *whether*
a request is feasible, never which feasible request is first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """A request that waits in an admission queue, as its order sees it."""

    request_id: str
    arrival_s: float
    own_s: float
    """Expected prefill seconds on this instance."""
    slo_s: float
    cached_tokens: int = 0
    priority: int = 0
    """Smaller is served earlier, as in vLLM."""


@dataclass(frozen=True, slots=True)
class OrderRule:
    """The settings of the order."""

    order: str = "late-last"
    """`late-last`, or `fcfs` to serve in arrival order whatever the SLO."""
    age_bound_s: float = 60.0
    """A late request that waited this long goes first."""


@dataclass(frozen=True, slots=True)
class Ordered:
    """A request in serving order, with when its prefill is expected to be done."""

    request: QueuedRequest
    feasible: bool
    ttft_s: float
    """Expected TTFT counted from its arrival."""


def order(queue: Iterable[QueuedRequest], now_s: float, busy_s: float, rule: OrderRule) -> Sequence[Ordered]:
    """The queue in serving order, each with its expected TTFT.

    `busy_s` is what the engine still has to prefill of requests that it started.
    Stable: equal requests keep arrival order, then the longer cached prefix, then the request id.
    """
    arrivals = sorted(queue, key=lambda r: (r.priority, r.arrival_s, -r.cached_tokens, r.request_id))
    ordered: list[Ordered] = []
    ready_s = now_s + busy_s
    start = 0
    while start < len(arrivals):
        stop = start
        while stop < len(arrivals) and arrivals[stop].priority == arrivals[start].priority:
            stop += 1
        for request, feasible in _order_class(arrivals[start:stop], now_s, ready_s, rule):
            ready_s += request.own_s
            ordered.append(Ordered(request, feasible, ready_s - request.arrival_s))
        start = stop
    return ordered


def _order_class(
    arrivals: Sequence[QueuedRequest], now_s: float, ready_s: float, rule: OrderRule
) -> list[tuple[QueuedRequest, bool]]:
    """One priority class in serving order, each with whether it can meet its SLO from `ready_s` on."""
    aged: list[tuple[QueuedRequest, bool]] = []
    rest: list[QueuedRequest] = []
    if rule.order == "fcfs":
        rest = list(arrivals)
    else:
        # 1. Aged requests go first if they are late anyway; a feasible one keeps its place in line.
        for request in arrivals:
            late = ready_s + request.own_s > request.arrival_s + request.slo_s
            if late and now_s - request.arrival_s >= rule.age_bound_s:
                aged.append((request, False))
                ready_s += request.own_s
            else:
                rest.append(request)
    # 2. Who meets the SLO behind the feasible ones ahead is feasible; the others wait behind all of them.
    feasible: list[tuple[QueuedRequest, bool]] = []
    late_ones: list[tuple[QueuedRequest, bool]] = []
    for request in rest:
        if ready_s + request.own_s <= request.arrival_s + request.slo_s:
            feasible.append((request, True))
            ready_s += request.own_s
        elif rule.order == "fcfs":
            feasible.append((request, False))
            ready_s += request.own_s
        else:
            late_ones.append((request, False))
    return aged + feasible + late_ones
