"""Deficit longest prefix match: the longest cached prefix first, among tenants that have some of their quantum left.

A request uses up the quantum of its tenant by its prefill seconds, and may overdraw it. When no tenant that waits
has anything left, each of them gets a quantum more, as often as it takes until one has. So tenants that always
wait are served alike, within a quantum and a request, and inside of that the cache decides.
Source: "Locality-aware Fair Scheduling in LLM Serving" (DLPM). Not verified in it: the counter's details. Here a
request is charged when it starts, for its own prefill alone (its decode is not known yet); the debts of tenants
that do not wait are paid off by the rounds of the others, and what they had left is lost, as in deficit round robin.
"""

import math
from collections import deque
from collections.abc import Collection, Sequence

from dualmap.queue_order.longest_prefix import by_cached_prefix
from dualmap.queue_order.types import Deficits, Discipline, OrderRule, QueuedRequest


def _serve(
    waiting: Sequence[QueuedRequest], now_s: float, ready_s: float, rule: OrderRule, deficits: Deficits
) -> Sequence[QueuedRequest]:
    """What follows if nobody else arrives; each class counts from the deficits as they are now."""
    lines: dict[str, deque[tuple[int, QueuedRequest]]] = {}
    for place, request in enumerate(by_cached_prefix(waiting)):
        lines.setdefault(request.tenant, deque()).append((place, request))
    left_s = {tenant: deficits.left_s.get(tenant, 0.0) for tenant in lines}
    served: list[QueuedRequest] = []
    while lines:
        grant_s = _grant_s(left_s.values(), rule)
        # What was left only shrinks until the next round: each tenant is served so much of its line in this one.
        turn: list[tuple[int, QueuedRequest]] = []
        for tenant, line in list(lines.items()):
            left_s[tenant] += grant_s
            while line and left_s[tenant] > 0.0:
                turn.append(line.popleft())
                left_s[tenant] -= turn[-1][1].own_s
            if not line:
                del lines[tenant], left_s[tenant]
        served += [request for _, request in sorted(turn)]
    return served


def _charge(
    deficits: Deficits,
    started: QueuedRequest,
    waiting: Sequence[QueuedRequest],
    now_s: float,
    rule: OrderRule,
) -> Deficits:
    tenants = [started.tenant, *(r.tenant for r in waiting if r.priority == started.priority)]
    left_s = {tenant: deficits.left_s.get(tenant, 0.0) for tenant in tenants}
    grant_s = _grant_s(left_s.values(), rule)
    for tenant in left_s:
        left_s[tenant] += grant_s
    # Who does not wait keeps nothing but a debt, so the value holds no more tenants than were served lately.
    debts_s = {
        tenant: seconds + grant_s for tenant, seconds in deficits.left_s.items() if tenant not in left_s
    }
    left_s.update({tenant: seconds for tenant, seconds in debts_s.items() if seconds < 0.0})
    left_s[started.tenant] -= started.own_s
    return Deficits(left_s)


def _grant_s(left_s: Collection[float], rule: OrderRule) -> float:
    """What to add to each for one of them to have something left; 0 if one has."""
    most_s = max(left_s)
    if most_s > 0.0:
        return 0.0
    return (math.floor(-most_s / rule.quantum_s) + 1) * rule.quantum_s


DLPM = Discipline(_serve, charge=_charge)
