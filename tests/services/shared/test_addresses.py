"""What a worker registers as its address."""

import socket

import pytest

from dualmap_service.addresses import advertised_host
from dualmap_service.redis_url import parse_redis_url


@pytest.mark.parametrize(
    ("given", "listening", "redis_url", "host"),
    [
        ("10.0.0.7", "0.0.0.0", "redis://127.0.0.1:6379/0", "10.0.0.7"),
        ("", "192.168.1.5", "redis://127.0.0.1:6379/0", "192.168.1.5"),
        ("", "0.0.0.0", "redis://127.0.0.1:6379/0", "127.0.0.1"),
        ("", "0.0.0.0", "redis://user:p%40ss@127.0.0.2/0", "127.0.0.1"),
        ("", "::", "redis://localhost:1/0", None),
        ("", "", "unix:///run/redis.sock", "127.0.0.1"),
        ("", "0.0.0.0", "redis+sentinel://127.0.0.1:26379,elsewhere/main", "127.0.0.1"),
    ],
)
def test_the_registered_host(given: str, listening: str, redis_url: str, host: str | None) -> None:
    found = advertised_host(given, listening, parse_redis_url(redis_url))
    assert found in ("127.0.0.1", "[::1]") if host is None else found == host


def test_redis_elsewhere_gives_the_address_of_the_way_there() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no route beyond itself")
        expected = probe.getsockname()[0]
    assert advertised_host("", "0.0.0.0", parse_redis_url("redis://192.0.2.1:6379/0")) == expected
