"""What a study compares: a named fleet, a policy or a bound with the rules that it runs under."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dualmap.queue_order import OrderName
from dualmap.types import Slo
from dualmap_sim.bounds import BOUNDS
from dualmap_sim.fleet.setup import FleetSetup
from dualmap_sim.policies import POLICIES, with_policy

DEFAULT_POLICY = "dualmap"
NAMES: Sequence[str] = (*POLICIES, *BOUNDS)
"""Everything that can be run by name."""
_TYPICAL_TOKENS = 8_000
SHIPPING = ("sglang", "llm-d", "dynamo", "aibrix-prefix", "chwbl", "preble")
"""The rules of routers that are in use."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A fleet under a name; `setup.seed` is the run's."""

    name: str
    order: str
    setup: FleetSetup

    @property
    def is_baseline(self) -> bool:
        """Somebody else's policy, not the default one and no bound."""
        return self.name in POLICIES and self.name != DEFAULT_POLICY


def make_subject(
    base: FleetSetup, name: str, order: OrderName | None = None, preempt: bool | None = None
) -> Subject:
    """A policy as published, or a bound, on a fleet; `order` and `preempt` override what a policy was published with.

    A KeyError for a name that is not known.
    """
    bound = BOUNDS.get(name)
    if bound is not None:
        return Subject(name, bound.order, _aligned(bound.make(base)))
    setup = with_policy(base, name, order)
    if preempt is not None:
        setup = replace(setup, preempt=replace(setup.preempt, enabled=preempt))
    return Subject(name, setup.order.order, _aligned(setup))


def _aligned(setup: FleetSetup) -> FleetSetup:
    """Its rebalancer plans by the order that its queues have."""
    rule = setup.rebalance
    return setup if rule is None else replace(setup, rebalance=replace(rule, order=setup.order))


def with_slo(setup: FleetSetup, slo: Slo, typical_tokens: int = _TYPICAL_TOKENS) -> FleetSetup:
    """The same fleet under another SLO; its rebalancer calls hot what makes a typical prompt late."""
    rule = setup.rebalance
    if rule is not None:
        rule = replace(rule, slo_s=slo.for_prompt(typical_tokens))
    return replace(setup, slo=slo, rebalance=rule)
