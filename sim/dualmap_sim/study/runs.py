"""One run: a subject under a workload at a rate and a seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dualmap_sim.bounds import OFFLINE_ORDER
from dualmap_sim.fleet.capacity import most_late, run_fleet
from dualmap_sim.fleet.fleet import Fleet
from dualmap_sim.fleet.result import Measures, RunResult, summarize
from dualmap_sim.offline import OfflineOrder
from dualmap_sim.policies import make_policy
from dualmap_sim.study.parallel import spread
from dualmap_sim.study.source import Source
from dualmap_sim.study.subject import Subject


@dataclass(frozen=True, slots=True)
class RunTask:
    """What to run."""

    subject: Subject
    source: Source
    rate_req_s: float
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """What was run, and what came of it."""

    task: RunTask
    result: RunResult


def run_once(task: RunTask, share: float | None = None) -> RunResult | None:
    """Run it; None when it ended early because `share` within SLO is out of reach."""
    setup = replace(task.subject.setup, seed=task.seed)
    arrivals = task.source.arrivals(task.rate_req_s, task.seed)
    measures = Measures.of(setup)
    if setup.policy == OFFLINE_ORDER:
        pool = OfflineOrder(setup)
        done = pool.run(arrivals, most_late(arrivals, share))
        return summarize(pool.flights, pool.busy_s, measures) if done else None
    return run_fleet(Fleet(setup, make_policy(setup)), arrivals, share, measures)


def run_all(
    tasks: Sequence[RunTask], jobs: int = 1, done: Callable[[str], None] = lambda what: None
) -> list[Run]:
    """Run them all, whole; `done` is told of each as it ends."""
    return spread(
        _run_whole, tasks, jobs, lambda task, run: done(f"{task.subject.name} at {task.rate_req_s:g}")
    )


def _run_whole(task: RunTask) -> Run:
    result = run_once(task)
    assert result is not None
    return Run(task, result)
