"""What is simulated: the fleet, its rules, and what goes wrong."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from dualmap.preempt import PreemptRule
from dualmap.queue_order import OrderRule
from dualmap.rebalance import RebalanceRule
from dualmap.types import ChoiceRule, Slo
from dualmap_sim.engine.profile import EngineProfile
from dualmap_sim.fleet.serial import SerialProfile

ChangeKind: TypeAlias = Literal["lose", "drain", "join"]


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of an instance, and when.

    `lose`: it is gone, with its cache; who had no first token is sent elsewhere, and streams end there (a live router
    continues them, at the cost of a prefill that is not simulated). `drain`: no new requests. `join`: it takes requests
    from now on, with an empty cache; before a first `join` it is not there.
    """

    at_s: float
    index: int
    kind: ChangeKind


@dataclass(frozen=True, slots=True)
class FleetSetup:
    """A fleet and the rules that it runs by; times are seconds, blocks hold 512 tokens."""

    num_instances: int = 8
    kv_blocks: int = 840
    slo: Slo = Slo(5.0)
    policy: str = "dualmap"
    choice: ChoiceRule = ChoiceRule()
    order: OrderRule = OrderRule()
    preempt: PreemptRule = PreemptRule()
    rebalance: RebalanceRule | None = RebalanceRule()
    adaptive_key: bool = True
    """False keeps prefix keys at one chunk, whatever is popular."""
    model: str | EngineProfile | SerialProfile = "serial"
    """What the engines are: `serial` or its profile, or chunked with a profile or the name of one.

    `kv_blocks` holds for all.
    """
    ahead_tokens: int = 0
    step_tokens: int = 0
    max_running: int = 256
    num_routers: int = 1
    telemetry_s: float = 0.1
    """How old telemetry gets before it is read again. Workers report soon after a change: 0.02 is as `bench.fidelity`
    finds the services."""
    sync_s: float = 0.0
    """How often routers read what the others have booked: so old it gets, half as old it is on average. 0 is one set of
    books for all."""
    noise: float = 0.0
    seed: int = 0
    speed_factors: tuple[float, ...] = field(default=())
    """Per instance, how many times slower than its profile; empty for 1."""
    names: tuple[str, ...] = ()
    """Of the instances, as the rings know them; empty for i0, i1, ..."""
    hop_s: float = 0.0
    """Mean of what processes and networks take, exponential: from a router's decision to the worker's queue, from the
    engine's first token to the worker and the client, from a queue back to the router for a request that moves."""
    changes: tuple[Change, ...] = ()
    """Instances that are lost, leave or come."""
    adapters: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Which instances serve an adapter; all of them serve one that is not named."""
