"""`dualmap config show`: what a service would run with."""

import os

import click
import msgspec
from rich.console import Console
from rich.table import Table

from dualmap_cli.settings_options import BadSettings
from dualmap_rebalancer.settings import RebalancerSettings
from dualmap_router.settings import RouterSettings
from dualmap_service.errors import SettingsError
from dualmap_service.settings import SharedSettings, load_settings
from dualmap_worker.settings import WorkerSettings

_KINDS: dict[str, type[SharedSettings]] = {
    "router": RouterSettings,
    "worker": WorkerSettings,
    "rebalancer": RebalancerSettings,
}


@click.group("config")
def config() -> None:
    """Settings of the services."""


@config.command("show")
@click.argument("service", type=click.Choice(list(_KINDS)), required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def show(service: str | None, as_json: bool) -> None:
    """Each setting of SERVICE (or of all): its value and where it came from."""
    names = [service] if service else list(_KINDS)
    try:
        loaded = {name: load_settings(_KINDS[name], name, os.environ) for name in names}
    except SettingsError as exc:
        raise BadSettings(str(exc)) from exc
    if as_json:
        found = {
            name: {field: {"value": value, "from": origin} for field, value, origin in one.rows()}
            for name, one in loaded.items()
        }
        click.echo(msgspec.json.encode(found).decode())
        return
    console = Console()
    for name, one in loaded.items():
        table = Table("setting", "value", "from", title=name, title_justify="left")
        for row in one.rows():
            table.add_row(*row, style=None if row[2] == "default" else "bold")
        console.print(table)
