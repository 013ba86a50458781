"""By which address others reach this process."""

import socket
from urllib.parse import urlsplit

_WILDCARDS = frozenset(("", "0.0.0.0", "::", "*"))


def advertised_host(given: str, listening: str, redis_url: str) -> str:
    """The host to register: `given` if set, else the one listened on; for a wildcard this machine's address.

    That is the address from which it reaches Redis: routers and rebalancer reach Redis too, so they share a network.
    Where Redis is a unix socket or on loopback, so is everybody.
    """
    if given:
        return given
    if listening not in _WILDCARDS:
        return listening
    url = urlsplit(redis_url)
    if url.scheme == "unix" or not url.hostname:
        return "127.0.0.1"
    family, _, _, _, address = socket.getaddrinfo(url.hostname, url.port or 6379, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        # Sends nothing: the kernel only looks up the route.
        probe.connect(address)
        host = str(probe.getsockname()[0])
    return f"[{host}]" if family == socket.AF_INET6 else host
