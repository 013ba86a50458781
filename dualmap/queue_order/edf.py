"""Earliest deadline first: by arrival + SLO, ties in arrival order.

Source: the textbook order. Optimal while all can be met; under overload it serves who is about to be late, one
after the other. With one SLO for all it is arrival order.
"""

from collections.abc import Sequence

from dualmap.queue_order.types import Deficits, Discipline, OrderRule, QueuedRequest


def _serve(
    waiting: Sequence[QueuedRequest], now_s: float, ready_s: float, rule: OrderRule, deficits: Deficits
) -> Sequence[QueuedRequest]:
    return sorted(waiting, key=lambda request: request.arrival_s + request.slo_s)


EDF = Discipline(_serve)
