"""`dualmap curve new`: keys for telemetry over CURVE."""

import os
from pathlib import Path

import click
from zmq.auth import create_certificates


@click.group("curve")
def curve() -> None:
    """Keys for encrypted telemetry."""


@curve.command("new")
@click.argument("name")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    show_default="here",
    help="Where to; made if it is not there.",
)
def new(name: str, folder: Path) -> None:
    """Make a pair of keys: NAME.key, to be given to others, and NAME.key_secret, to be kept."""
    if Path(name).name != name or name.startswith("."):
        raise click.UsageError("NAME becomes a file's name: it has no slashes and begins with no dot")
    public, secret = folder / f"{name}.key", folder / f"{name}.key_secret"
    for path in (public, secret):
        if path.exists():
            raise click.ClickException(f"{path} is there already: whoever uses it would be locked out")
    folder.mkdir(parents=True, exist_ok=True)
    before = os.umask(0o077)
    try:
        create_certificates(folder, name)
    finally:
        os.umask(before)
    public.chmod(0o644)
    click.echo(f"{public}         to be given to others")
    click.echo(f"{secret}  to be kept: the CURVE key file of whoever is {name}")
