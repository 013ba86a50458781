"""`dualmap plan`: what adding or draining instances would do to the prefixes, before doing it."""

import asyncio
import random
from collections.abc import Mapping

import click
import msgspec
from rich.console import Console
from rich.table import Table

from dualmap.ring_change import RingChange, compare_rings
from dualmap_cli.registry import one_of, pool_options, read_registrations
from dualmap_service.access import AccessSettings
from dualmap_wire.telemetry import Registration

_KEYS = 20_000


@click.command("plan")
@click.argument("what", type=click.Choice(["add", "drain"]))
@click.argument("instances", nargs=-1, required=True)
@click.option(
    "--weight",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Of each instance that is added.",
)
@pool_options
@click.option("--json", "as_json", is_flag=True, help="The figures as one JSON object.")
def plan(access: AccessSettings, what: str, instances: tuple[str, ...], weight: float, as_json: bool) -> None:
    """Say what share of the prefixes would get other candidates if INSTANCES were added or drained.

    Nothing is changed. The names of instances to be added matter: their places on the rings follow from them.
    """
    registrations = asyncio.run(read_registrations(access))
    before = {name: entry.weight for name, entry in registrations.items() if entry.state == "active"}
    after = _after(what, instances, weight, before, registrations)
    if not before or not after:
        raise click.ClickException("no instance would be left that takes new requests")
    chance = random.Random(0)
    change = compare_rings(before, after, (chance.getrandbits(64) for _ in range(_KEYS)))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(change), indent=2).decode())
    else:
        _show(change)


def _after(
    what: str,
    instances: tuple[str, ...],
    weight: float,
    before: Mapping[str, float],
    registrations: Mapping[str, Registration],
) -> dict[str, float]:
    after = dict(before)
    for instance in instances:
        if what == "drain":
            one_of(registrations, instance)
            after.pop(instance, None)
        elif instance in after:
            raise click.ClickException(f"{instance!r} is in the pool already")
        else:
            after[instance] = weight
    return after


def _show(change: RingChange) -> None:
    console = Console()
    console.print(f"{change.changed_share:.1%} of the prefixes get another pair of candidates")
    console.print(f"{change.cold_share:.1%} keep none of theirs: whatever is cached for them is out of reach")
    table = Table("instance", "prefixes now", "then", box=None)
    for name in sorted({*change.before, *change.after}):
        shares = (change.before.get(name), change.after.get(name))
        # Each prefix has two candidates: halved, the column adds up to everything.
        table.add_row(name, *("-" if share is None else f"{share / 2:.1%}" for share in shares))
    console.print(table)
