"""Shortest prefill first: by expected prefill seconds, ties in arrival order. The long may starve.

Source: the textbook order, with the uncached part of the prefill as the length.
"""

from collections.abc import Sequence
from operator import attrgetter

from dualmap.queue_order.types import Deficits, Discipline, OrderRule, QueuedRequest

_own_s = attrgetter("own_s")


def _serve(
    waiting: Sequence[QueuedRequest], now_s: float, ready_s: float, rule: OrderRule, deficits: Deficits
) -> Sequence[QueuedRequest]:
    return sorted(waiting, key=_own_s)


SHORTEST_PREFILL = Discipline(_serve)
