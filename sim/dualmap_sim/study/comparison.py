"""A comparison: subjects in several cases, a case being a workload on a fleet under an SLO; and its verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dualmap.queue_order import OrderName
from dualmap.types import Slo
from dualmap_sim.fleet.capacity import Capacity
from dualmap_sim.fleet.setup import FleetSetup
from dualmap_sim.study.capacities import CapacityTask, find_all
from dualmap_sim.study.runs import Run, RunTask, run_all
from dualmap_sim.study.source import Source
from dualmap_sim.study.subject import DEFAULT_POLICY, Subject, make_subject


@dataclass(frozen=True, slots=True)
class Case:
    """A workload on a fleet under an SLO."""

    source: Source
    base: FleetSetup

    @property
    def name(self) -> str:
        """In a line."""
        return f"{self.source.name}, {self.base.num_instances} instances, {slo_text(self.base.slo)}"


@dataclass(frozen=True, slots=True)
class Measured:
    """The capacity of one subject in one case."""

    case: Case
    subject: Subject
    capacity: Capacity


def slo_text(slo: Slo) -> str:
    """An SLO in words."""
    scaled = f" + {slo.per_1k_tokens_s:g} s per 1,000 tokens" if slo.per_1k_tokens_s else ""
    return f"TTFT within {slo.base_s:g} s{scaled}"


def subjects(
    case: Case, policies: Sequence[str], order: OrderName | None = None, preempt: bool | None = None
) -> list[Subject]:
    """The policies as they run in a case."""
    return [make_subject(case.base, name, order, preempt) for name in policies]


def compare(
    cases: Sequence[tuple[Case, Sequence[Subject]]],
    share: float,
    seeds: Sequence[int],
    jobs: int = 1,
    tolerance: float = 0.01,
    done: Callable[[str], None] = lambda what: None,
) -> list[Measured]:
    """Every subject's capacity in every case."""
    pairs = [(case, subject) for case, members in cases for subject in members]
    tasks = [CapacityTask(subject, case.source, share, tuple(seeds), tolerance) for case, subject in pairs]
    found = find_all(tasks, jobs, done)
    return [Measured(case, subject, capacity) for (case, subject), capacity in zip(pairs, found, strict=True)]


CURVE_FACTORS = (0.6, 0.8, 0.9, 1.0, 1.1, 1.25)


def curves(
    measured: Sequence[Measured], seed: int, jobs: int = 1, done: Callable[[str], None] = lambda what: None
) -> list[Run]:
    """Whole runs of each subject at rates around its own capacity: how attainment falls beyond it."""
    tasks = [
        RunTask(one.subject, one.case.source, one.capacity.rate_req_s * factor, seed)
        for one in measured
        for factor in CURVE_FACTORS
        if one.capacity.rate_req_s > 0
    ]
    return run_all(tasks, jobs, done)


def best_baseline(measured: Sequence[Measured]) -> Measured | None:
    """The baseline with the highest capacity."""
    baselines = [one for one in measured if one.subject.is_baseline]
    return max(baselines, key=lambda one: one.capacity.rate_req_s, default=None)


def verdict(measured: Sequence[Measured]) -> str:
    """One case in a sentence."""
    if not measured:
        return "Nothing was measured."
    best = max(measured, key=lambda one: one.capacity.rate_req_s)
    ours = next((one for one in measured if one.subject.name == DEFAULT_POLICY), None)
    baseline = best_baseline(measured)
    if ours is None or baseline is None or baseline.capacity.rate_req_s <= 0:
        return f"{best.subject.name} serves the most: {best.capacity.rate_req_s:.2f} requests/s within the objective."
    rate, other = ours.capacity.rate_req_s, baseline.capacity.rate_req_s
    return (
        f"{DEFAULT_POLICY} serves {rate:.2f} requests/s within the objective, {rate / other:.2f} times "
        f"the best baseline ({baseline.subject.name}, {other:.2f})."
    )
