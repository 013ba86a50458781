"""`dualmap keys`: make, list and revoke API keys."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from dualmap_cli.key_file import change_entries, load_entries
from dualmap_router.api_keys import KeyEntry, KeysError, new_key

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group("keys")
def keys() -> None:
    """API keys of the routers: `--api-keys-file` names the file that they are in."""


@keys.command("new")
@click.option("--name", required=True, help="What the key is called, in lists and logs.")
@click.option("--tenant", required=True, help="Whose requests it stands for.")
@click.option(
    "--requests-per-s", type=float, help="The tenant's limit, over all keys and routers of the pool."
)
@click.option(
    "--burst", type=int, help="Requests that may come at once after a pause; else a second's worth."
)
@click.option("--concurrency", type=int, help="The tenant's requests at once.")
@click.option(
    "--priority", type=int, help="The most urgent that it may ask for, 0 or less: smaller is more urgent."
)
@click.option("--admin", is_flag=True, help="May also look at /debug, and ask for any priority.")
@click.option("--expires", metavar="TIME", help="As 2027-01-01T00:00:00Z.")
@click.option("--file", "path", type=_FILE, help="Put its entry into this file; routers follow it.")
def new(path: Path | None, admin: bool, **fields: Any) -> None:
    """Make a key. It is printed once, alone on standard output; everything else goes to standard error."""
    key, digest = new_key()
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        entry = msgspec.convert({**given, "sha256": digest, "admin": admin}, KeyEntry)
        if path is not None:
            change_entries(path, lambda entries: [*entries, entry])
    except (msgspec.ValidationError, KeysError) as exc:
        raise click.ClickException(str(exc)) from exc
    if path is None:
        click.echo('An entry for "keys" in the keys file:', err=True)
        click.echo(msgspec.json.format(msgspec.json.encode(entry)).decode(), err=True)
    else:
        click.echo(
            f"{entry.name!r} is in {path}; routers that follow it take it within two seconds.", err=True
        )
    click.echo("The key itself, which is kept nowhere:", err=True)
    click.echo(key)


@keys.command("list")
@click.option("--file", "path", type=_FILE, required=True)
def list_keys(path: Path) -> None:
    """What a keys file says of its keys."""
    try:
        entries = load_entries(path)
    except KeysError as exc:
        raise click.ClickException(str(exc)) from exc
    table = Table("name", "tenant", "requests/s", "burst", "at once", "priority", "admin", "expires")
    for entry in entries:
        limits = entry.limits()
        rate = (f"{limits.requests_per_s:g}", str(limits.burst)) if limits.requests_per_s else ("", "")
        table.add_row(
            entry.name,
            entry.tenant,
            *rate,
            str(limits.concurrency or ""),
            _priority(entry),
            "yes" if entry.admin else "",
            _when(entry),
        )
    Console().print(table)


@keys.command("revoke")
@click.option("--name", required=True)
@click.option("--file", "path", type=_FILE, required=True)
def revoke(name: str, path: Path) -> None:
    """Take a key out of a keys file; what runs under it goes on."""

    def without(entries: Sequence[KeyEntry]) -> list[KeyEntry]:
        left = [entry for entry in entries if entry.name != name]
        if len(left) == len(entries):
            raise KeysError(f"{path}: there is no key named {name!r}")
        return left

    try:
        load_entries(path)
        change_entries(path, without)
    except KeysError as exc:
        raise click.ClickException(str(exc)) from exc
    click.echo(f"{name!r} is out of {path}; routers that follow it refuse it within two seconds.", err=True)


def _priority(entry: KeyEntry) -> str:
    most_urgent = entry.most_urgent()
    return "any" if most_urgent is None else str(most_urgent)


def _when(entry: KeyEntry) -> str:
    if entry.expires is None:
        return ""
    passed = " (passed)" if entry.expires <= datetime.now(UTC) else ""
    return f"{entry.expires.astimezone(UTC):%Y-%m-%d %H:%MZ}{passed}"
