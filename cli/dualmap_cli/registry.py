"""What commands ask of a pool's registry."""

import difflib
import functools
import os
from collections.abc import Callable, Mapping
from typing import Concatenate, ParamSpec, TypeVar

import click
from redis.exceptions import RedisError

from dualmap_cli.settings_options import BadSettings, Flags, settings_options
from dualmap_service.access import AccessSettings
from dualmap_service.errors import SettingsError
from dualmap_service.redis_servers import redis_client
from dualmap_service.settings import load_settings
from dualmap_wire.errors import WireError
from dualmap_wire.redis_keys import PoolKeys
from dualmap_wire.telemetry import Registration, decode_registration

P = ParamSpec("P")
R = TypeVar("R")


def pool_options(command: Callable[Concatenate[AccessSettings, P], R]) -> Callable[..., R]:
    """Give a command the flags that say which pool, and how to reach it; its function gets them first, as settings."""

    @functools.wraps(command)
    def with_access(flags: Flags, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            access = load_settings(AccessSettings, "cli", os.environ, flags).settings
        except SettingsError as exc:
            raise BadSettings(str(exc)) from exc
        return command(access, *args, **kwargs)

    return settings_options(AccessSettings, "cli")(with_access)


async def read_registrations(access: AccessSettings) -> dict[str, Registration]:
    """Everyone in the registry of a pool by instance; a ClickException when nobody or no store is there."""
    try:
        async with redis_client(access) as redis:
            packed = await redis.hgetall(PoolKeys(access.pool).instances)
    except (RedisError, OSError) as exc:
        place = access.redis_url.rpartition("@")[2].partition("?")[0]
        raise click.ClickException(f"no answer from {place}: {exc}") from exc
    found = {}
    for value in packed.values():
        try:
            registration = decode_registration(value)
        except WireError:
            continue  # `dualmap doctor` names it
        found[registration.instance] = registration
    if not found:
        raise click.ClickException(
            f"nobody is registered in pool {access.pool!r}: check --pool and --redis-url"
        )
    return found


def one_of(registrations: Mapping[str, Registration], instance: str) -> Registration:
    """The registration of an instance; a ClickException that names the nearest one."""
    if instance not in registrations:
        close = difflib.get_close_matches(instance, registrations, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise click.ClickException(f"no instance {instance!r} in this pool{hint}")
    return registrations[instance]
