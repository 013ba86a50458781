"""A cell's comparison: both sides in numbers, and how far apart they are."""

from collections.abc import Sequence
from statistics import mean, median

import msgspec

from bench.fidelity.cell import HOP_S, SLO_S, Cell
from bench.fidelity.live import LiveRun
from bench.fidelity.outcome import COMPARED, Measures, Seen, measure
from bench.fidelity.simulated import run_simulated
from dualmap_sim.workloads import TimedRequest

LIMIT = 0.10
_HOPS_S = tuple(HOP_S * share for share in (0.8, 0.9, 1.0, 1.1, 1.2))
"""A live run is one draw: milliseconds decide who goes where, and that whatever comes later. So is a simulated one."""


class Range(msgspec.Struct, frozen=True):
    """One measure on both sides; the simulated one is the middle of runs whose hops differ by a millisecond."""

    name: str
    live: float
    simulated: float
    low: float
    high: float
    """The smallest and the largest of those runs."""

    @property
    def difference(self) -> float:
        """Of the simulated, relative to the live one."""
        return self.simulated / self.live - 1.0 if self.live else float(self.simulated != 0.0)

    @property
    def agrees(self) -> bool:
        """Within the limit."""
        return abs(self.difference) <= LIMIT


class Comparison(msgspec.Struct, frozen=True):
    """One cell, compared."""

    policy: str
    rate_req_s: float
    requests: int
    live: Measures
    simulated: list[Measures]
    ranges: list[Range]
    alike_share: float
    """Of the requests: answered by the same instance on both sides."""
    hop_s: float
    """As this run shows it: half of what a request took longer than its simulated like without hops."""
    busy_share: float
    doubt: str | None

    @property
    def agrees(self) -> bool:
        """All of it is within the limit."""
        return all(one.agrees for one in self.ranges)


def compare(cell: Cell, requests: list[TimedRequest], live: LiveRun) -> Comparison:
    """Simulate what was run, and compare."""
    runs = [run_simulated(cell, requests, hop_s) for hop_s in _HOPS_S]
    counted = live.seen[cell.warm_up :]
    live_measures = measure(counted, SLO_S)
    simulated = [measure(run[cell.warm_up :], SLO_S) for run in runs]
    middle = runs[_HOPS_S.index(HOP_S)]
    return Comparison(
        policy=cell.policy,
        rate_req_s=cell.rate_req_s,
        requests=len(counted),
        live=live_measures,
        simulated=simulated,
        ranges=[
            _range(name, getattr(live_measures, name), [getattr(one, name) for one in simulated])
            for name in COMPARED
        ],
        alike_share=mean(a.instance == b.instance for a, b in zip(live.seen, middle, strict=True)),
        hop_s=HOP_S + _extra_s(live.seen, middle) / 2,
        busy_share=live.busy_share,
        doubt=live.doubt,
    )


def _range(name: str, live: float, simulated: Sequence[float]) -> Range:
    return Range(name, live, median(simulated), min(simulated), max(simulated))


def _extra_s(live: Sequence[Seen], simulated: Sequence[Seen]) -> float:
    """What a request took longer in the live system, for the middle one of those that ran alike."""
    alike = [
        a.ttft_s - b.ttft_s
        for a, b in zip(live, simulated, strict=True)
        if (a.instance, a.cached_tokens) == (b.instance, b.cached_tokens)
    ]
    return median(alike) if alike else 0.0
