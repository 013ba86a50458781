"""`dualmap worker`: one engine joins the pool."""

import shlex

import click

from dualmap_cli.settings_options import BadSettings, Flags, prepare, run_and_exit, settings_options
from dualmap_service.errors import SettingsError
from dualmap_worker.settings import WorkerSettings


@click.command("worker")
@settings_options(WorkerSettings, "worker")
@click.argument("behind", nargs=-1, type=click.UNPROCESSED, metavar="[-- ENGINE ARGUMENTS]")
def worker(flags: Flags, behind: tuple[str, ...]) -> None:
    """Run a worker: the admission queue and the relay beside one engine.

    With --engine vllm it starts vLLM itself, with what stands behind -- as for `vllm serve`.
    """
    if behind:
        if "engine_args" in flags:
            raise BadSettings("--engine-args and arguments behind --: say them once")
        flags = {**flags, "engine_args": shlex.join(behind)}
    settings = prepare(WorkerSettings, "worker", flags)
    from dualmap_worker.app import run
    from dualmap_worker.engine_launch import resolve

    try:
        launch = resolve(settings)
    except SettingsError as exc:
        raise BadSettings(str(exc)) from exc
    run_and_exit(lambda stop: run(settings, stop, launch))
