"""Measure what config.py says and write docs/results.md and its plots.

What has been found is kept in build/bench-policies.json, by the code and the set-up that it holds for.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import xxhash

from bench.policies.cells import Cells
from bench.policies.config import Config, Part, Scope, make_config
from dualmap_sim.study.comparison import Measured, curves, verdict
from dualmap_sim.study.report import case_plots
from dualmap_sim.study.runs import Run, RunTask
from dualmap_sim.study.tables import capacity_table, case_table, markdown

_ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.policies", description=__doc__)
    parser.add_argument(
        "--trace", required=True, help="the Mooncake conversation trace, and after commas any others"
    )
    parser.add_argument(
        "--parts", default="", help="only these tables: fixed,scaled,sixteen,robust,paper,ours"
    )
    parser.add_argument("--workloads", default="", help="only these, by name; a trace's is its file's")
    parser.add_argument("--policies", default="", help="only these policies and bounds, by name")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--no-plots", action="store_true", help="leave the plots out: they take as long again"
    )
    parser.add_argument("--quick", action="store_true", help="a small version, in minutes")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="where to write [docs/, or build/bench-policies-quick/]")
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
    out = options.out or _ROOT / ("build/bench-policies-quick" if options.quick else "docs")
    cells = Cells(_ROOT / "build/bench-policies.json", _code())
    began_s = time.monotonic()
    text = [_head(config, options.quick)]
    for part in config.parts:
        text.append(_measure(part, config, cells, options.jobs, out / "results", began_s))
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print(f"wrote {out / 'results.md'} in {time.monotonic() - began_s:.0f} s")


def _names(listed: str) -> list[str]:
    return [name for name in listed.split(",") if name]


def _measure(part: Part, config: Config, cells: Cells, jobs: int, plots: Path, began_s: float) -> str:
    def say(what: str) -> None:
        print(f"{time.monotonic() - began_s:6.0f} s  {part.key}: {what}", flush=True)

    pairs = [(case, subject) for case, members in part.cases for subject in members]
    measured = cells.measure(pairs, config, jobs, say)
    lines = [f"## {part.title}", part.about]
    if len(part.cases) > 1:
        lines.append(markdown(case_table(part.title, measured)))
    for number, (case, _) in enumerate(part.cases):
        ones = [one for one in measured if one.case is case]
        if len(part.cases) > 1:
            lines += [f"### {case.name}", verdict(ones)]
        ranked = part.key in ("fixed", "scaled", "sixteen")
        lines.append(markdown(capacity_table(case.name, ones, ranked=ranked)))
        if number < part.num_plotted:
            lines += _plots(f"{part.key}-{case.source.name}-", ones, config, jobs, plots)
    return "\n\n".join(lines)


def _plots(prefix: str, ones: list[Measured], config: Config, jobs: int, directory: Path) -> list[str]:
    seed = config.seeds[0]
    runs = [
        Run(RunTask(one.subject, one.case.source, one.capacity.per_seed[0], seed), one.capacity.at_capacity)
        for one in ones
        if one.capacity.at_capacity is not None
    ]
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for plot in case_plots(prefix, runs, curves(ones, seed, jobs), config.share):
        (directory / plot.name).write_bytes(plot.png)
        lines.append(f"![{plot.title}](results/{plot.name})\n\n*{plot.caption}*")
    return lines


def _head(config: Config, quick: bool) -> str:
    seeds = f"{len(config.seeds)} seeds" if len(config.seeds) > 1 else "one seed"
    small = " This is the quick version: too few requests to conclude anything from." if quick else ""
    return (
        "# Results\n\nMade by `make bench-policies TRACE=conversation.jsonl`; edit bench/policies/config.py instead."
        f"{small}\n\nCapacity is the highest rate at which {config.share:.0%} of the requests see their first token "
        f"within the SLO, by bisection to {config.tolerance:.0%}, {seeds}; intervals are 95 %. Instances are serial "
        "engines with 840 blocks of 512 tokens. Latencies, hits and counts are those of the first seed's run at its "
        "capacity. Best values are bold."
    )


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
