"""Where Redis is: one server, Sentinels that know the master, or nodes of a Cluster.

| URL | |
|---|---|
| redis://host:6379/0, unix:///path?db=0 | one server |
| redis+sentinel://host:26379,host:26379/MASTER/0 | the master that Sentinels name, and its database |
| redis+cluster://host:6379,host:6379 | some nodes of a Cluster; the others are found |

Each with `rediss` speaks TLS, and with `user:password@` before the first host logs in to the servers. What redis-py
takes as a query (`?socket_timeout=2`, `?ssl_check_hostname=false`) it takes here.
"""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.exceptions import RedisError

from dualmap_service.credentials import PemFiles

Kind = Literal["server", "sentinel", "cluster"]
_PORTS = {"server": 6379, "sentinel": 26379, "cluster": 6379}
_DEFAULTS: Mapping[str, Any] = {
    "protocol": 2,
    "socket_connect_timeout": 2.0,
    "retry": None,
    # The server need not know which library this is; Redis 7.0 has no way to allow a user to tell it.
    "driver_info": None,
}


@dataclass(frozen=True, slots=True)
class Address:
    """Of one server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A parsed URL."""

    kind: Kind
    addresses: tuple[Address, ...]
    """Of servers, or of Sentinels; empty for a unix socket."""
    master: str
    """Its name among the Sentinels."""
    connection: type[Connection | UnixDomainSocketConnection]
    options: Mapping[str, Any]
    """Of every connection to a server, its address apart."""

    @property
    def encrypted(self) -> bool:
        """Whether it speaks TLS."""
        return issubclass(self.connection, SSLConnection)

    def connect_to(self, address: Address | None, **more: Any) -> Connection:
        """A connection, not opened yet, to a server; None for the unix socket."""
        place = {} if address is None else {"host": address.host, "port": address.port}
        made: Connection = self.connection(**{**self.options, **place, **more})  # type: ignore[assignment]
        return made


def parse_redis_url(url: str, pem: PemFiles = PemFiles()) -> RedisUrl:
    """What a URL means; ValueError when it means nothing. The files are for TLS."""
    parts = urlsplit(url)
    scheme, _, how = parts.scheme.partition("+")
    kind: Kind = "sentinel" if how == "sentinel" else "cluster" if how == "cluster" else "server"
    login, at, hosts = parts.netloc.rpartition("@")
    master, path = "", parts.path
    if kind == "sentinel":
        master, _, database = parts.path.strip("/").partition("/")
        master, path = unquote(master), f"/{database}"
        if not master:
            raise ValueError("the master's name is missing: redis+sentinel://host:26379/MASTER")
    if kind == "cluster" and path.strip("/") not in ("", "0"):
        raise ValueError("a Cluster has database 0 only")
    if scheme != "unix" and not re.fullmatch(r"/?\d*", path):
        raise ValueError(f"{path.strip('/')!r} is no number of a database")
    first = hosts.split(",")[0]
    options: dict[str, Any] = dict(parse_url(f"{scheme}://{login}{at}{first}{path}?{parts.query}"))
    connection = options.pop("connection_class", Connection)
    options.pop("host", None)
    options.pop("port", None)
    if connection is SSLConnection:
        options = {**_tls(pem), **options}
    options = {**_DEFAULTS, **options}
    addresses = () if scheme == "unix" else tuple(_address(host, _PORTS[kind]) for host in hosts.split(","))
    parsed = RedisUrl(kind, addresses, master, connection, options)
    try:
        parsed.connect_to(addresses[0] if addresses else None)
    except (TypeError, RedisError) as exc:
        raise ValueError(f"redis-py refuses it: {exc}") from exc
    return parsed


def _tls(pem: PemFiles) -> dict[str, Any]:
    options: dict[str, Any] = {"ssl_min_version": ssl.TLSVersion.TLSv1_2}
    if pem.ca_file:
        options["ssl_ca_certs"] = pem.ca_file
    if pem.cert_file:
        options |= {"ssl_certfile": pem.cert_file, "ssl_keyfile": pem.key_file}
    return options


def _address(text: str, port: int) -> Address:
    parts = urlsplit(f"//{text}")
    return Address(parts.hostname or "localhost", parts.port or port)
