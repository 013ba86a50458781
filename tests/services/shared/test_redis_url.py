"""What a Redis URL means, and which mean nothing."""

import pytest
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection

from dualmap_service.credentials import PemFiles
from dualmap_service.redis_url import Address, parse_redis_url


def test_one_server() -> None:
    url = parse_redis_url("redis://me:p%40ss@redis.example/3?socket_timeout=2")
    assert (url.kind, url.addresses, url.encrypted) == ("server", (Address("redis.example", 6379),), False)
    connection = url.connect_to(url.addresses[0], client_name="a test")
    assert type(connection) is Connection
    assert (connection.host, connection.port, connection.db) == ("redis.example", 6379, 3)
    assert (connection.username, connection.password) == ("me", "p@ss")
    assert (connection.socket_timeout, connection.client_name) == (2.0, "a test")


def test_a_unix_socket() -> None:
    url = parse_redis_url("unix:///run/redis.sock?db=2")
    connection = url.connect_to(None)
    assert isinstance(connection, UnixDomainSocketConnection)
    assert (url.addresses, connection.path, connection.db) == ((), "/run/redis.sock", 2)


def test_sentinels() -> None:
    url = parse_redis_url("redis+sentinel://me:pw@one:1,two,[::1]:3/the%20master/4")
    assert (url.kind, url.master) == ("sentinel", "the master")
    assert url.addresses == (Address("one", 1), Address("two", 26379), Address("::1", 3))
    connection = url.connect_to(Address("elsewhere", 5))
    assert (connection.host, connection.port, connection.db) == ("elsewhere", 5, 4)
    assert (connection.username, connection.password) == ("me", "pw")


def test_a_cluster_with_tls() -> None:
    pem = PemFiles("ca.pem", "cert.pem", "key.pem")
    url = parse_redis_url("rediss+cluster://one:1,two?ssl_check_hostname=false", pem)
    assert (url.kind, url.addresses) == ("cluster", (Address("one", 1), Address("two", 6379)))
    connection = url.connect_to(url.addresses[1])
    assert isinstance(connection, SSLConnection)
    assert (connection.ca_certs, connection.certfile, connection.keyfile) == ("ca.pem", "cert.pem", "key.pem")
    assert not connection.check_hostname
    assert parse_redis_url("rediss+cluster://one").connect_to(Address("one", 1)).check_hostname  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+sentinel://one,two", "master's name is missing"),
        ("redis+sentinel://one/main/x", "'x' is no number"),
        ("redis+cluster://one/3", "database 0 only"),
        ("redis://one/abc", "'abc' is no number"),
        ("redis://one:port/0", "port"),
        ("redis://one:99999", "Port"),
        ("redis://one/0?colour=red", "colour"),
        ("redis://one/0?socket_timeout=long", "socket_timeout"),
    ],
)
def test_what_means_nothing(url: str, says: str) -> None:
    with pytest.raises(ValueError, match="(?i)" + says):
        parse_redis_url(url)
