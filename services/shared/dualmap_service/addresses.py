"""By which address others reach this process."""

import socket

from dualmap_service.redis_url import RedisUrl

_WILDCARDS = frozenset(("", "0.0.0.0", "::", "*"))


def advertised_host(given: str, listening: str, redis: RedisUrl) -> str:
    """The host to register: `given` if set, else the one listened on; for a wildcard this machine's address.

    That is the address from which it reaches Redis: routers and rebalancer reach Redis too, so they share a network.
    Where Redis is a unix socket or on loopback, so is everybody.
    """
    if given:
        return given
    if listening not in _WILDCARDS:
        return listening
    if not redis.addresses:
        return "127.0.0.1"
    towards = redis.addresses[0]
    family, _, _, _, address = socket.getaddrinfo(towards.host, towards.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        # Sends nothing: the kernel only looks up the route.
        probe.connect(address)
        host = str(probe.getsockname()[0])
    return f"[{host}]" if family == socket.AF_INET6 else host
