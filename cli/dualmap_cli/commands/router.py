"""`dualmap router`: OpenAI-compatible HTTP for clients."""

import socket
import sys

import click

from dualmap_cli.settings_options import Flags, as_arguments, prepare, run_and_exit, settings_options
from dualmap_router.settings import RouterSettings


@click.command("router")
@settings_options(RouterSettings, "router")
def router(flags: Flags) -> None:
    """Run a router: OpenAI-compatible HTTP in front of all instances of a pool."""
    settings = prepare(RouterSettings, "router", flags)
    if settings.processes > 1:
        from dualmap_router.processes import run as run_several

        run_and_exit(
            lambda stop: run_several(settings, lambda number: _one_of(settings, flags, number), stop)
        )
    from dualmap_router.app import run

    run_and_exit(lambda stop: run(settings, stop))


def _one_of(settings: RouterSettings, flags: Flags, number: int) -> list[str]:
    """The command of one of several processes: this one's, with a name and a port of its own."""
    name = settings.router_id or f"{socket.gethostname()}-{settings.port}"
    own = {
        "processes": "1",
        "reuse_port": "true",
        "router_id": f"{name}-{number}",
        "own_port": str((settings.own_port or settings.port + 1) + number - 1),
    }
    return [sys.executable, "-m", "dualmap_cli", "router", *as_arguments({**flags, **own})]
