"""Measure what config.py says and write the tables and plots of docs/results.md between its marks.

What has been found is kept in build/bench-policies.json, by the code and the set-up that it holds for.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import xxhash

from bench.marked import put
from bench.policies.cells import Cells
from bench.policies.config import PLOTTED, ClassesPart, Config, Part, Scope, make_config
from bench.router.report import this_machine
from dualmap_sim.study.comparison import Measured, curves, verdict
from dualmap_sim.study.report import case_plots
from dualmap_sim.study.runs import Run, RunTask, run_all
from dualmap_sim.study.tables import capacity_table, case_table, markdown, slowdown_table

_ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.policies", description=__doc__)
    parser.add_argument(
        "--trace", required=True, help="the Mooncake conversation trace, and after commas any others"
    )
    parser.add_argument(
        "--parts", default="", help="only these tables: fixed,others,scaled,sixteen,robust,paper,ours,classes"
    )
    parser.add_argument("--workloads", default="", help="only these, by name; a trace's is its file's")
    parser.add_argument("--policies", default="", help="only these policies and bounds, by name")
    parser.add_argument("--seeds", type=int, default=Scope().seeds)
    parser.add_argument(
        "--no-plots", action="store_true", help="leave the plots out: they take as long again"
    )
    parser.add_argument("--quick", action="store_true", help="a small version, in minutes")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--out", type=Path, help="where to write [docs/; parts of a table to build/bench-policies/]"
    )
    options = parser.parse_args()
    traces = options.trace.split(",")
    for trace in traces:
        if not Path(trace).is_file():
            sys.exit(f"no trace at {trace!r}: make bench-policies TRACE=conversation.jsonl")
    scope = Scope(
        quick=options.quick,
        seeds=options.seeds,
        parts=_names(options.parts),
        workloads=_names(options.workloads),
        policies=_names(options.policies),
        plots=not options.no_plots,
    )
    config = make_config(traces, scope)
    out = options.out or _ROOT / ("docs" if scope.whole else "build/bench-policies")
    cells = Cells(_ROOT / "build/bench-policies.json", _code())
    began_s = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began_s:6.0f} s  {what}", flush=True)

    for part in config.parts:
        if isinstance(part, Part):
            text = _measure(part, config, cells, options.jobs, out / "results", say)
            how = f"{_seeds(len(config.seeds))}, bisection to {config.tolerance:.0%}"
            if scope.quick:
                how += "; 1,000 requests, which show that the bench runs and not which policy is better"
        else:
            text, how = _classes(part, options.jobs, say), _seeds(1)
        put(out / "results.md", f"bench-policies {part.key}", f"{text}\n\n*{_where()}; {how}.*")
    say(f"wrote {out / 'results.md'}")


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name for name in listed.split(",") if name)


def _measure(
    part: Part, config: Config, cells: Cells, jobs: int, plots: Path, say: Callable[[str], None]
) -> str:
    pairs = [(case, subject) for case, members in part.cases for subject in members]
    measured = cells.measure(pairs, config, jobs, lambda what: say(f"{part.key}: {what}"))
    lines = [f"## {part.title}", part.about]
    if len(part.cases) > 1:
        lines.append(markdown(case_table(part.title, measured)))
    for number, (case, _) in enumerate(part.cases):
        ones = [one for one in measured if one.case is case]
        if len(part.cases) > 1:
            lines += [f"### {case.name}", verdict(ones)]
        ranked = part.key not in ("robust", "paper", "ours")
        lines.append(markdown(capacity_table(case.name, ones, ranked=ranked)))
        if number < part.num_plotted:
            lines += _plots(f"{part.key}-{case.source.name}-", ones, config, jobs, plots)
    return "\n\n".join(lines)


def _classes(part: ClassesPart, jobs: int, say: Callable[[str], None]) -> str:
    lines = [f"## {part.title}", part.about]
    runs = run_all(part.runs, jobs, lambda what: say(f"{part.key}: {what}"))
    for source in dict.fromkeys(run.task.source for run in runs):
        ones = [run for run in runs if run.task.source == source]
        lines += [
            f"### {source.name}",
            markdown(slowdown_table(source.name, ones, lambda run: run.by_length)),
        ]
    return "\n\n".join(lines)


def _plots(prefix: str, ones: list[Measured], config: Config, jobs: int, directory: Path) -> list[str]:
    seed = config.seeds[0]
    shown = [one for one in ones if one.subject.name in PLOTTED]
    runs = [
        Run(RunTask(one.subject, one.case.source, one.capacity.per_seed[0], seed), one.capacity.at_capacity)
        for one in shown
        if one.capacity.at_capacity is not None
    ]
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for plot in case_plots(prefix, runs, curves(shown, seed, jobs), config.share):
        (directory / plot.name).write_bytes(plot.png)
        lines.append(f"![{plot.title}](results/{plot.name})\n\n*{plot.caption}*")
    return lines


def _where() -> str:
    machine = this_machine()
    return f"{machine.date[:10]}, {machine.cpu}, {machine.cores} cores, Python {machine.python}"


def _seeds(num: int) -> str:
    return f"{num} seeds" if num > 1 else "one seed"


def _code() -> str:
    """A digest of all that a figure depends on."""
    digest = xxhash.xxh3_128()
    for package in (
        "dualmap",
        "sim/dualmap_sim/fleet",
        "sim/dualmap_sim/policies",
        "sim/dualmap_sim/workloads",
    ):
        for path in sorted((_ROOT / package).rglob("*.py")):
            digest.update(path.read_bytes())
    for name in ("bounds", "offline", "study/source", "study/capacities"):
        digest.update((_ROOT / f"sim/dualmap_sim/{name}.py").read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
