"""`dualmap router`: OpenAI-compatible HTTP for clients."""

import click

from dualmap_cli.settings_options import Flags, prepare, run_and_exit, settings_options
from dualmap_router.settings import RouterSettings


@click.command("router")
@settings_options(RouterSettings, "router")
def router(flags: Flags) -> None:
    """Run a router: OpenAI-compatible HTTP in front of all instances of a pool."""
    settings = prepare(RouterSettings, "router", flags)
    from dualmap_router.app import run

    run_and_exit(lambda stop: run(settings, stop))
