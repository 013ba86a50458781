"""What was promised, against what was measured."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import msgspec

from bench.peers.arena import DUALMAP, ORACLE
from bench.peers.capacity import capacity
from bench.peers.outcome import Outcome
from bench.peers.peers import OWN, PEERS
from bench.peers.schedule import shares
from bench.peers.settings import peer_of
from bench.router.measures import Findings
from bench.router.subjects import ROUTER

SHIPPING = tuple(name for name, peer in PEERS.items() if peer.package not in (OWN, "nginx"))
"""Routers for LLM engines; nginx and the oracle bound the field."""


class Verdict(msgspec.Struct, frozen=True):
    """One promise."""

    what: str
    measured: float | None
    target: float
    at_least: bool = True

    def __str__(self) -> str:
        sign = "at least" if self.at_least else "at most"
        if self.measured is None:
            return f"{self.what}: {sign} {self.target:g}: not measured"
        met = self.measured >= self.target if self.at_least else self.measured <= self.target
        return f"{self.what}: {self.measured:.2f}, {sign} {self.target:g}: {'met' if met else '**missed**'}"


def best_shipping(curves: Mapping[str, Sequence[Outcome]]) -> str | None:
    """The shipping peer with the highest capacity; one whose lowest rate did not hold counts with that rate."""
    found = [
        (value, name)
        for name, outcomes in curves.items()
        if name in SHIPPING and (value := capacity(shares(outcomes))[0]) is not None
    ]
    return max(found)[1] if found else None


def best_settings(settings: Mapping[str, Sequence[Outcome | None]]) -> list[str]:
    """Of each router, the settings with which most were in time on all workloads; those without a run are left out."""
    sums: dict[str, tuple[float, str]] = {}
    for name, outcomes in settings.items():
        shares_of = [one.within_slo_share for one in outcomes if one is not None]
        if len(shares_of) == len(outcomes):
            package = peer_of(name).package
            sums[package] = max(sums.get(package, (0.0, "")), (sum(shares_of), name))
    return [name for _, name in sums.values()]


def goodput_verdicts(workload: str, curves: Mapping[str, Sequence[Outcome]]) -> list[Verdict]:
    """DualMap's capacity over the best shipping peer's and over the oracle's."""
    best = best_shipping(curves)
    label = f" ({best})" if best else ""
    verdicts = [
        Verdict(f"{workload}: capacity over the best shipping peer's{label}", _over(curves, best), 2.0)
    ]
    if workload == "conversation":
        verdicts.append(Verdict(f"{workload}: capacity over the oracle's", _over(curves, ORACLE), 1.05))
    return verdicts


def _over(curves: Mapping[str, Sequence[Outcome]], other: str | None) -> float | None:
    """DualMap's capacity over another's, at least; None where that cannot be said."""
    own, own_mark = capacity(shares(curves.get(DUALMAP, ())))
    its, its_mark = capacity(shares(curves.get(other or "", ())))
    # Ours may be more than what was run and theirs less, but not the other way round.
    return None if own_mark == "<" or its_mark == ">=" else _ratio(own, its)


def overhead_verdicts(findings: Findings) -> list[Verdict]:
    """CPU and time over those of the leanest shipping peer, whichever that is for each measure."""
    wanted = (
        ("CPU per 8 KB request", 1.0),
        ("CPU per 48 KB request", 0.75),
        ("CPU per streamed chunk", 1.0),
        ("p50 added at 20 requests/s", 1.0),
    )
    verdicts = []
    for measure, target in wanted:
        values = {one.subject: one.median for one in findings.figures if one.measure == measure}
        others = {name: value for name, value in values.items() if name in SHIPPING}
        leanest = min(others, key=others.__getitem__) if others else None
        ratio = _ratio(values.get(ROUTER), others[leanest] if leanest else None)
        label = f" ({leanest})" if leanest else ""
        verdicts.append(Verdict(f"{measure} over the leanest peer's{label}", ratio, target, at_least=False))
    return verdicts


def fleet_verdicts(outcomes: Sequence[Outcome]) -> list[Verdict]:
    """What N DualMap routers lose against one, in points of the means of their runs: the most, whatever N is."""
    steady = [outcome for outcome in outcomes if not outcome.changes]
    sizes = sorted({outcome.routers for outcome in steady})
    if sizes[:1] != [1] or len(sizes) < 2:
        return []

    def lost(field: str) -> float:
        one, *many = (
            fmean(getattr(outcome, field) for outcome in steady if outcome.routers == number)
            for number in sizes
        )
        return max(0.0, *(one - mean for mean in many)) * 100

    return [
        Verdict(f"{name}, points that N routers lose against one at most", lost(field), 1.0, at_least=False)
        for name, field in (("attainment", "within_slo_share"), ("cached share", "cached_share"))
    ]


def _ratio(own: float | None, other: float | None) -> float | None:
    return own / other if own and other else None
