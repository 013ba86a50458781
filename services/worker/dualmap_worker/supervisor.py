"""The engine as the worker's child: started, watched, started again when it dies or hangs.

Whether it answers is seen by whoever asks it anyway and told by `heard`. Each start has a number, so that an
answer of the previous process is not taken for one of the next.
"""

import asyncio
import logging
import os
import shutil
from collections.abc import Awaitable, Callable

from dualmap_service.backoff import Backoff
from dualmap_service.child import Child, start_child
from dualmap_service.lifecycle import ServiceFailedError, wait_for
from dualmap_worker.engine_launch import EngineLaunch
from dualmap_worker.engine_output import EngineOutput
from dualmap_worker.settings import WorkerSettings

log = logging.getLogger(__name__)

_FIRST_STARTS = 3
"""Of an engine that was never ready; then its arguments are taken to be wrong."""
_STEADY_S = 60.0
"""One that was ready for so long starts again as if for the first time."""
_MAX_PAUSE_S = 60.0
_TICK_S = 0.5

Lost = Callable[[str], Awaitable[None]]
"""Told at once that the engine has ended, and why."""


class Supervisor:
    """Starts an engine and keeps it running until `close`."""

    def __init__(self, launch: EngineLaunch, settings: WorkerSettings, stop: asyncio.Event) -> None:
        self._launch = launch
        self._settings = settings
        self._stop = stop
        self._output = EngineOutput(settings.engine_log)
        self._child: Child | None = None
        self._silent_s = 0.0
        self._ready_s: float | None = None
        """How long the running one has been ready; None while it has not been."""
        self._ever_ready = False
        self.life = 0
        """Changes whenever the engine starts or ends."""

    def heard(self, life: int) -> bool:
        """The engine answered what was asked in this life of it; false if it is another by now."""
        if life != self.life or self._child is None:
            return False
        self._silent_s = 0.0
        if self._ready_s is None:
            self._ready_s, self._ever_ready = 0.0, True
        return True

    async def run(self, lost: Lost) -> None:
        """Until told to stop; ServiceFailedError when it is never ready."""
        # Those that died of one cause must not load their models in step.
        backoff, starts = Backoff(self._settings.engine_restart_s, _MAX_PAUSE_S), 0
        while not self._stop.is_set():
            why, by_itself = await self._live()
            if self._stop.is_set():
                return
            starts += 1
            if not self._ever_ready and (starts >= _FIRST_STARTS or not by_itself):
                said = await asyncio.to_thread(self._output.tail)
                raise ServiceFailedError(
                    f"the engine was never ready in {starts} starts: {why}; the end of what it said:\n{said}"
                )
            if (self._ready_s or 0.0) >= _STEADY_S:
                backoff.reset()
            restart_in_s = backoff.next_s()
            log.warning("engine.ended", extra={"why": why, "restart_in_s": round(restart_in_s, 2)})
            await lost(why)
            await wait_for(self._stop, restart_in_s)

    async def _live(self) -> tuple[str, bool]:
        """One life of the engine, from its start to its end; returns why it ended, and whether by itself."""
        self._silent_s, self._ready_s = 0.0, None
        self._child = child = self._start()
        self.life += 1
        log.info("engine.started", extra={"url": self._launch.url, "pid": child.pid})
        try:
            why = await self._watch(child)
        finally:
            self.life += 1
        status = await child.kill()
        self._child = None
        return why or f"it ended with status {status}", not why

    def _start(self) -> Child:
        writer = self._output.pipe()
        try:
            return start_child(
                self._launch.argv,
                "engine",
                env=self._launch.env,
                # Where this worker's store is and who may use it is nothing to the engine.
                inherited=lambda name: not name.startswith("DUALMAP_"),
                output=writer,
                kept=True,
                scratch=self._launch.folder,
            )
        finally:
            os.close(writer)

    async def _watch(self, child: Child) -> str:
        """Until it has ended, or is to be ended for the returned reason."""
        loop = asyncio.get_running_loop()
        settings, before_s = self._settings, loop.time()
        while await child.wait(_TICK_S) is None:
            now_s = loop.time()
            # At most two ticks: a worker that was suspended itself has not been listening.
            passed_s, before_s = min(now_s - before_s, 2 * _TICK_S), now_s
            self._silent_s += passed_s
            if self._ready_s is None:
                if self._silent_s > settings.engine_wait_s:
                    return f"it was not ready within {settings.engine_wait_s:g} s"
                continue
            self._ready_s += passed_s
            if self._silent_s > settings.engine_hang_s:
                return f"it answered nothing for {settings.engine_hang_s:g} s"
        return ""

    async def close(self) -> None:
        """Stop the engine, after `run` has ended or was cancelled."""
        if self._child is not None:
            await self._child.stop(self._settings.engine_stop_s)
            self._child = None
        await asyncio.to_thread(self._output.close)
        if self._launch.folder is not None:
            shutil.rmtree(self._launch.folder, ignore_errors=True)


class Attached:
    """In a supervisor's place beside an engine that runs already: whatever answers is it."""

    life = 0

    def heard(self, life: int) -> bool:
        """Always."""
        return True

    async def run(self, lost: Lost) -> None:
        """Nothing to watch."""

    async def close(self) -> None:
        """It stays."""


def supervisor_for(
    launch: EngineLaunch, settings: WorkerSettings, stop: asyncio.Event
) -> Supervisor | Attached:
    """Who looks after this engine."""
    return Supervisor(launch, settings, stop) if launch.supervised else Attached()
