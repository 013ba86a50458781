"""One request on its way through a simulated fleet."""

from dataclasses import dataclass

from dualmap.job import Job
from dualmap.types import Reason
from dualmap_sim.fleet.engine import Sequence
from dualmap_sim.fleet.state import Charge
from dualmap_sim.workloads.arrival import Arrival


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a policy sends a request."""

    index: int
    reason: Reason
    feasible: bool
    """It is expected to meet its SLO there."""
    own_s: float
    """Expected prefill seconds."""
    depth: int
    """Leading chunks that the instance is taken to hold."""
    ttft_s: float = 0.0
    backup: int | None = None
    """Where the rebalancer tries first."""
    backup_depth: int = 0


@dataclass(slots=True, eq=False)
class Flight:
    """A request from its arrival to its last token; times are simulated seconds."""

    arrival: Arrival
    slo_s: float
    router: int
    choice: Choice | None = None
    charge: Charge | None = None
    job: Job | None = None
    sequence: Sequence | None = None
    moves: int = 0
    escaped: bool = False
    preemptions: int = 0
    told_s: float = 0.0
    """When its worker hears of the engine's first token."""
    first_token_s: float | None = None
    finished_s: float | None = None
    refused: bool = False
    cached_tokens: int = 0
    """What its last run found in the cache, without what its own earlier runs had computed."""

    @property
    def ttft_s(self) -> float | None:
        """From arrival to first token."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival.at_s

    @property
    def within_slo(self) -> bool:
        """It saw its first token in time."""
        return self.first_token_s is not None and self.first_token_s - self.arrival.at_s <= self.slo_s
