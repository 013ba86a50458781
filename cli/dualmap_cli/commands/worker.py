"""`dualmap worker`: one engine joins the pool."""

import click

from dualmap_cli.settings_options import Flags, prepare, run_and_exit, settings_options
from dualmap_worker.settings import WorkerSettings


@click.command("worker")
@settings_options(WorkerSettings, "worker")
def worker(flags: Flags) -> None:
    """Run a worker: the admission queue and the relay beside one engine."""
    settings = prepare(WorkerSettings, "worker", flags)
    from dualmap_worker.app import run

    run_and_exit(lambda stop: run(settings, stop))
