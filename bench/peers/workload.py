"""What is sent: the first requests of a conversation trace, or tool agents, at a rate."""

from dataclasses import dataclass
from pathlib import Path

from dualmap_sim.workloads import TimedRequest, TraceReading, Traffic, make_workload, read_mooncake

_STAND_IN = {"document_tokens": 11_000, "questions_mean": 1.8, "system_tokens": 512, "answer_tokens": 343}
"""Documents of the sizes and the reuse of the trace, for who has not got it."""


@dataclass(frozen=True, slots=True)
class Source:
    """A workload that can be had at any rate."""

    name: str
    """conversation or agents."""
    count: int
    trace: Path | None = None
    seed: int = 1

    def requests(self, rate_req_s: float) -> list[TimedRequest]:
        """The requests, as chats; a trace's gaps are stretched, generated ones are made anew."""
        if self.name == "agents":
            return make_workload("agents", Traffic(rate_req_s, self.count, seed=self.seed), {})
        if self.trace is None:
            return make_workload("documents", Traffic(rate_req_s, self.count, seed=self.seed), _STAND_IN)
        reading = TraceReading(count=self.count, rate_req_s=rate_req_s, as_chat=True)
        return read_mooncake(self.trace, reading)
