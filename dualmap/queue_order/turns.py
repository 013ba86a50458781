"""Turns of tenants: deficit round robin in prefill seconds, inside of which an order decides who is first.

A request uses up the quantum of its tenant by its prefill seconds, and may overdraw it. When no tenant that waits
has anything left, each of them gets a quantum more, as often as it takes until one has. So tenants that always
wait are served alike, within a quantum and a request. A request is charged when it starts, for its own prefill
alone (its decode is not known yet), and what a preemption leaves undone is given back; the debts of tenants that
do not wait are paid off by the rounds of the others, and what they had left is lost.
Source: deficit round robin (Shreedhar and Varghese), as DLPM applies it to prefills (`dlpm`).
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import TypeAlias

from dualmap.queue_order.types import OrderRule, QueuedRequest

_Lines: TypeAlias = dict[str, deque[tuple[int, QueuedRequest]]]
"""By tenant, with each request's place among all."""


def serve_in_turns(
    ranked: Sequence[QueuedRequest],
    ready_s: float,
    rule: OrderRule,
    left_s: Mapping[str, float],
    may_go: Callable[[QueuedRequest, float], bool] = lambda request, ready_s: True,
) -> list[QueuedRequest]:
    """What follows if nobody else arrives: among tenants that have something left, the rank decides.

    Who may not go when the engine is ready for it waits behind all of them who may; it never may again.
    """
    lines: _Lines = {}
    for place, request in enumerate(ranked):
        lines.setdefault(request.tenant, deque()).append((place, request))
    behind: _Lines = {tenant: deque() for tenant in lines}
    left = {tenant: left_s.get(tenant, 0.0) for tenant in lines}
    served: list[QueuedRequest] = []
    while left:
        if len(left) == 1:
            # Whoever is left alone, which is mostly a flood, has all turns.
            left = dict.fromkeys(left, math.inf)
        grant_s = _grant_s(left.values(), rule)
        for tenant in left:
            left[tenant] += grant_s
        # What was left only shrinks until the next round: each tenant is served so much of its line in this one.
        for place, request in _by_place(lines, left):
            if may_go(request, ready_s):
                ready_s += request.own_s
                left[request.tenant] -= request.own_s
                served.append(request)
            else:
                behind[request.tenant].append((place, request))
        for _, request in _by_place(behind, left):
            ready_s += request.own_s
            left[request.tenant] -= request.own_s
            served.append(request)
        left = {tenant: seconds for tenant, seconds in left.items() if lines[tenant] or behind[tenant]}
    return served


def _by_place(lines: _Lines, left: Mapping[str, float]) -> Iterator[tuple[int, QueuedRequest]]:
    """Take from the lines of tenants that have something left, for as long as they have: the first place first."""
    heads = [
        (lines[tenant][0][0], tenant) for tenant, left_s in left.items() if left_s > 0.0 and lines[tenant]
    ]
    heapify(heads)
    while heads:
        _, tenant = heappop(heads)
        yield lines[tenant].popleft()
        if lines[tenant] and left[tenant] > 0.0:
            heappush(heads, (lines[tenant][0][0], tenant))


def charge_turn(
    left_s: Mapping[str, float], started: QueuedRequest, waiting: Sequence[QueuedRequest], rule: OrderRule
) -> dict[str, float]:
    """What is left once `started`, one of the `waiting`, was started."""
    tenants = [started.tenant, *(r.tenant for r in waiting if r.priority == started.priority)]
    left = {tenant: left_s.get(tenant, 0.0) for tenant in tenants}
    grant_s = _grant_s(left.values(), rule)
    for tenant in left:
        left[tenant] += grant_s
    # Who does not wait keeps nothing but a debt, so the value holds no more tenants than were served lately.
    debts_s = {tenant: seconds + grant_s for tenant, seconds in left_s.items() if tenant not in left}
    left.update({tenant: seconds for tenant, seconds in debts_s.items() if seconds < 0.0})
    left[started.tenant] -= started.own_s
    return left


def give_back_turn(
    left_s: Mapping[str, float], undone: QueuedRequest, rule: OrderRule
) -> Mapping[str, float]:
    """What is left once a request that was charged waits again; `undone.own_s` is what it was not served."""
    left = left_s.get(undone.tenant, 0.0) + undone.own_s
    return {**left_s, undone.tenant: min(left, rule.quantum_s)}


def _grant_s(left_s: Collection[float], rule: OrderRule) -> float:
    """What to add to each for one of them to have something left; 0 if one has."""
    most_s = max(left_s)
    if most_s > 0.0:
        return 0.0
    return (math.floor(-most_s / rule.quantum_s) + 1) * rule.quantum_s
