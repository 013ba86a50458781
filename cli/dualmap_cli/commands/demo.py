"""`dualmap demo`: from nothing to a summary, on one machine."""

import asyncio
import signal
import sys
from pathlib import Path

import click
import msgspec
import uvloop
from rich.console import Console

from dualmap.choose import POLICIES
from dualmap_cli.demo import DemoOptions, DemoSummary, run_demo
from dualmap_cli.load.screen import print_report, progress_view
from dualmap_cli.stack import StackError
from dualmap_sim.workloads import WorkloadError


@click.command("demo")
@click.option(
    "--trace",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Replay this trace (Mooncake format) instead of the built-in workload.",
)
@click.option("--requests", type=click.IntRange(min=1), default=1200, show_default=True)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Requests per model second  [default: 4, or 1.5 with --trace]",
)
@click.option(
    "--time-scale",
    type=click.FloatRange(min=0, min_open=True),
    help="Model seconds in a second  [default: 5, or 10 with --trace]",
)
@click.option(
    "--slo-s",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="TTFT objective, model seconds.",
)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--routers", type=click.IntRange(1, 16), default=2, show_default=True)
@click.option("--instances", type=click.IntRange(1, 64), default=4, show_default=True)
@click.option("--policy", type=click.Choice(list(POLICIES)), default="dualmap", show_default=True)
@click.option("--no-rebalancing", is_flag=True, help="Never move a queued request.")
@click.option("--no-hotspot", is_flag=True, help="No hot prefix and no slow engine in the middle.")
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object on standard output.")
def demo(
    trace: Path | None,
    requests: int,
    rate: float | None,
    time_scale: float | None,
    slo_s: float,
    seed: int,
    routers: int,
    instances: int,
    policy: str,
    no_rebalancing: bool,
    no_hotspot: bool,
    as_json: bool,
) -> None:
    """Run the whole system on this machine with a workload, and say what came of it.

    An embedded Valkey, simulated engines, workers, routers and a rebalancer, each a process of its own. Exits
    with 1 unless every request was answered exactly once and nothing is left in any queue.
    """
    options = DemoOptions(
        trace=trace,
        requests=requests,
        rate_req_s=rate or (1.5 if trace else 4.0),
        time_scale=time_scale or (10.0 if trace else 5.0),
        slo_s=slo_s,
        seed=seed,
        routers=routers,
        instances=instances,
        policy=policy,
        rebalance=not no_rebalancing,
        # A trace is shown as it is.
        hotspot=not no_hotspot and trace is None,
    )
    try:
        summary = uvloop.run(_run(options))
    except (StackError, WorkloadError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(summary), indent=2).decode())
    else:
        _print(summary, options)
    sys.exit(0 if summary.sound else 1)


async def _run(options: DemoOptions) -> DemoSummary:
    console = Console(stderr=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

    def said(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    with progress_view(console) as view:
        return await run_demo(options, said, view.show, stop)


def _print(summary: DemoSummary, options: DemoOptions) -> None:
    console = Console()
    console.print()
    print_report(summary.load)
    left = summary.leftover
    if summary.sound:
        console.print(
            f"[green]sound[/green]: {summary.answered} of {summary.sent} requests answered, each once, with the "
            f"right text; {summary.moves} moved off a queue. Charges, queues, sessions and buffers are back to zero."
        )
    else:
        console.print(
            f"[red]NOT sound[/red]: {summary.answered} of {summary.sent} answered, {summary.errors} errors "
            f"{summary.errors_by_kind or ''}, {summary.duplicates} duplicates; left: {left}"
        )
    console.print(
        f"Times are model seconds at {options.time_scale:g} times real speed; the engines are simulated, "
        "everything else is real. Next: `make up`, then `dualmap load` and `dualmap explain`.",
        style="dim",
    )
