"""Tenants of unequal volume: one floods, the others share what is left."""

import random
from dataclasses import dataclass

from dualmap_sim.workloads.chat import ChatShape, converse
from dualmap_sim.workloads.errors import WorkloadError
from dualmap_sim.workloads.request import TimedRequest
from dualmap_sim.workloads.shape import Shape
from dualmap_sim.workloads.traffic import Traffic, Zipf


@dataclass(frozen=True, slots=True)
class TenantsShape(ChatShape):
    """`flood_share` of the conversations are tenant-0's; `skew` orders the others and each tenant's prompts."""

    tenants: int = 8
    flood_share: float = 0.6
    system_prompts: int = 3

    def __post_init__(self) -> None:
        # Spelled out: a slotted dataclass is a new class, which the plain super() does not know.
        Shape.__post_init__(self)
        if self.flood_share > 1 or (self.tenants == 1 and self.flood_share < 1):
            raise WorkloadError("flood_share must be 0 to 1, and 1 for a single tenant")


def tenants(traffic: Traffic, shape: TenantsShape) -> list[TimedRequest]:
    """Make conversations, each over a system prompt of its tenant's own."""
    others = Zipf(max(1, shape.tenants - 1), shape.skew)
    prompts = Zipf(shape.system_prompts, shape.skew)

    def begin(rng: random.Random) -> tuple[str, str | None]:
        tenant = 0 if rng.random() < shape.flood_share else 1 + others.pick(rng)
        return f"{tenant}.system.{prompts.pick(rng)}", f"tenant-{tenant}"

    return converse("tenants", traffic, shape, begin)
