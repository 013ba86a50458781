"""The store: one pipelined connection to Redis or Valkey, shared by all of a process's calls.

Commands of one event-loop turn leave in one write, and replies come back in order, so a call costs a
fraction of what a connection pool does. Every call has a deadline. Redis may be down, slow or flushed at
any time: then calls fail at once with StoreUnavailableError, a probe finds its return, and the function
library is loaded again. redis-py does the connecting (TLS, ACL, unix sockets).
"""

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis
from redis.asyncio.connection import Connection, ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from dualmap_service.errors import StoreError, StoreUnavailableError
from dualmap_wire.redis_functions import function_name, library

log = logging.getLogger(__name__)

# RuntimeError is uvloop's word for a write to a transport that has closed.
_LOST = (RedisConnectionError, RedisTimeoutError, OSError, EOFError, RuntimeError)
_MISSES_TO_OPEN = 3
_PROBE_S = 0.1
_MAX_BACKOFF_S = 1.0
_CONNECT_S = 5.0
_SILENCE_S = 3.0
_LINGER_S = 0.002


class Store:
    """The shared state of a pool, as this process reaches it."""

    def __init__(self, url: str, client_name: str, deadline_s: float = 1.0) -> None:
        self._pool = ConnectionPool.from_url(
            url, protocol=2, socket_connect_timeout=2.0, client_name=client_name, retry=None
        )
        self._deadline_s = deadline_s
        self._connection: Connection | None = None
        self._outgoing: list[bytes] = []
        self._flush = asyncio.Event()
        self._replace = asyncio.Event()
        self._linger: asyncio.TimerHandle | None = None
        self._pending: deque[asyncio.Future[Any]] = deque()
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
        return self._connection is not None and self._misses < _MISSES_TO_OPEN

    async def start(self, wait_s: float = 5.0) -> bool:
        """Begin to connect; true if the store is there within `wait_s`. It keeps trying either way."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="store")
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
        await self._pool.disconnect()

    # Calls

    def command(
        self, *args: str | bytes | int | float, deadline_s: float | None = None, urgent: bool = True
    ) -> asyncio.Future[Any]:
        """Send a command; the future holds its reply, StoreError or StoreUnavailableError."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if not self.available:
            future.set_exception(StoreUnavailableError("no connection to Redis"))
            return future
        self._send(args, future, urgent)
        timer = loop.call_later(deadline_s or self._deadline_s, self._expire, future, True)
        future.add_done_callback(lambda _: timer.cancel())
        return future

    def function(
        self, name: str, prefix: str, *args: str | bytes | int | float, deadline_s: float | None = None
    ) -> asyncio.Future[Any]:
        """Call a function of the library on the pool whose keys start with `prefix`."""
        return self.command("FCALL", function_name(name), 1, prefix, *args, deadline_s=deadline_s)

    def post(self, name: str, prefix: str, *args: str | bytes | int | float) -> None:
        """Call a function without waiting; an outage loses the call, which callers must be able to afford.

        It leaves with the next call, or by itself after a moment: a write of its own costs a system call and
        two wake-ups.
        """
        future = self.command("FCALL", function_name(name), 1, prefix, *args, urgent=False)
        future.add_done_callback(_drop)

    # Connection

    def _send(
        self, args: tuple[str | bytes | int | float, ...], future: asyncio.Future[Any], urgent: bool = True
    ) -> None:
        # The stub describes a tuple of one.
        self._outgoing.append(hiredis.pack_command(args))  # type: ignore[arg-type]
        self._pending.append(future)
        if urgent:
            self._flush.set()
        elif self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(_LINGER_S, self._flush.set)

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
        give_up_s = loop.time() + _SILENCE_S
        try:
            while self._connection is not None and self._misses >= _MISSES_TO_OPEN:
                future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                self._send(("PING",), future)
                try:
                    async with asyncio.timeout(max(_PROBE_S, self._deadline_s)):
                        await future
                except (TimeoutError, StoreError):
                    if loop.time() > give_up_s and self._connection is not None:
                        # Half-open, as after a host was lost: the kernel would take minutes to notice.
                        self._replace.set()
                        return
                    continue
                self._misses = 0
                log.info("store.back")
        finally:
            self._probing = False

    async def _run(self) -> None:
        """Connect, serve until the connection is lost, and again."""
        backoff_s = 0.05
        while True:
            connection: Connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                async with asyncio.timeout(_CONNECT_S):
                    await connection.connect()  # type: ignore[no-untyped-call]
                    await self._load_library(connection)
            except (RedisError, *_LOST) as exc:
                await connection.disconnect(nowait=True)
                log.warning("store.unreachable", extra={"error": str(exc)[:200]})
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
                backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)
                continue
            backoff_s = 0.05
            self._connection, self._misses = connection, 0
            self._connected_once.set()
            log.info("store.connected")
            for callback in self.on_connect:
                callback()
            try:
                await self._serve(connection)
            finally:
                self._connection = None
                self._fail_pending()
                await connection.disconnect(nowait=True)
            log.warning("store.lost")

    async def _load_library(self, connection: Connection) -> None:
        """Put this release's functions where they are missing."""
        await connection.send_command("FUNCTION", "LOAD", library()[1])
        try:
            await connection.read_response(disable_decoding=True)
        except ResponseError as exc:
            if "already exists" not in str(exc):
                raise

    async def _serve(self, connection: Connection) -> None:
        """Write and read until one of the two ends, or the connection is to be replaced."""
        loop = asyncio.get_running_loop()
        self._replace.clear()
        tasks: list[asyncio.Task[Any]] = [
            loop.create_task(self._write(connection), name="store-write"),
            loop.create_task(self._read(connection), name="store-read"),
            loop.create_task(self._replace.wait(), name="store-replace"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Python 3.11's wait_for, inside redis-py, can swallow a cancellation: ask until it is heard.
            while waiting := [task for task in tasks if not task.done()]:
                for task in waiting:
                    task.cancel()
                await asyncio.wait(waiting, timeout=0.01)
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, connection: Connection) -> None:
        while True:
            await self._flush.wait()
            self._flush.clear()
            self._stop_linger()
            batch, self._outgoing = self._outgoing, []
            if batch:
                try:
                    await connection.send_packed_command(b"".join(batch), check_health=False)
                except _LOST:
                    return

    async def _read(self, connection: Connection) -> None:
        while True:
            try:
                reply = await connection.read_response(disable_decoding=True, timeout=math.inf)
            except ResponseError as exc:
                self._answer(None, exc)
                if "Function not found" in str(exc):
                    # FUNCTION FLUSH, or a replica without it took over: connecting again loads it.
                    return
                continue
            except _LOST:
                return
            self._misses = 0
            self._answer(reply, None)

    def _answer(self, reply: Any, error: ResponseError | None) -> None:
        future = self._pending.popleft()
        if future.done():
            return
        if error is not None:
            future.set_exception(StoreError(str(error)))
        else:
            future.set_result(reply)

    def _stop_linger(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    def _fail_pending(self) -> None:
        self._stop_linger()
        self._outgoing.clear()
        while self._pending:
            future = self._pending.popleft()
            if not future.done():
                future.set_exception(StoreUnavailableError("the connection to Redis was lost"))


def _drop(future: asyncio.Future[Any]) -> None:
    """Take note of a failure nobody waits for, so that it is not reported as forgotten."""
    if not future.cancelled():
        future.exception()
