"""The decision without Redis: the same `choose`, over what this router knows by itself.

That is the rings, the last telemetry and this router's own charges. It knows neither what other routers have
booked nor which instance holds a prefix: the rings alone keep affinity.
"""

import itertools

from dualmap.choose import choose, within_bound
from dualmap.types import InstanceView, PrefillSpeed
from dualmap_router.charges import Charges
from dualmap_service.registry import Membership
from dualmap_wire.redis_functions import Overload, RouteCall, Routed, instance_view, weigh


def local_view(
    name: str, charges: Charges, membership: Membership, default_speed: PrefillSpeed
) -> InstanceView:
    """One instance as this router knows it."""
    feasible_us, infeasible_us = charges.own_us(name)
    member = membership.members.get(name)
    perf = member.perf if member is not None else None
    return instance_view(name, feasible_us, infeasible_us, 0, perf, membership.now_us, default_speed)


def decide_alone(call: RouteCall, charges: Charges, membership: Membership, turn: int) -> Routed | Overload:
    """What `route` would answer, from local views; books nothing."""
    names = call.pool.decode().split("\n")
    rotated = names[call.start :] + names[: call.start]

    def view(name: str) -> InstanceView:
        return local_view(name, charges, membership, call.default_speed)

    pair = [view(name) for name in call.pair]
    others = [name for name in rotated if name not in call.pair]
    decision = choose(call.request, pair, map(view, others), call.rule, turn)
    if call.max_wait_s > 0.0:
        wanted_s = decision.chosen.wait_s
        everyone = itertools.chain(pair, map(view, others))
        bounded = within_bound(decision, call.request, everyone, call.rule, call.max_wait_s)
        if bounded is None:
            return Overload(wanted_s)
        decision = bounded
    chosen, other = decision.chosen, decision.other
    return Routed(
        instance=chosen.instance,
        backup=decision.backup,
        reason=decision.reason,
        feasible=chosen.feasible,
        owned_chunks=chosen.owned_chunks,
        backup_owned_chunks=other.owned_chunks if other is not None else 0,
        wait_s=chosen.wait_s,
        own_s=chosen.own_s,
        ttft_s=chosen.ttft_s,
        weighed=[
            weigh(e.instance, e.owned_chunks, e.wait_s, e.own_s) for e in (chosen, other) if e is not None
        ],
    )
