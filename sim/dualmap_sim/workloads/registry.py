"""The table of built-in workloads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from dualmap_sim.workloads.agents import AgentsShape, agents
from dualmap_sim.workloads.chat import ChatShape, chat
from dualmap_sim.workloads.documents import DocumentsShape, documents
from dualmap_sim.workloads.errors import WorkloadError
from dualmap_sim.workloads.hotspot import Hotspot, add_hotspot
from dualmap_sim.workloads.pattern import Bursts, Diurnal
from dualmap_sim.workloads.request import TimedRequest
from dualmap_sim.workloads.shape import Shape
from dualmap_sim.workloads.system_prompts import DriftShape, SystemPromptsShape, drift, system_prompts
from dualmap_sim.workloads.tenants import TenantsShape, tenants
from dualmap_sim.workloads.traffic import Traffic
from dualmap_sim.workloads.unique import UniqueShape, unique


@dataclass(frozen=True, slots=True)
class Workload:
    """A named workload: what it is in one line, what can be set, how it is made."""

    description: str
    shape: type[Shape]
    make: Callable[[Traffic, Any], list[TimedRequest]]

    def defaults(self) -> dict[str, int | float]:
        """What can be set, with the values it has otherwise."""
        return {field.name: field.default for field in fields(self.shape)}  # type: ignore[arg-type, misc]


def _hotspot_chat(traffic: Traffic, shape: Hotspot) -> list[TimedRequest]:
    return add_hotspot(chat(traffic, ChatShape()), shape, traffic.seed)


def _patterned_chat(traffic: Traffic, shape: Bursts | Diurnal) -> list[TimedRequest]:
    return chat(replace(traffic, pattern=shape), ChatShape())


WORKLOADS: dict[str, Workload] = {
    "chat": Workload("conversations over a few popular system prompts", ChatShape, chat),
    "agents": Workload(
        "tool agents: a few hot tool prompts, many steps over a growing context", AgentsShape, agents
    ),
    "system-prompts": Workload(
        "popular system prompts before unique text", SystemPromptsShape, system_prompts
    ),
    "drift": Workload("system prompts whose popularity moves", DriftShape, drift),
    "tenants": Workload("chat of several tenants, one of which floods", TenantsShape, tenants),
    "documents": Workload("long documents with several questions each", DocumentsShape, documents),
    "unique": Workload("prompts that share nothing", UniqueShape, unique),
    "hotspot": Workload("chat with a burst on one hot prefix in the middle", Hotspot, _hotspot_chat),
    "bursts": Workload("chat that comes in bursts", Bursts, _patterned_chat),
    "diurnal": Workload("chat at a rate that swings like day and night", Diurnal, _patterned_chat),
}


def make_workload(
    name: str, traffic: Traffic, settings: Mapping[str, float] | None = None
) -> list[TimedRequest]:
    """Make a built-in workload; `settings` override its shape's defaults by name."""
    workload = WORKLOADS.get(name)
    if workload is None:
        raise WorkloadError(f"no workload is called {name!r}; there are {', '.join(WORKLOADS)}")
    defaults = workload.defaults()
    values: dict[str, int | float] = {}
    for key, value in (settings or {}).items():
        if key not in defaults:
            raise WorkloadError(f"{name} has no setting {key!r}; it has {', '.join(defaults)}")
        if isinstance(defaults[key], int) and value != int(value):
            raise WorkloadError(f"{key} must be a whole number, not {value}")
        values[key] = type(defaults[key])(value)
    return workload.make(traffic, workload.shape(**values))
