"""Placement policies of the simulator: DualMap's own, from the core, and every baseline, a file each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dualmap.queue_order import OrderName
from dualmap_sim.fleet.policy import PlacementPolicy
from dualmap_sim.fleet.setup import FleetSetup
from dualmap_sim.policies.aibrix_prefix import AIBrixPrefix
from dualmap_sim.policies.chwbl import BoundedLoadHash
from dualmap_sim.policies.consistent_hash import ConsistentHash
from dualmap_sim.policies.core import CorePolicy
from dualmap_sim.policies.dynamo import Dynamo
from dualmap_sim.policies.llm_d import LlmD
from dualmap_sim.policies.lmetric import LMetric
from dualmap_sim.policies.mooncake import Mooncake
from dualmap_sim.policies.power_of_two import PowerOfTwo
from dualmap_sim.policies.preble import Preble
from dualmap_sim.policies.sglang import SGLangCacheAware
from dualmap_sim.policies.skywalker import SkyWalker, SkyWalkerHash

__all__ = ["POLICIES", "PolicySpec", "make_policy", "with_policy"]


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A policy as it was published: how it places, and what its queues do."""

    make: Callable[[FleetSetup], PlacementPolicy]
    order: OrderName = "fcfs"
    rebalances: bool = False
    """DualMap's rebalancer moves queued requests."""
    weighs_moves: bool = True
    """... for more than what their own TTFT gains, as in `RebalanceRule.lambda_own`."""
    preempts: bool = False
    """Late prefills give way."""


def _core(name: str) -> Callable[[FleetSetup], PlacementPolicy]:
    return lambda setup: CorePolicy(replace(setup.choice, policy=name))


POLICIES: Mapping[str, PolicySpec] = {
    "dualmap": PolicySpec(_core("dualmap"), "late-last", rebalances=True, preempts=True),
    "paper": PolicySpec(_core("paper"), "longest-prefix", rebalances=True, weighs_moves=False),
    "round-robin": PolicySpec(_core("round-robin")),
    "least-loaded": PolicySpec(_core("least-loaded")),
    "cache-affinity": PolicySpec(_core("cache-affinity")),
    "power-of-two": PolicySpec(lambda setup: PowerOfTwo()),
    "consistent-hash": PolicySpec(lambda setup: ConsistentHash()),
    "chwbl": PolicySpec(lambda setup: BoundedLoadHash()),
    "sglang": PolicySpec(lambda setup: SGLangCacheAware()),
    "preble": PolicySpec(lambda setup: Preble(setup.kv_blocks)),
    "mooncake": PolicySpec(lambda setup: Mooncake()),
    "llm-d": PolicySpec(lambda setup: LlmD(setup.kv_blocks)),
    "dynamo": PolicySpec(lambda setup: Dynamo()),
    "skywalker": PolicySpec(lambda setup: SkyWalker()),
    "skywalker-ch": PolicySpec(lambda setup: SkyWalkerHash()),
    "aibrix-prefix": PolicySpec(lambda setup: AIBrixPrefix()),
    "lmetric": PolicySpec(lambda setup: LMetric()),
}
"""Every policy by name, with the order that it was published with; `with_policy` pairs any with any order.

`least-loaded` and `cache-affinity` are the core's: load is booked prefill seconds, where BASELINES.md counts pending
uncached tokens.
"""


def with_policy(setup: FleetSetup, name: str, order: OrderName | None = None) -> FleetSetup:
    """The same fleet under a policy, as published unless another order is asked for."""
    spec = POLICIES[name]
    rebalance = setup.rebalance if spec.rebalances else None
    if rebalance is not None and not spec.weighs_moves:
        rebalance = replace(rebalance, lambda_own=0.0)
    return replace(
        setup,
        policy=name,
        order=replace(setup.order, order=order or spec.order),
        rebalance=rebalance,
        preempt=replace(setup.preempt, enabled=setup.preempt.enabled and spec.preempts),
    )


def make_policy(setup: FleetSetup) -> PlacementPolicy:
    """The policy of a run."""
    return POLICIES[setup.policy].make(setup)
