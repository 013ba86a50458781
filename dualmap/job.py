"""A request as admission sees it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dualmap.queue_order import QueuedRequest
from dualmap.ttft import Prefill
from dualmap.types import PrefillSpeed


@dataclass(slots=True, eq=False)
class Job:
    """A request in this worker, from its arrival to its end."""

    request_id: str
    arrival_s: float
    """When its router read it, on this process's clock."""
    prompt_tokens: int
    cached_tokens: int
    slo_s: float
    priority: int = 0
    tenant: str = ""
    streamed: bool = True
    feasible: bool = True
    """As booked by the router."""
    start: Callable[[], None] = lambda: None
    """Sends it to the engine."""
    stop: Callable[[], None] = lambda: None
    """Takes it out of the engine; `Admission.requeue` follows when it is out, unless it ended first."""
    prefilled: Callable[[], None] = lambda: None
    """Told when the estimate says that an unstreamed answer's prefill is over."""
    started_s: float | None = None
    first_byte_s: float | None = None
    prefill_s: float | None = None
    preemptions: int = 0
    stopping: bool = False
    group: "PrefillGroup | None" = None
    ended: bool = False
    computed: Prefill | None = None
    """What its prefill was, once it has ended; None where that stays unknown."""
    _own: tuple[PrefillSpeed, int, float] | None = None
    """The last answer of `own_s`, and what it was for: a queue is weighed again and again at one speed."""

    @property
    def uncached_tokens(self) -> int:
        """Tokens that its prefill computes, as far as is known."""
        return max(self.prompt_tokens - self.cached_tokens, 1)

    @property
    def expected(self) -> Prefill:
        """Its prefill as it was booked."""
        return self.uncached_tokens, self.cached_tokens

    def own_s(self, speed: PrefillSpeed) -> float:
        """Expected prefill seconds."""
        own = self._own
        if own is not None and own[0] is speed and own[1] == self.cached_tokens:
            return own[2]
        own_s = speed.prefill_s(self.uncached_tokens, self.cached_tokens)
        self._own = (speed, self.cached_tokens, own_s)
        return own_s

    def queued(self, own_s: float) -> QueuedRequest:
        """As the order sees it, with so much to prefill."""
        return QueuedRequest(
            request_id=self.request_id,
            arrival_s=self.arrival_s,
            own_s=own_s,
            slo_s=self.slo_s,
            cached_tokens=self.cached_tokens,
            priority=self.priority,
            prompt_tokens=self.prompt_tokens,
            tenant=self.tenant,
        )


@dataclass(slots=True)
class PrefillGroup:
    """Prefills whose first bytes came together: only their sum was observed."""

    seconds: float = 0.0
    jobs: list[Job] = field(default_factory=list)
    closed: bool = False
    spoilt: bool = False
    """The seconds are not theirs alone."""

    def add(self, jobs: Sequence[Job], seconds: float) -> None:
        """Prefills that took so long together."""
        self.seconds += seconds
        for job in jobs:
            job.group = self
            self.jobs.append(job)

    def dissolve(self) -> None:
        """Nothing more will be learnt from it: jobs and group no longer hold each other, and with them requests."""
        for job in self.jobs:
            if job.group is self:
                job.group = None
        self.jobs.clear()
