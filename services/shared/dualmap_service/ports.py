"""Ports for what is started here and must be told where to listen."""

import socket
from collections import deque
from contextlib import ExitStack
from random import SystemRandom

from dualmap_service.errors import SettingsError

_FIRST, _LAST = 20_000, 32_000
"""Below those that a system gives the client's end of a connection (on Linux 32768 to 60999): between the choice of
such a port and the listener's bind any connection on the machine could take it."""
_TRIES = 1000
_CHANCE = SystemRandom()
_GIVEN: deque[int] = deque(maxlen=1000)
"""What this process has given last, and does not give again: nothing may listen there yet, or again (a part that is
being restarted), which a probe cannot tell from a free port."""


def free_ports(count: int = 1, host: str = "127.0.0.1", also: int = 0) -> int:
    """The first of `count` ports in a row that nothing listens on; with `also`, nor on those so much higher.

    A process gets different ones at each call. Nothing holds them: who starts a listener there should choose again if
    another process was quicker. An empty host stands for every interface. Raises SettingsError if there are none.
    """
    highest = _LAST - also - count
    for _ in range(_TRIES):
        first = _CHANCE.randint(_FIRST, highest)
        ports = [*range(first, first + count)]
        ports += [port + also for port in ports if also]
        if not set(ports).intersection(_GIVEN) and _are_free(host, ports):
            _GIVEN.extend(ports)
            return first
    raise SettingsError(f"found no {count} free ports in a row")


def _are_free(host: str, ports: list[int]) -> bool:
    with ExitStack() as probes:
        try:
            for port in ports:
                probes.enter_context(socket.socket()).bind((host, port))
        except OSError:
            return False
    return True
