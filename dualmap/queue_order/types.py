"""The values of an admission queue's order; times are seconds, sizes are tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

OrderName: TypeAlias = Literal[
    "late-last", "fcfs", "edf", "shortest-prefill", "longest-prefix", "dlpm", "apt"
]
"""Every order by the name that settings use."""


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """A request that waits in an admission queue, as its order sees it."""

    request_id: str
    arrival_s: float
    own_s: float
    """Expected prefill seconds on this instance."""
    slo_s: float
    cached_tokens: int = 0
    priority: int = 0
    """Smaller is served earlier, as in vLLM."""
    prompt_tokens: int = 0
    tenant: str = ""

    def is_in_time(self, ready_s: float) -> bool:
        """Whether it meets its SLO if the engine begins it at `ready_s`."""
        return ready_s + self.own_s <= self.arrival_s + self.slo_s


@dataclass(frozen=True, slots=True)
class OrderRule:
    """The settings of the order."""

    order: str = "late-last"
    """An `OrderName`."""
    age_bound_s: float = 60.0
    """`late-last`: a late request that waited this long goes first ..."""
    aged_share: float = 0.5
    """... for no more than this share of the engine's time while others could be in time; more than 0, at most 1."""
    tenant_fairness: bool = True
    """`late-last`: tenants take turns; `dlpm` is nothing without."""
    quantum_s: float = 0.25
    """The prefill seconds that every tenant gets per round of turns; more than 0."""


class Ordered(NamedTuple):
    """A request in serving order, with when its prefill is expected to be done.

    A tuple, since a simulator makes millions of them: a frozen dataclass takes twice as long.
    """

    request: QueuedRequest
    feasible: bool
    """It meets its SLO at this place."""
    ttft_s: float
    """Expected TTFT counted from its arrival."""


@dataclass(frozen=True, slots=True)
class Deficits:
    """What each tenant may still be served of its quantum. Whoever owns a queue keeps this value for it."""

    left_s: Mapping[str, float] = field(default_factory=dict)
    """Prefill seconds by tenant, below 0 after a request that was longer than what was left; 0 where absent."""
    aged_owe_s: Mapping[str, float] = field(default_factory=dict)
    """`late-last`: prefill seconds that each tenant's aged requests owe its others; 0 where absent."""


NO_DEFICITS = Deficits()

Serve: TypeAlias = Callable[
    [Sequence[QueuedRequest], float, float, OrderRule, Deficits], Sequence[QueuedRequest]
]
"""(waiting, now_s, ready_s, rule, deficits) -> the same requests in serving order.

`waiting` are those of one priority class in arrival order, `ready_s` is when the engine is free for them.
"""
Charge: TypeAlias = Callable[[Deficits, QueuedRequest, Sequence[QueuedRequest], float, OrderRule], Deficits]
"""(deficits, started, waiting, now_s, rule) -> the deficits once `started`, one of the `waiting`, was started."""
First: TypeAlias = Callable[
    [QueuedRequest, QueuedRequest | None, float, float, OrderRule, Deficits], QueuedRequest
]
"""(oldest, oldest_in_time, now_s, ready_s, rule, deficits) -> the first that `serve` gives, where all are
of one tenant and one priority; `oldest_in_time` is the oldest that meets its SLO if it begins at `ready_s`."""


@dataclass(frozen=True, slots=True)
class Discipline:
    """One order: how it serves a priority class, and what others may rely on."""

    serve: Serve
    puts_late_last: bool = False
    """A request that is late wherever it stands is behind every feasible one of its class, until it has aged.

    Only then may a late prefill give way (`preempt`): under any other order it could be the next to start again.
    """
    charge: Charge | None = None
    """How it counts what tenants were served; None if it does not."""
    first: First | None = None
    """Who is first, if those two are enough to know it: a short cut past `serve`, which weighs all of a queue."""
