"""Carry out a plan: capacities or runs, their tables, their verdict, and what a report shows of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dualmap_cli.simulate.plan import Plan
from dualmap_sim.fleet.result import RunResult
from dualmap_sim.study.as_json import capacities_json, runs_json
from dualmap_sim.study.comparison import Case, Measured, compare, curves, slo_text, verdict
from dualmap_sim.study.page import Section
from dualmap_sim.study.report import case_plots
from dualmap_sim.study.runs import Run, RunTask, run_all
from dualmap_sim.study.subject import DEFAULT_POLICY
from dualmap_sim.study.tables import Table, averaged, capacity_table, case_table, run_table, slowdown_table

Done = Callable[[str], None]
_FEW_SLOS = 30


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a study came to; `sections` makes the parts of a report, which may take more runs."""

    verdict: str
    tables: list[Table]
    json: str
    sections: Callable[[Done], list[Section]]


def carry_out(plan: Plan, done: Done) -> Outcome:
    """Do all of it."""
    return _runs(plan, done) if plan.rates else _capacities(plan, done)


def facts(plan: Plan, seconds: float) -> str:
    """Under what the figures hold."""
    case = plan.cases[0][0]
    slos = "; ".join(dict.fromkeys(slo_text(case.base.slo) for case, _ in plan.cases))
    seeds = "1 seed" if len(plan.seeds) == 1 else f"{len(plan.seeds)} seeds"
    asked = "" if plan.rates else f" for {plan.share:.0%} of the requests"
    model = case.base.model if isinstance(case.base.model, str) else "own"
    return (
        f"SLO: {slos}{asked}; {seeds}; {model} engines of {case.base.kv_blocks} blocks; took {seconds:.1f} s"
    )


def _capacities(plan: Plan, done: Done) -> Outcome:
    measured = compare(plan.cases, plan.share, plan.seeds, plan.jobs, done=done)
    by_case = {case: [one for one in measured if one.case is case] for case, _ in plan.cases}
    tables = {case: capacity_table(case.name, ones, _caption(ones)) for case, ones in by_case.items()}
    several = [case_table("Capacity, requests/s", measured)] if len(by_case) > 1 else []

    def sections(done: Done) -> list[Section]:
        made = [Section(table.title, [table]) for table in several]
        for number, (case, ones) in enumerate(by_case.items()):
            curve = curves(ones, plan.seeds[0], plan.jobs, done)
            prefix = f"{number + 1}-" if several else ""
            plots = case_plots(prefix, _at_capacity(ones, plan.seeds[0]), curve, plan.share) if curve else []
            made.append(Section(case.name, [tables[case]], plots))
        return made

    said = " ".join(
        f"{case.name}: {verdict(ones)}" if several else verdict(ones) for case, ones in by_case.items()
    )
    json = capacities_json(measured, plan.seeds, plan.share)
    return Outcome(said, [*tables.values(), *several], json, sections)


def _caption(measured: Sequence[Measured]) -> str:
    said = "Latencies, hits and counts are those of the first seed's run at its capacity."
    runs = [one.capacity.at_capacity for one in measured if one.capacity.at_capacity is not None]
    shortest_s = min((run.num_requests / run.rate_req_s for run in runs if run.rate_req_s > 0), default=0.0)
    if shortest_s < _FEW_SLOS * measured[0].case.base.slo.base_s:
        said += (
            f" The shortest of them lasts {shortest_s:.0f} s: too few requests to tell capacity from a burst."
        )
    return said


def _at_capacity(measured: Sequence[Measured], seed: int) -> list[Run]:
    return [
        Run(RunTask(one.subject, one.case.source, one.capacity.per_seed[0], seed), one.capacity.at_capacity)
        for one in measured
        if one.capacity.at_capacity is not None
    ]


def _runs(plan: Plan, done: Done) -> Outcome:
    tasks = [
        RunTask(subject, case.source, rate, seed)
        for case, members in plan.cases
        for subject in members
        for rate in plan.rates
        for seed in plan.seeds
    ]
    runs = run_all(tasks, plan.jobs, done)
    cases = _runs_by_case(plan, runs)
    tables = {case: _run_tables(case, members) for case, members in cases.items()}

    def sections(done: Done) -> list[Section]:
        made = []
        for number, (case, members) in enumerate(cases.items()):
            first = [run for run in members if run.task.seed == plan.seeds[0]]
            shown = [run for run in first if run.task.rate_req_s == plan.rates[-1]]
            prefix = f"{number + 1}-" if len(cases) > 1 else ""
            made.append(Section(case.name, tables[case], case_plots(prefix, shown, first, plan.share)))
        return made

    every = [table for case in tables.values() for table in case]
    return Outcome(_runs_verdict(runs), every, runs_json(runs, plan.cases[0][0].base.slo), sections)


def _runs_by_case(plan: Plan, runs: Sequence[Run]) -> dict[Case, list[Run]]:
    left = iter(runs)
    return {
        case: [next(left) for _ in range(len(members) * len(plan.rates) * len(plan.seeds))]
        for case, members in plan.cases
    }


def _run_tables(case: Case, runs: Sequence[Run]) -> list[Table]:
    caption = (
        "fixed and scaled: the share within an objective that is the same for all, and one that grows with the "
        "prompt. hits: prompt tokens found cached; of ideal: what one infinite cache would find."
    )
    said = "Slowdown is TTFT over the request's own prefill time, alone and cold."
    tables = [
        run_table(case.name, runs, caption),
        slowdown_table("Slowdown by prompt tokens", runs, lambda result: result.by_length, said),
    ]
    if any(run.result.by_tenant for run in runs):
        tables.append(slowdown_table("Slowdown by tenant", runs, lambda result: result.by_tenant, said))
    return tables


def _runs_verdict(runs: Sequence[Run]) -> str:
    rate = max(run.task.rate_req_s for run in runs)
    means = [one for one in averaged(runs) if one.rate_req_s == rate]

    def share(result: RunResult) -> float:
        return result.within_slo_share

    best = max(means, key=lambda one: one.mean(share))
    said = f"At {rate:.2f} requests/s {best.subject.name} has {best.mean(share):.1%} within SLO"
    ours = next((one for one in means if one.subject.name == DEFAULT_POLICY), best)
    if ours is best:
        return f"{said}."
    return f"{said}, {DEFAULT_POLICY} {ours.mean(share):.1%}."
