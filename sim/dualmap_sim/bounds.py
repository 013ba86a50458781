"""Bounds: fleets that cannot be built, to hold the policies against. They run by name like any policy.

`pool-*` are one super-instance: a single engine as fast as all of them, with all their KV blocks behind one queue.
It balances perfectly and holds each prefix once, but serves prefills one after the other: a long one blocks
everybody, where it would block an eighth of a fleet. So a pool under FCFS bounds no fleet under a better order.
`infinite-cache` is the default policy on instances that never evict: what a larger cache could add, placement and
order being what they are. `offline-order` is in `offline.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dualmap.queue_order import OrderName
from dualmap.types import PrefillSpeed
from dualmap_sim.engine.profile import EngineProfile
from dualmap_sim.fleet.engines import model_profile
from dualmap_sim.fleet.serial import SerialProfile
from dualmap_sim.fleet.setup import FleetSetup
from dualmap_sim.policies import with_policy

OFFLINE_ORDER = "offline-order"
_ENDLESS_BLOCKS = 1_000_000


@dataclass(frozen=True, slots=True)
class Bound:
    """A fleet made of another one, and the order that its queues have."""

    make: Callable[[FleetSetup], FleetSetup]
    order: OrderName | str


def pooled(setup: FleetSetup) -> FleetSetup:
    """One super-instance of the whole fleet: N times the prefill speed, the KV blocks and the sequences.

    A sequence decodes as fast as it did, and slows prefills down by an Nth of what it did: the pool has N times as
    many of them.
    """
    num = setup.num_instances
    return replace(
        setup,
        num_instances=1,
        kv_blocks=setup.kv_blocks * num,
        # It is a bound: nothing happens to it.
        changes=(),
        max_running=setup.max_running * num,
        model=_faster(model_profile(setup), num),
        speed_factors=(),
        rebalance=None,
        # Noise and stale books mislead a choice among instances; here is none.
        num_routers=1,
        noise=0.0,
        sync_s=0.0,
    )


def _pool(order: OrderName, preempts: bool) -> Callable[[FleetSetup], FleetSetup]:
    def make(setup: FleetSetup) -> FleetSetup:
        pool = with_policy(pooled(setup), "least-loaded", order)
        return replace(pool, preempt=replace(setup.preempt, enabled=preempts))

    return make


def _endless(setup: FleetSetup) -> FleetSetup:
    return with_policy(replace(setup, kv_blocks=_ENDLESS_BLOCKS), "dualmap")


BOUNDS: Mapping[str, Bound] = {
    "pool-fcfs": Bound(_pool("fcfs", preempts=False), "fcfs"),
    "pool-late-last": Bound(_pool("late-last", preempts=False), "late-last"),
    "pool-late-last-preempt": Bound(_pool("late-last", preempts=True), "late-last"),
    "infinite-cache": Bound(_endless, "late-last"),
    OFFLINE_ORDER: Bound(lambda setup: replace(pooled(setup), policy=OFFLINE_ORDER), OFFLINE_ORDER),
}


def _faster(profile: SerialProfile | EngineProfile, times: int) -> SerialProfile | EngineProfile:
    if isinstance(profile, SerialProfile):
        speed = profile.speed
        return SerialProfile(
            PrefillSpeed(speed.a_s / times, speed.b_s_per_token / times, speed.c_s_per_token2 / times),
            profile.slow_down_per_running / times,
            profile.decode_s_per_token,
        )
    return replace(
        profile,
        prefill_request_s=profile.prefill_request_s / times,
        prefill_s_per_token=profile.prefill_s_per_token / times,
        prefill_s_per_token2=profile.prefill_s_per_token2 / times,
        decode_s_per_seq=profile.decode_s_per_seq / times,
        max_num_batched_tokens=profile.max_num_batched_tokens * times,
        max_num_seqs=profile.max_num_seqs * times,
    )
