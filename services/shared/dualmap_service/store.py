"""The store: one pipelined connection to Redis or Valkey, shared by all of a process's calls.

Calls are pipelined (`store_pipeline`), so one costs a fraction of what a connection pool does. Every call has a
deadline. Redis may be down, slow or flushed at any time: then calls fail at once with StoreUnavailableError, a probe
finds its return, and the function library is loaded again.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from redis.asyncio.connection import Connection
from redis.exceptions import ResponseError

from dualmap_service.access import AccessSettings
from dualmap_service.backoff import Backoff
from dualmap_service.errors import StoreError, StoreUnavailableError
from dualmap_service.redis_servers import make_servers
from dualmap_service.store_pipeline import Pipeline
from dualmap_wire.redis_functions import function_name, library

log = logging.getLogger(__name__)

_MISSES_TO_OPEN = 3
_PROBE_S = 0.1
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.05, 1.0
_CONNECT_S = 5.0
_SILENCE_S = 3.0


class Store:
    """The shared state of a pool, as this process reaches it."""

    def __init__(self, settings: AccessSettings, client_name: str, deadline_s: float = 1.0) -> None:
        self._servers = make_servers(settings, client_name)
        self._deadline_s = deadline_s
        self._pipeline: Pipeline | None = None
        self._misses = 0
        self._probing = False
        self._task: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._connected_once = asyncio.Event()
        self.on_connect: list[Callable[[], None]] = []
        """Called after every (re)connection, when the function library is there."""

    @property
    def available(self) -> bool:
        """Whether calls are tried at all."""
        return self._pipeline is not None and self._misses < _MISSES_TO_OPEN

    async def start(self, wait_s: float = 5.0) -> bool:
        """Begin to connect; true if the store is there within `wait_s`. It keeps trying either way."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="store")
        self._task.add_done_callback(_died)
        try:
            async with asyncio.timeout(wait_s):
                await self._connected_once.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Disconnect."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, *self._background, return_exceptions=True)
        await self._servers.close()

    # Calls

    def command(
        self, *args: str | bytes | int | float, deadline_s: float | None = None
    ) -> asyncio.Future[Any]:
        """Send a command; the future holds its reply, StoreError or StoreUnavailableError."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        pipeline = self._pipeline
        if pipeline is None or self._misses >= _MISSES_TO_OPEN:
            future.set_exception(StoreUnavailableError("no connection to Redis"))
            return future
        timer = loop.call_later(deadline_s or self._deadline_s, self._expire, future, True)
        pipeline.send(args, future, timer)
        return future

    def function(
        self, name: str, prefix: str, *args: str | bytes | int | float, deadline_s: float | None = None
    ) -> asyncio.Future[Any]:
        """Call a function of the library on the pool whose keys start with `prefix`."""
        return self.command("FCALL", function_name(name), 1, prefix, *args, deadline_s=deadline_s)

    def post(self, name: str, prefix: str, *args: str | bytes | int | float, urgent: bool = False) -> None:
        """Call a function without waiting; an outage loses the call, which callers must be able to afford.

        It leaves with the next call, or by itself after a moment; at once when it is urgent.
        """
        if self._pipeline is not None and self._misses < _MISSES_TO_OPEN:
            self._pipeline.send(("FCALL", function_name(name), 1, prefix, *args), None, urgent=urgent)

    # Connection

    def _expire(self, future: asyncio.Future[Any], first: bool) -> None:
        """A deadline passed; the reply may wait in the socket while this loop was busy, so look once more."""
        if future.done():
            return
        if first:
            asyncio.get_running_loop().call_later(0.001, self._expire, future, False)
            return
        future.set_exception(StoreUnavailableError("Redis did not answer in time"))
        self._misses += 1
        if self._misses >= _MISSES_TO_OPEN and not self._probing:
            self._probing = True
            log.warning("store.slow", extra={"misses": self._misses})
            task = asyncio.get_running_loop().create_task(self._probe(), name="store-probe")
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _probe(self) -> None:
        """Ask until Redis answers again, then close the breaker; a connection that stays silent is replaced."""
        loop = asyncio.get_running_loop()
        probed: Pipeline | None = None
        give_up_s = 0.0
        try:
            # Whatever connection there is: another may have come and fallen silent while this asked the last one.
            while (pipeline := self._pipeline) is not None and self._misses >= _MISSES_TO_OPEN:
                if pipeline is not probed:
                    probed, give_up_s = pipeline, loop.time() + _SILENCE_S
                future: asyncio.Future[Any] = loop.create_future()
                pipeline.send(("PING",), future)
                try:
                    async with asyncio.timeout(max(_PROBE_S, self._deadline_s)):
                        await future
                except (TimeoutError, StoreError):
                    if loop.time() > give_up_s:
                        # Half-open, as after a host was lost: the kernel would take minutes to notice.
                        pipeline.close()
                    await asyncio.sleep(_PROBE_S)
                    continue
                if pipeline is self._pipeline:
                    self._misses = 0
                    log.info("store.back")
        finally:
            self._probing = False

    async def _run(self) -> None:
        """Connect, serve until the connection is lost, and again; at once where it was a good one."""
        loop = asyncio.get_running_loop()
        backoff = Backoff(_FIRST_PAUSE_S, _MAX_PAUSE_S)
        while True:
            try:
                async with asyncio.timeout(_CONNECT_S):
                    connection = await self._connect()
            except Exception as exc:  # noqa: BLE001 - also what uvloop makes of a connection that dies under redis-py
                log.warning("store.unreachable", extra={"error": (str(exc) or "no answer in time")[:200]})
                await asyncio.sleep(backoff.next_s())
                continue
            connected_s = loop.time()
            pipeline = self._pipeline = Pipeline(connection, self._answered)
            self._misses = 0
            self._connected_once.set()
            log.info("store.connected", extra={"server": _name(connection)})
            for callback in self.on_connect:
                callback()
            displaced = asyncio.ensure_future(self._servers.displaced())
            try:
                await asyncio.wait((pipeline.lost, displaced), return_when=asyncio.FIRST_COMPLETED)
            finally:
                displaced.cancel()
                self._pipeline = None
                pipeline.close()
                await connection.disconnect(nowait=True)
            log.warning("store.lost")
            if loop.time() - connected_s > _MAX_PAUSE_S:
                backoff.reset()
            else:
                # It lets everybody in and hangs up on them: each time all that follows a connection would be done.
                await asyncio.sleep(backoff.next_s())

    def _answered(self) -> None:
        self._misses = 0

    async def _connect(self) -> Connection:
        """A connection to the server that holds the pool, with the library in it."""
        connection = await self._servers.connect()
        try:
            await self._load_library(connection)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def _load_library(self, connection: Connection) -> None:
        """Put this release's functions where they are missing; a replica refuses it, whatever it holds."""
        await connection.send_command("FUNCTION", "LOAD", library()[1])
        try:
            await connection.read_response(disable_decoding=True)
        except ResponseError as exc:
            if "already exists" not in str(exc):
                raise


def _name(connection: Connection) -> str:
    """What a log calls the server."""
    host = getattr(connection, "host", None)
    return f"{host}:{connection.port}" if host is not None else str(getattr(connection, "path", ""))


def _died(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("store.died", exc_info=task.exception())
