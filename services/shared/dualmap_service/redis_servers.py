"""Finding the server that holds a pool: the only one, the master that Sentinels name, or a Cluster's owner of its slot.

Every key of a pool has one hash tag, so in a Cluster too a single server holds it. Whoever lost that server, or is told
that it is not the right one any more, asks for a connection again.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Protocol

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import MovedError, RedisError

from dualmap_service.access import AccessSettings
from dualmap_service.redis_url import Address, RedisUrl
from dualmap_wire.redis_keys import PoolKeys

_ANSWER_S = 1.0
_MASTER_POLL_S = 1.0
_MAX_HOPS = 4
_MAX_NODES = 1000


class Servers(Protocol):
    """The servers behind one URL."""

    async def connect(self) -> Connection:
        """An open connection to the server that holds the pool; RedisError or OSError while none can be had."""

    async def displaced(self) -> None:
        """Return when another server has taken the place of the one connected to last."""

    async def close(self) -> None:
        """Forget what was open to find servers."""


class OneServer:
    """There is no other."""

    def __init__(self, url: RedisUrl, client_name: str | None) -> None:
        self._url = url
        self._client_name = client_name

    async def connect(self) -> Connection:
        """Open a connection to it."""
        address = self._url.addresses[0] if self._url.addresses else None
        return await _open(self._url, address, self._client_name)

    async def displaced(self) -> None:
        """Never."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Nothing was open."""


class SentinelServers:
    """The master that Sentinels name. That it takes writes shows when the function library is loaded into it."""

    def __init__(self, url: RedisUrl, client_name: str | None, login: dict[str, Any]) -> None:
        self._url = url
        self._client_name = client_name
        self._address: Address | None = None
        tls = {name: value for name, value in url.options.items() if name.startswith("ssl_")}
        self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
            [(address.host, address.port) for address in url.addresses],
            sentinel_kwargs={
                **login,
                **tls,
                "ssl": url.encrypted,
                "socket_timeout": _ANSWER_S,
                "socket_connect_timeout": _ANSWER_S,
                "driver_info": None,
                # The next Sentinel is a better try than the same one again.
                "retry": Retry(NoBackoff(), 0),
            },
        )

    async def connect(self) -> Connection:
        """Ask for the master and connect to it."""
        self._address = await self._ask()
        return await _open(self._url, self._address, self._client_name)

    async def displaced(self) -> None:
        """Ask again and again: a master that is cut off from its Sentinels does not learn that it was replaced."""
        while True:
            await asyncio.sleep(_MASTER_POLL_S)
            with contextlib.suppress(RedisError, OSError):
                if await self._ask() != self._address:
                    return

    async def close(self) -> None:
        """Disconnect from the Sentinels."""
        await self._sentinel.aclose()

    async def _ask(self) -> Address:
        host, port = await self._sentinel.discover_master(self._url.master)
        return Address(str(host), int(port))


class ClusterServers:
    """The owner of the pool's slot: any node that is asked for a key of the pool either has it or knows who does."""

    def __init__(self, url: RedisUrl, client_name: str | None, pool: str) -> None:
        self._url = url
        self._client_name = client_name
        self._probe = ("EXISTS", PoolKeys(pool).prefix)
        self._nodes = list(url.addresses)
        """The last owner first, those that failed last."""

    async def connect(self) -> Connection:
        """Ask nodes until one owns the slot; the error of the last when none can be found."""
        failure: BaseException = ConnectionError("no node of the Cluster is known")
        for address in list(self._nodes):
            # Behind the others at once: whoever loses patience with this one begins with the next.
            self._nodes.remove(address)
            self._nodes.append(address)
            try:
                async with asyncio.timeout(_ANSWER_S):
                    return await self._follow(address)
            except (RedisError, OSError) as exc:
                failure = exc
        raise failure

    async def displaced(self) -> None:
        """Never by itself: a node that no longer owns the slot says so to the next call."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Nothing was open."""

    async def _follow(self, address: Address) -> Connection:
        """From a node to the owner that it names."""
        for _ in range(_MAX_HOPS):
            connection = await _open(self._url, address, self._client_name)
            try:
                await _ask(connection, *self._probe)
                await self._learn(connection, address)
            except MovedError as moved:
                await connection.disconnect(nowait=True)
                # Without a host it means its own.
                address = Address(moved.host or address.host, moved.port)
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            else:
                return connection
        raise ConnectionError("the Cluster's nodes do not agree on who owns the pool's slot")

    async def _learn(self, connection: Connection, owner: Address) -> None:
        """Remember every node: those that the URL names may all be gone one day."""
        found = [owner]
        for _first, _last, *nodes in await _ask(connection, "CLUSTER", "SLOTS"):
            # A node without a name of its own is written as an empty or a null host.
            found += [Address((host or owner.host.encode()).decode(), port) for host, port, *_ in nodes]
        self._nodes = list(dict.fromkeys((*found, *self._url.addresses)))[:_MAX_NODES]


def make_servers(settings: AccessSettings, client_name: str | None = None) -> Servers:
    """The servers that settings name."""
    url = settings.redis_place()
    if url.kind == "sentinel":
        username, password = settings.redis_sentinel_username, settings.redis_sentinel_password
        login = {"username": username or None, "password": password or None}
        return SentinelServers(url, client_name, login)
    if url.kind == "cluster":
        return ClusterServers(url, client_name, settings.pool)
    return OneServer(url, client_name)


@contextlib.asynccontextmanager
async def redis_client(settings: AccessSettings, timeout_s: float = 3.0) -> AsyncIterator[Any]:
    """A redis-py client of the server that holds the pool now; RedisError or OSError when there is none."""
    servers, url = make_servers(settings), settings.redis_place()
    try:
        async with asyncio.timeout(2 * timeout_s):
            connection = await servers.connect()
        await connection.disconnect()
    finally:
        await servers.close()
    place = {"host": connection.host, "port": connection.port} if url.addresses else {}
    options = {**url.options, "socket_timeout": timeout_s, **place}
    client = Redis.from_pool(ConnectionPool(connection_class=url.connection, **options))
    try:
        yield client
    finally:
        await client.aclose()


async def _open(url: RedisUrl, address: Address | None, client_name: str | None) -> Connection:
    connection = url.connect_to(address, client_name=client_name)
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return connection


async def _ask(connection: Connection, *command: str) -> Any:
    await connection.send_command(*command)
    return await connection.read_response(disable_decoding=True)
