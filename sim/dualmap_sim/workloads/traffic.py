"""What the built-in workloads share: arrivals, popularity, sizes and the turns of sessions."""

import heapq
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

from dualmap_sim.workloads.errors import WorkloadError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Traffic:
    """How many requests come, and how fast; `count` and `duration_s` end it, whichever comes first."""

    rate_req_s: float = 2.0
    count: int | None = None
    duration_s: float | None = None
    seed: int = 0

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
        """Poisson arrival times in seconds, in order."""
        at_s = 0.0
        for index in itertools.count():
            at_s += rng.expovariate(self.rate_req_s)
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


class Shape:
    """Base of the workloads' shapes: frozen dataclasses of numbers."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value: Any = getattr(self, field.name)
            positive = isinstance(field.default, int) or field.name.endswith("_mean")
            if not math.isfinite(value) or value < 0 or (positive and value < 1):
                low = "1 or more" if positive else "0 or more"
                raise WorkloadError(f"{field.name} must be {low}, not {value}")
