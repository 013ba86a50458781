"""A service's life: start, run until told to stop, stop. A background loop that dies ends the service."""

import asyncio
import gc
import logging
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import uvloop

log = logging.getLogger(__name__)


def run_service(main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run `main(stop)` on uvloop; SIGTERM and SIGINT set `stop`. Returns the process's exit status."""

    # What start-up made lives as long as the process; and a service makes few cycles, so that the collector's
    # default pace would cost a tenth of its time.
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    _allow_descriptors()

    async def body() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await main(stop)
        return 0

    try:
        return uvloop.run(body())
    except ServiceFailedError as exc:
        print(f"fatal: {exc}", file=sys.stderr)  # noqa: T201 - logs may not be set up yet
        return 1


def _allow_descriptors() -> None:
    """Lift the soft limit of open files to the hard one.

    The usual 1,024 is for programs that use `select`. Here a few more client connections than that would leave no
    descriptor to reach Redis or a worker with.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class ServiceFailedError(Exception):
    """The service cannot start or go on; the message is for an operator."""


class Background:
    """Background tasks of a service; the first to fail sets `stop`, and `close` raises what it died of."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failure: BaseException | None = None

    def start(self, body: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run a loop for the service's life."""
        task = asyncio.get_running_loop().create_task(body, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        failure = task.exception()
        if failure is not None:
            log.error("service.loop_died", extra={"loop": task.get_name()}, exc_info=failure)
            self._failure = self._failure or failure
            self._stop.set()

    async def close(self) -> None:
        """Cancel what runs and wait for it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(self._failure, ServiceFailedError):
            raise self._failure
        if self._failure is not None:
            raise ServiceFailedError(f"a background loop died: {self._failure!r}") from self._failure


async def every(period_s: float, step: Callable[[], Awaitable[None]]) -> None:
    """Run `step` each `period_s`, the first time at once; a slow step delays the next instead of piling up."""
    loop = asyncio.get_running_loop()
    while True:
        started = loop.time()
        await step()
        await asyncio.sleep(max(0.0, period_s - (loop.time() - started)))


async def wait_for(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for an event at most `timeout_s`; true when it was set."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
