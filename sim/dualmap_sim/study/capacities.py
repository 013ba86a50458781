"""Capacities of many subjects under many workloads, seed by seed.

The first seed of each finds its way from a rough guess; the others start from where it got, in small steps. Neither
depends on how the tasks are spread over processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from dualmap_sim.fleet.capacity import Capacity, find_capacity
from dualmap_sim.fleet.engines import cold_prefill_s
from dualmap_sim.fleet.result import RunResult
from dualmap_sim.study.parallel import spread
from dualmap_sim.study.runs import RunTask, run_once
from dualmap_sim.study.source import Source
from dualmap_sim.study.subject import Subject

_FIRST_STEP = 1.25
_NEXT_STEP = 1.04
_GUESSED_USE = 0.6


@dataclass(frozen=True, slots=True)
class CapacityTask:
    """Whose capacity to find, under what, and how closely."""

    subject: Subject
    source: Source
    share: float = 0.9
    """Of the requests that must meet the SLO."""
    seeds: tuple[int, ...] = (0, 1, 2)
    tolerance: float = 0.01


@dataclass(frozen=True, slots=True)
class _Search:
    task: CapacityTask
    seed: int
    guess_req_s: float | None = None


def find_all(
    tasks: Sequence[CapacityTask], jobs: int = 1, done: Callable[[str], None] = lambda what: None
) -> list[Capacity]:
    """The capacity of each."""

    def told(search: _Search, found: tuple[float, RunResult | None]) -> None:
        done(f"{search.task.subject.name}, seed {search.seed}: {found[0]:.2f} requests/s")

    first = spread(_search, [_Search(task, task.seeds[0]) for task in tasks], jobs, told)
    others = [
        _Search(task, seed, rate or None)
        for task, (rate, _) in zip(tasks, first, strict=True)
        for seed in task.seeds[1:]
    ]
    rates = iter([rate for rate, _ in spread(_search, others, jobs, told)])
    return [
        Capacity((rate, *(next(rates) for _ in task.seeds[1:])), run)
        for task, (rate, run) in zip(tasks, first, strict=True)
    ]


def _search(search: _Search) -> tuple[float, RunResult | None]:
    task = search.task
    run = RunTask(task.subject, task.source, 0.0, search.seed)

    def attempt(rate_req_s: float) -> RunResult | None:
        return run_once(replace(run, rate_req_s=rate_req_s), task.share)

    if search.guess_req_s is None:
        return find_capacity(attempt, _rough_guess(task), task.tolerance, _FIRST_STEP)
    return find_capacity(attempt, search.guess_req_s, task.tolerance, _NEXT_STEP)


def _rough_guess(task: CapacityTask) -> float:
    """What the fleet could prefill without any cache, with some slack."""
    setup = task.subject.setup
    arrivals = task.source.arrivals(1.0, 0)
    cold_s = fmean(cold_prefill_s(setup, arrival.input_tokens) for arrival in arrivals)
    return _GUESSED_USE * setup.num_instances / cold_s
