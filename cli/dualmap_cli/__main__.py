"""`dualmap`, also as `python -m dualmap_cli`. Commands are imported when used: each needs only its own extra."""

import importlib

import click

_COMMANDS = {
    "demo": ("commands.demo", "demo", "The whole system on this machine, a workload, and a summary."),
    "up": ("commands.up", "up", "The same system, left running."),
    "router": ("commands.router", "router", "Run a router."),
    "worker": ("commands.worker", "worker", "Run a worker beside an engine."),
    "rebalancer": ("commands.rebalancer", "rebalancer", "Run a rebalancer."),
    "sim-engine": ("commands.sim_engine", "sim_engine", "Run simulated engines that speak vLLM's HTTP."),
    "load": ("commands.load", "load", "Replay a workload against any OpenAI endpoint."),
    "trace": ("commands.trace", "trace", "Make a trace of a request log, and say what is in one."),
    "simulate": ("commands.simulate", "simulate", "Simulate policies on a trace: runs, capacities, plots."),
    "top": ("commands.top", "top", "Watch a router: instances, requests, moves."),
    "explain": ("commands.explain", "explain", "Say where a prompt would go, and why."),
    "plan": ("commands.plan", "plan", "What adding or draining instances would do to the prefixes."),
    "drain": ("commands.drain", "drain", "Take instances out of service without losing a request."),
    "keys": ("commands.keys", "keys", "Make, list and revoke API keys."),
    "config": ("commands.config", "config", "Show a service's settings and where they came from."),
    "curve": ("commands.curve", "curve", "Make keys for encrypted telemetry."),
    "doctor": ("commands.doctor", "doctor", "Check a running system and name what is wrong."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        try:
            loaded = importlib.import_module(f"dualmap_cli.{module}")
        except ModuleNotFoundError as exc:
            if exc.name is None or exc.name.startswith("dualmap"):
                raise
            raise click.ClickException(
                f"`dualmap {cmd_name}` needs the package {exc.name!r}: pip install 'dualmap[all]'"
            ) from exc
        command: click.Command = getattr(loaded, attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, _, about) in _COMMANDS.items()])


@click.command(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="dualmap")
def cli() -> None:
    """DualMap: a distributed router for LLM serving."""


def main() -> None:
    """The console script."""
    cli(prog_name="dualmap")


if __name__ == "__main__":
    main()
