"""`dualmap rebalancer`: fold telemetry into Redis and move requests off hot instances."""

import click

from dualmap_cli.settings_options import Flags, prepare, run_and_exit, settings_options
from dualmap_rebalancer.settings import RebalancerSettings


@click.command("rebalancer")
@settings_options(RebalancerSettings, "rebalancer")
def rebalancer(flags: Flags) -> None:
    """Run a rebalancer: the first leads, the others stand by."""
    settings = prepare(RebalancerSettings, "rebalancer", flags)
    from dualmap_rebalancer.app import run

    run_and_exit(lambda stop: run(settings, stop))
