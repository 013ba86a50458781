"""What is run: rates, sizes and how many at a time."""

from dataclasses import dataclass

from bench.peers.arena import DUALMAP, ORACLE
from bench.peers.peers import PEERS

SLO_S = 5.0
SUBJECTS = (DUALMAP, *PEERS)
WORKLOADS = ("conversation", "agents")
RATES: dict[str, tuple[float, ...]] = {
    "conversation": (2.9, 4.4, 5.9, 7.3, 9.0),
    "agents": (8.0, 12.0, 16.0, 20.0, 25.0),
}
"""Requests a second, the same for everybody, lowest first."""
FIRST_RATE: dict[tuple[str, str], float] = {
    ("conversation", DUALMAP): 4.4,
    ("conversation", ORACLE): 4.4,
    ("agents", DUALMAP): 16.0,
    ("agents", ORACLE): 12.0,
}
"""Who holds the lower rates easily begins here."""
ENOUGH = 0.55
"""A subject that has so few in time is not run at higher rates: it would say no more of its capacity."""
FLEETS = (1, 2, 4, 8)
FLEET_SUBJECTS = (DUALMAP, "sglang-router tuned", "smg tuned")
LOUD_FLEETS = ("smg tuned",)
"""Whose routers keep the cores busy between themselves: nobody else is measured beside them."""
FLEET_RATE: dict[str, float] = {DUALMAP: 5.9, "sglang-router tuned": 2.9, "smg tuned": 2.9}
"""Each where one of it has about nine in ten in time: what more routers lose shows there."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of it."""

    count: int = 700
    """Requests of a run on the trace: its first ones."""
    agents_s: float = 100.0
    """Model seconds of a run of generated requests; shorter, a queue that grows would not be seen."""
    time_scale: float = 2.0
    """Model seconds in a second; who polls on a wall clock sees news as late as that."""
    jobs: int = 5
    """Runs side by side: at this scale one takes a tenth of two cores."""
    num_rates: int = 9
    """At most so many of a workload's rates, from the lowest that a subject begins at."""
    search: bool = True
    """One more run in the middle of where a capacity lies."""
    fleets: tuple[int, ...] = FLEETS
    fleet_rounds: int = 2
    """How often each of DualMap's fleets is run: one run differs from the next by more than fleets do."""
    overhead_s: float = 3.0
    """Length of an overhead window."""
    prompts: int = 20_000

    def requests(self, workload: str, rate_req_s: float) -> int:
        """How many requests a run has."""
        return round(self.agents_s * rate_req_s) if workload == "agents" else self.count


FULL = Effort(count=1500, agents_s=300.0, jobs=3, fleet_rounds=3, overhead_s=8.0)
QUICK = Effort(
    count=100,
    agents_s=10.0,
    time_scale=5.0,
    jobs=2,
    num_rates=1,
    search=False,
    fleets=(1, 2),
    fleet_rounds=1,
    overhead_s=1.0,
    prompts=500,
)
