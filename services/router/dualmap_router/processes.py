"""Several router processes on one port: the kernel gives each new connection to one of them (SO_REUSEPORT).

One process uses one core. Each of several is a router of its own, with its name, its connection to Redis, its sessions
and charges, as routers on several machines are. It answers a port of its own as well: who scraped the shared one would
read the counters of another each time.

A process that crashes starts again, after a pause. One that says that it cannot run ends all of them, since another
start would find the same: a port that is taken, a setting that has no meaning.
"""

import asyncio
import logging
import math
import sys
from collections.abc import Callable, Sequence

from dualmap_router.settings import RouterSettings
from dualmap_service.child import Child, start_child
from dualmap_service.lifecycle import Background, ServiceFailedError

log = logging.getLogger(__name__)

_CANNOT_RUN = (1, 2)
"""What a service's process ends with that has said why on standard error."""
_PAUSE_S = 0.5
_MAX_PAUSE_S = 10.0
_STEADY_S = 60.0
"""One that ran for so long starts again as if for the first time."""
_KILL_S = 10.0
"""What a process may take to end beside its draining."""

Command = Callable[[int], Sequence[str]]
"""The arguments of the process of that number, from 1."""


class Processes:
    """Keeps `settings.processes` routers running until told to stop."""

    def __init__(self, settings: RouterSettings, command: Command, stop: asyncio.Event) -> None:
        self._settings = settings
        self._command = command
        self._stop = stop
        self._children: dict[int, Child] = {}

    async def run(self) -> None:
        """Until told to stop; ServiceFailedError when one of them cannot run."""
        background = Background(self._stop)
        for number in range(1, self._settings.processes + 1):
            background.start(self._keep(number), f"process-{number}")
        try:
            await self._stop.wait()
            await background.close()
        finally:
            # All at once: each answers what it has under way.
            grace_s = self._settings.drain_s + _KILL_S
            await asyncio.gather(*(child.stop(grace_s) for child in self._children.values()))

    async def _keep(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        pause_s = _PAUSE_S
        while True:
            started_s = loop.time()
            child = start_child(self._command(number), f"router-{number}", output=sys.stderr.fileno())
            self._children[number] = child
            log.info("router.process_started", extra={"number": number, "pid": child.pid})
            status = await child.wait(math.inf)
            if status in _CANNOT_RUN:
                raise ServiceFailedError(f"router process {number} cannot run: it has said why")
            if loop.time() - started_s > _STEADY_S:
                pause_s = _PAUSE_S
            log.error(
                "router.process_ended", extra={"number": number, "status": status, "restart_in_s": pause_s}
            )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)


async def run(settings: RouterSettings, command: Command, stop: asyncio.Event) -> None:
    """Run several routers on one port."""
    await Processes(settings, command, stop).run()
