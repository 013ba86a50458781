"""Capacity: the highest rate at which a share of the requests meets its SLO, found by bisection.

A run that cannot reach the share any more ends at once. Seeds draw the arrivals and the rings anew, and each
has a capacity of its own; the interval is Student's over them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import TypeVar

from dualmap_sim.fleet.fleet import Fleet
from dualmap_sim.fleet.result import Measures, RunResult, summarize
from dualmap_sim.workloads.arrival import Arrival

R = TypeVar("R")

_T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Student's t for 95 %, by degrees of freedom from 1 on."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The capacity of one policy on one workload; rates are requests/s."""

    per_seed: tuple[float, ...]
    at_capacity: RunResult | None
    """A run of the first seed at its capacity; None if that is 0."""

    @property
    def rate_req_s(self) -> float:
        """Mean over the seeds."""
        return fmean(self.per_seed)

    @property
    def ci(self) -> tuple[float, float]:
        """95 % confidence interval of the mean; the mean itself for one seed."""
        mean, num = self.rate_req_s, len(self.per_seed)
        if num < 2:
            return mean, mean
        half = _T_95[min(num - 2, len(_T_95) - 1)] * stdev(self.per_seed) / sqrt(num)
        return mean - half, mean + half


def run_fleet(
    fleet: Fleet, arrivals: Sequence[Arrival], share: float | None = None, measures: Measures = Measures()
) -> RunResult | None:
    """Run a workload; None when it ended early because `share` within SLO is out of reach."""
    if not fleet.run(arrivals, most_late(arrivals, share)):
        return None
    busy_s = [instance.engine.busy_s for instance in fleet.instances]
    return summarize(fleet.flights, busy_s, measures)


def most_late(arrivals: Sequence[Arrival], share: float | None) -> int | None:
    """How many may be late when a share is to meet its SLO; None if none is asked for."""
    return None if share is None else int((1.0 - share) * len(arrivals) + 1e-9)


def find_capacity(
    attempt: Callable[[float], R | None],
    guess_req_s: float,
    tolerance: float = 0.01,
    step: float = 1.25,
) -> tuple[float, R | None]:
    """The highest rate at which `attempt` succeeds, within a relative tolerance, and what it gave; None is no success.

    From the guess on it takes steps by a factor until it has passed the capacity. 0.0 and None when no rate down
    to a thousandth of the guess will do; a hundred times the guess and its run when that succeeds, as it does when a
    workload is so short that it is one burst.
    """
    low, high = 0.0, guess_req_s
    best: R | None = None
    while (result := attempt(high)) is not None:
        low, best, high = high, result, high * step
        if low >= guess_req_s * 100.0:
            return low, best
    if best is None:
        low = high / step
        while (best := attempt(low)) is None:
            high, low = low, low / step
            if low < guess_req_s / 1000.0:
                return 0.0, None
    while high - low > tolerance * low:
        middle = (low + high) / 2
        result = attempt(middle)
        if result is None:
            high = middle
        else:
            low, best = middle, result
    return low, best
