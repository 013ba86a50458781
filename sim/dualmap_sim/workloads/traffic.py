"""What the built-in workloads share: arrivals, popularity, sizes and the turns of sessions."""

import heapq
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from dualmap_sim.workloads.errors import WorkloadError
from dualmap_sim.workloads.pattern import Pattern, Steady

T = TypeVar("T")

_STEADY = Steady()


@dataclass(frozen=True, slots=True)
class Traffic:
    """How many requests come, how fast and in what pattern; `count` or `duration_s` ends it, the first that does."""

    rate_req_s: float = 2.0
    count: int | None = None
    duration_s: float | None = None
    seed: int = 0
    pattern: Pattern = _STEADY

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate_req_s) and self.rate_req_s > 0):
            raise WorkloadError(f"rate must be above 0 requests/s, not {self.rate_req_s}")
        if self.count is None and self.duration_s is None:
            raise WorkloadError("a number of requests or a duration is needed")
        if self.count is not None and self.count < 0:
            raise WorkloadError(f"the number of requests must not be negative: {self.count}")
        if self.duration_s is not None and not (math.isfinite(self.duration_s) and self.duration_s >= 0):
            raise WorkloadError(f"the duration must be a finite number of seconds, not {self.duration_s}")

    def rng(self, name: str) -> random.Random:
        """The chance of this run; the same seed and name give the same workload."""
        return random.Random(f"{name}/{self.seed}")

    def arrivals(self, rng: random.Random) -> Iterator[float]:
        """Arrival times in seconds, in order: Poisson, at a rate that follows the pattern."""
        # Its own chance: what is asked does not change with when it is asked.
        stretches = self.pattern.stretches(self.rng("pattern"))
        left_s, factor = next(stretches)
        at_s = 0.0
        for index in itertools.count():
            # Seconds at the mean rate; a stretch with a factor has that many times as many of them.
            gap_s = rng.expovariate(self.rate_req_s)
            while gap_s > left_s * factor:
                gap_s -= left_s * factor
                at_s += left_s
                left_s, factor = next(stretches)
            at_s += gap_s / factor
            left_s -= gap_s / factor
            if self.count is not None and index >= self.count:
                return
            if self.duration_s is not None and at_s > self.duration_s:
                return
            yield at_s


class Zipf:
    """Picks one of `size` things; thing i is drawn in proportion to 1 / (i + 1) ** skew."""

    def __init__(self, size: int, skew: float) -> None:
        self._indexes = range(size)
        self._weights = list(itertools.accumulate((i + 1) ** -skew for i in self._indexes))

    def pick(self, rng: random.Random) -> int:
        """An index below `size`."""
        return rng.choices(self._indexes, cum_weights=self._weights)[0]


def draw_tokens(rng: random.Random, mean: float, sigma: float, low: int, high: int) -> int:
    """A log-normal size with that mean before it is kept within [low, high]."""
    mu = math.log(mean) - sigma * sigma / 2
    return max(low, min(high, round(rng.lognormvariate(mu, sigma))))


class Sessions(Generic[T]):
    """Sessions that wait for their next turn.

    Arrivals come first and pick a session whose turn is due: so arrivals stay Poisson whatever sessions do.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, T]] = []
        self._order = itertools.count()

    def park(self, session: T, ready_s: float) -> None:
        """Let the session's next turn come no earlier than `ready_s`."""
        heapq.heappush(self._waiting, (ready_s, next(self._order), session))

    def take(self, now_s: float) -> T | None:
        """The session whose turn has been due longest, or None when no turn is due."""
        if self._waiting and self._waiting[0][0] <= now_s:
            return heapq.heappop(self._waiting)[2]
        return None
