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
_SEEDS = range(15)
"""A live run is one draw: milliseconds decide who goes where, and with that all that follows. So is a simulated one,
and a few hundred requests do not average that out: medians of two equal systems are up to 10 % apart by it."""


class Range(msgspec.Struct, frozen=True):
    """One measure on both sides; the simulated one is the median of runs that differ by milliseconds: in when
    requests come and in what each hop takes."""

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

    @property
    def may_be_chance(self) -> bool:
        """The live one is among the simulated ones: the difference may be chance, which only more runs can tell."""
        return self.low <= self.live <= self.high


class Comparison(msgspec.Struct, frozen=True):
    """One cell, compared."""

    policy: str
    rate_req_s: float
    requests: int
    live: Measures
    simulated: list[Measures]
    measures: list[Range]
    alike_share: float
    """Of the requests: answered by the same instance on both sides."""
    hop_s: float
    """As this run shows it: what the simulator was given, and half of what like requests took longer than there."""
    busy_share: float
    own_share: float
    doubt: str | None
    seen: list[Seen]
    """Every request in the live system, in order of arrival, the warm-up's too."""

    @property
    def agrees(self) -> bool:
        """All of it is within the limit; that a difference may be chance does not count for it."""
        return all(one.agrees for one in self.measures)


def compare(cell: Cell, requests: list[TimedRequest], live: LiveRun) -> Comparison:
    """Simulate what was run, and compare."""
    runs = [run_simulated(cell, requests, seed) for seed in _SEEDS]
    counted = live.seen[cell.warm_up :]
    live_measures = measure(counted, SLO_S)
    simulated = [measure(run[cell.warm_up :], SLO_S) for run in runs]
    return Comparison(
        policy=cell.policy,
        rate_req_s=cell.rate_req_s,
        requests=len(counted),
        live=live_measures,
        simulated=simulated,
        measures=[
            _range(name, getattr(live_measures, name), [getattr(one, name) for one in simulated])
            for name in COMPARED
        ],
        alike_share=mean(
            a.instance == b.instance for run in runs for a, b in zip(live.seen, run, strict=True)
        ),
        hop_s=HOP_S + median(_extra_s(live.seen, run) for run in runs) / 2,
        busy_share=live.busy_share,
        own_share=live.own_share,
        doubt=live.doubt,
        seen=live.seen,
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
