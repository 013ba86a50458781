"""`dualmap simulate`: what policies would make of a workload, in simulated time, over the services' own core."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from dualmap.queue_order import ORDERS, OrderRule
from dualmap.types import ChoiceRule
from dualmap_cli.simulate.plan import Options, make_plan
from dualmap_cli.simulate.study import Outcome, carry_out, facts
from dualmap_cli.simulate.view import show
from dualmap_sim.study.report import PlotsMissingError, need_plots, write_report

F = TypeVar("F", bound=Callable[..., Any])

_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
_POSITIVE = click.FloatRange(min=0, min_open=True)
_NOT_NEGATIVE = click.FloatRange(min=0)
_ORDER, _CHOICE = OrderRule(), ChoiceRule()
_SHOWN: dict[str, Any] = {"show_default": True}


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_workload = _options(
    click.option("--trace", "traces", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
                 help="A trace: see `dualmap trace`."),
    click.option("--workload", metavar="NAME", help="Built-in ones: see `dualmap load --list-workloads`."),
    click.option("--set", "settings", multiple=True, metavar="NAME=NUMBER", help="A setting of the workload."),
    click.option("--requests", type=click.IntRange(min=1), help="How many. [default: 12000, or all of the trace]"),
    click.option("--rate", metavar="R,...",
                 help="Requests/s, one or several. [default: the trace's own, or half of --instances]"),
)  # fmt: skip
_rules = _options(
    click.option("--policy", metavar="NAME,...",
                 help="Policies and bounds, or `all` policies. [default: dualmap; with --compare all and the bounds]"),
    click.option("--order", metavar="NAME", help=f"{', '.join(ORDERS)}. [default: each policy's published one]"),
    click.option("--preempt/--no-preempt", default=None, help="[default: as each policy does]"),
    click.option("--age-bound-s", type=_POSITIVE, default=_ORDER.age_bound_s, **_SHOWN,
                 help="A late request goes first then ..."),
    click.option("--aged-share", type=click.FloatRange(0, 1, min_open=True), default=_ORDER.aged_share, **_SHOWN,
                 help="... for no more than this share of the time that others need."),
    click.option("--tenant-fairness/--no-tenant-fairness", default=_ORDER.tenant_fairness, **_SHOWN,
                 help="late-last: tenants take turns."),
    click.option("--lambda-own", type=_NOT_NEGATIVE, default=_CHOICE.lambda_own, **_SHOWN,
                 help="Weight of own prefill work."),
    click.option("--escape-at", type=_NOT_NEGATIVE, default=_CHOICE.escape_at, **_SHOWN,
                 help="Share of the SLO at which dualmap leaves the pair."),
)  # fmt: skip
_fleet = _options(
    click.option("--instances", default="8", **_SHOWN, metavar="N,...", help="How many instances."),
    click.option("--kv-blocks", type=click.IntRange(min=1), default=840, **_SHOWN,
                 help="KV room of an instance, in blocks of 512 tokens."),
    click.option("--slo-s", default="5", **_SHOWN, metavar="S,...", help="TTFT objective."),
    click.option("--slo-per-1k-s", type=_NOT_NEGATIVE, default=0.0, **_SHOWN,
                 help="More of it per 1,000 prompt tokens."),
    click.option("--model", default="serial", **_SHOWN, help="serial, or a profile of `dualmap sim-engine`."),
    click.option("--routers", type=click.IntRange(1, 1024), default=1, **_SHOWN, help="How many routers."),
    click.option("--change", "changes", multiple=True, metavar="KIND:INSTANCE@S",
                 help="lose, drain or join an instance after so many seconds, as lose:0@600; several are allowed."),
    click.option("--adapter", "adapters", multiple=True, metavar="NAME=INSTANCE,...",
                 help="Who serves an adapter of the trace, as fr=0,1; all do unless given. Several are allowed."),
    click.option("--noise", type=click.FloatRange(0, 1, max_open=True), default=0.0, **_SHOWN,
                 help="Prefill estimates are off by up to this share."),
    click.option("--sync-s", type=_NOT_NEGATIVE, default=0.0, **_SHOWN,
                 help="Routers see each other's bookings this late."),
)  # fmt: skip
_study = _options(
    click.option("--capacity", is_flag=True, help="Find the highest rate that keeps --share within SLO."),
    click.option("--compare", is_flag=True,
                 help="Capacities side by side; several traces, workloads, SLOs or sizes are allowed."),
    click.option("--share", type=_SHARE, default=0.9, **_SHOWN, help="Of the requests, to be within SLO."),
    click.option("--seed", type=click.IntRange(min=0), default=0, **_SHOWN, help="The first seed."),
    click.option("--seeds", type=click.IntRange(1, 100), help="How many. [default: 1; 3 for capacities]"),
    click.option("--jobs", type=click.IntRange(min=1), help="Processes. [default: one per CPU]"),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    click.option("--report", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
                 help="Write plots and an index.html there."),
)  # fmt: skip


@click.command("simulate")
@_workload
@_rules
@_fleet
@_study
def simulate(jobs: int | None, as_json: bool, report: Path | None, **given: Any) -> None:
    """Simulate a fleet on a trace or a workload, under one policy or many.

    One run at --rate; --capacity searches the rate; --compare puts policies, workloads and fleets side by side. Every
    baseline runs with the order that it was published with. The same options and seeds give the same figures,
    whatever the number of jobs. Bounds run by name too: pool-fcfs, pool-late-last, pool-late-last-preempt,
    infinite-cache, offline-order.
    """
    plan = make_plan(Options(jobs=jobs or _num_cpus(), **given))
    try:
        if report is not None:
            need_plots()
    except PlotsMissingError as error:
        raise click.ClickException(str(error)) from error
    began_s = time.monotonic()
    console = Console(stderr=True)
    with console.status("simulating") as status:
        outcome = carry_out(plan, lambda what: status.update(f"simulating: {what}"))
        said = facts(plan, time.monotonic() - began_s)
        if report is not None:
            sections = outcome.sections(lambda what: status.update(f"drawing: {what}"))
            title = "What the policies make of " + ", ".join(
                dict.fromkeys(case.source.name for case, _ in plan.cases)
            )
            page = _write(report, title, outcome, said, sections)
            console.print(f"wrote {page}", highlight=False)
    if as_json:
        click.echo(outcome.json)
    else:
        show(Console(), outcome.verdict, outcome.tables, said)


def _write(report: Path, title: str, outcome: Outcome, said: str, sections: list[Any]) -> Path:
    command = "dualmap " + " ".join(sys.argv[1:])
    try:
        return write_report(report, title, said, outcome.verdict, sections, f"Made by: {command}")
    except OSError as error:
        raise click.BadParameter(f"cannot write {report}: {error.strerror}", param_hint="--report") from error


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
