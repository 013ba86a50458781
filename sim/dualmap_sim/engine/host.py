"""Several simulated engines in one process: start, crash, restart, stop."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from dualmap_sim.engine.kv_events import KvPublisher, NullKvPublisher, ZmqKvPublisher
from dualmap_sim.engine.realtime import EngineSpec, SimEngine
from dualmap_sim.engine.server import make_app

_CRASH_STATUS = 70


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """Where an engine is to be found; the KV endpoints are None when its events are off."""

    url: str
    port: int
    model: str
    kv_events: str | None
    kv_replay: str | None


class HostedEngine:
    """One engine with its listener and its tasks; it can die and come back on the same ports."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.is_up = False
        self._changing = asyncio.Lock()
        self._crash: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bind the ports and start the clock, with an empty cache and new books."""
        self.publisher = _publisher(self.spec)
        listener: socket.socket | None = None
        try:
            listener = _listen(self.spec.host, self.spec.port)
            self.engine = SimEngine(self.spec, self.publisher)
            app = make_app(self.engine, self._crash_soon)
            self._runner = web.AppRunner(
                app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0
            )
            await self._runner.setup()
            await web.SockSite(self._runner, listener).start()
        except BaseException:
            self.publisher.close()
            if listener is not None:
                listener.close()
            raise
        port = listener.getsockname()[1]
        self.address = EngineAddress(
            f"http://{self.spec.host}:{port}",
            port,
            self.spec.model,
            self.publisher.endpoint,
            self.publisher.replay_endpoint,
        )
        self._tasks = [asyncio.create_task(self.engine.run()), asyncio.create_task(self.publisher.run())]
        for task in self._tasks:
            task.add_done_callback(_report)
        self.is_up = True

    async def stop(self) -> None:
        """Close the listener, cut every connection, end the tasks; harmless when it is down."""
        async with self._changing:
            if self.is_up:
                self.is_up = False
                await self._cut()

    async def _cut(self) -> None:
        for site in list(self._runner.sites):
            await site.stop()
        for handler in self._runner.server.connections if self._runner.server else ():
            if isinstance(handler, RequestHandler) and handler.transport is not None:
                handler.transport.abort()
        await self._runner.cleanup()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.publisher.close()

    async def restart(self) -> None:
        """Come back on the same ports, as a process that was started anew."""
        await self.stop()
        kv_port, replay_port = _port_of(self.address.kv_events), _port_of(self.address.kv_replay)
        self.spec = replace(self.spec, port=self.address.port, kv_port=kv_port, kv_replay_port=replay_port)
        await self.start()

    def _crash_soon(self) -> None:
        if self.spec.exit_on_crash:
            os._exit(_CRASH_STATUS)
        self._crash = asyncio.create_task(self.stop())


class EngineHost:
    """The engines of one process; leaving the context stops them."""

    def __init__(self, engines: Sequence[HostedEngine]) -> None:
        self.engines = tuple(engines)

    @property
    def addresses(self) -> tuple[EngineAddress, ...]:
        """Where the engines are, in the order of their specs."""
        return tuple(engine.address for engine in self.engines)

    def model_of(self, index: int) -> SimEngine:
        """The engine behind an address, for tests that look inside."""
        return self.engines[index].engine

    async def crash(self, index: int) -> None:
        """Let one engine die: listener closed, streams cut, no goodbye."""
        await self.engines[index].stop()

    async def restart(self, index: int) -> None:
        """Start a dead (or living) engine anew on its ports."""
        await self.engines[index].restart()

    async def stop(self) -> None:
        """Stop all engines."""
        for engine in self.engines:
            await engine.stop()

    async def __aenter__(self) -> "EngineHost":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def start_engines(specs: Sequence[EngineSpec]) -> EngineHost:
    """Start one engine per spec; all or none."""
    engines: list[HostedEngine] = []
    async with contextlib.AsyncExitStack() as stack:
        for spec in specs:
            engine = HostedEngine(spec)
            await engine.start()
            stack.push_async_callback(engine.stop)
            engines.append(engine)
        stack.pop_all()
    return EngineHost(engines)


def _publisher(spec: EngineSpec) -> KvPublisher:
    if not spec.kv_events:
        return NullKvPublisher()
    return ZmqKvPublisher(
        spec.profile.block_size,
        host=spec.host,
        port=spec.kv_port,
        replay_port=spec.kv_replay_port,
        buffer_steps=spec.kv_buffer_steps,
        dialect=spec.kv_dialect,
        loras=spec.loras,
    )


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _port_of(endpoint: str | None) -> int:
    return int(endpoint.rsplit(":", 1)[1]) if endpoint else 0


def _report(task: asyncio.Task[None]) -> None:
    # A clock that died would look like a hang: let the loop's handler tell.
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler({"message": "a simulated engine failed", "exception": error})
