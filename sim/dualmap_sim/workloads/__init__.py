"""Requests over time: built-in workloads and published traces, the same for the simulator and the wire."""

from dualmap_sim.workloads.errors import TraceError, WorkloadError
from dualmap_sim.workloads.hotspot import Hotspot, add_hotspot
from dualmap_sim.workloads.ideal import WorkloadSummary, ideal_hit_share, summarize
from dualmap_sim.workloads.mooncake import TraceReading, read_mooncake
from dualmap_sim.workloads.pattern import PATTERNS, Bursts, Diurnal, Pattern, Steady
from dualmap_sim.workloads.registry import WORKLOADS, Workload, make_workload
from dualmap_sim.workloads.request import Message, TimedRequest
from dualmap_sim.workloads.text import BLOCK_TOKENS, BYTES_PER_TOKEN, Span
from dualmap_sim.workloads.traffic import Traffic

__all__ = [
    "BLOCK_TOKENS",
    "BYTES_PER_TOKEN",
    "PATTERNS",
    "WORKLOADS",
    "Bursts",
    "Diurnal",
    "Hotspot",
    "Message",
    "Pattern",
    "Span",
    "Steady",
    "TimedRequest",
    "TraceError",
    "TraceReading",
    "Traffic",
    "Workload",
    "WorkloadError",
    "WorkloadSummary",
    "add_hotspot",
    "ideal_hit_share",
    "make_workload",
    "read_mooncake",
    "summarize",
]
