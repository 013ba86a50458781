"""Longest cached prefix first, ties in arrival order. Who has nothing cached may starve.

Source: the queue of each instance in DualMap as published, and SGLang's `lpm`, which counts the prefix in tokens
as here. Left out: SGLang's demotion of requests whose prefix another waiting one is about to compute. Not known:
how DualMap breaks ties, and whether it looks the prefix up again while a request waits; here that is the caller's.
"""

from collections.abc import Sequence
from operator import attrgetter

from dualmap.queue_order.types import Deficits, Discipline, OrderRule, QueuedRequest

_cached_tokens = attrgetter("cached_tokens")


def _serve(
    waiting: Sequence[QueuedRequest], now_s: float, ready_s: float, rule: OrderRule, deficits: Deficits
) -> Sequence[QueuedRequest]:
    return by_cached_prefix(waiting)


def by_cached_prefix(waiting: Sequence[QueuedRequest]) -> list[QueuedRequest]:
    """The longest cached prefix first; equals stay as they are."""
    return sorted(waiting, key=_cached_tokens, reverse=True)


LONGEST_PREFIX = Discipline(_serve)
