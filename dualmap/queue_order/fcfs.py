"""First come, first served: arrival order whatever the SLO.

Source: the order inside every engine that it is compared with; vLLM's default.
"""

from collections.abc import Sequence

from dualmap.queue_order.types import Deficits, Discipline, OrderRule, QueuedRequest


def _serve(
    waiting: Sequence[QueuedRequest], now_s: float, ready_s: float, rule: OrderRule, deficits: Deficits
) -> Sequence[QueuedRequest]:
    return waiting


FCFS = Discipline(_serve)
