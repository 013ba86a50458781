"""What commands ask of a pool's registry."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
from redis.asyncio import Redis
from redis.exceptions import RedisError

from dualmap_wire.errors import WireError
from dualmap_wire.redis_keys import PoolKeys
from dualmap_wire.telemetry import Registration, decode_registration

F = TypeVar("F", bound=Callable[..., Any])


def pool_options(command: F) -> F:
    """Give a command the flags that say which pool, and where its store is."""
    url, pool = "redis://127.0.0.1:6379/0", "default"
    command = click.option("--pool", envvar="DUALMAP_POOL", default=pool, show_default=True)(command)
    return click.option("--redis-url", envvar="DUALMAP_REDIS_URL", default=url, show_default=True)(command)


async def read_registrations(redis_url: str, pool: str) -> dict[str, Registration]:
    """Everyone in the registry of a pool by instance; a ClickException when nobody or no store is there."""
    redis: Any = Redis.from_url(redis_url, socket_connect_timeout=3, socket_timeout=3)
    try:
        packed = await redis.hgetall(PoolKeys(pool).instances)
    except (RedisError, OSError) as exc:
        raise click.ClickException(f"no answer from {redis_url.rpartition('@')[2]}: {exc}") from exc
    finally:
        await redis.aclose()
    found = {}
    for value in packed.values():
        try:
            registration = decode_registration(value)
        except WireError:
            continue  # `dualmap doctor` names it
        found[registration.instance] = registration
    if not found:
        raise click.ClickException(f"nobody is registered in pool {pool!r}: check --pool and --redis-url")
    return found


def one_of(registrations: Mapping[str, Registration], instance: str) -> Registration:
    """The registration of an instance; a ClickException that names the nearest one."""
    if instance not in registrations:
        close = difflib.get_close_matches(instance, registrations, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise click.ClickException(f"no instance {instance!r} in this pool{hint}")
    return registrations[instance]
