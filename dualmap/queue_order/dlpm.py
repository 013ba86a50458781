"""Deficit longest prefix match: the longest cached prefix first, among tenants that have some of their quantum left.

Tenants take turns (`turns`), and inside of that the cache decides.
Source: "Locality-aware Fair Scheduling in LLM Serving" (DLPM). Not verified in it: the counter's details.
"""

from collections.abc import Sequence

from dualmap.queue_order.longest_prefix import by_cached_prefix
from dualmap.queue_order.turns import charge_turn, serve_in_turns
from dualmap.queue_order.types import Deficits, Discipline, OrderRule, QueuedRequest


def _serve(
    waiting: Sequence[QueuedRequest], now_s: float, ready_s: float, rule: OrderRule, deficits: Deficits
) -> Sequence[QueuedRequest]:
    """Each class counts from the deficits as they are now."""
    return serve_in_turns(by_cached_prefix(waiting), ready_s, rule, deficits.left_s)


def _charge(
    deficits: Deficits,
    started: QueuedRequest,
    waiting: Sequence[QueuedRequest],
    now_s: float,
    rule: OrderRule,
) -> Deficits:
    return Deficits(charge_turn(deficits.left_s, started, waiting, rule))


DLPM = Discipline(_serve, charge=_charge)
