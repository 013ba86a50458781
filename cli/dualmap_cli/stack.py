"""A whole DualMap on this machine: store, simulated engines, workers, routers, rebalancers, as child processes.

`dualmap demo`, `dualmap up`, the benches and the tests all run this one. Every port is free when picked,
logs go to a temporary folder, and no child outlives its parent.
"""

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from dualmap_cli.settings_options import as_arguments
from dualmap_service.access import AccessSettings
from dualmap_service.child import Child, start_child
from dualmap_sim.embedded_store import EmbeddedStore

Flags = Mapping[str, object]
"""Flags of a service by field name."""


class StackError(RuntimeError):
    """A part did not start; the message ends with what it printed."""


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """What to start. Times are model seconds: everything divides them by `time_scale`."""

    routers: int = 2
    workers: int = 4
    rebalancers: int = 1
    time_scale: float = 1.0
    slo_s: float = 5.0
    pool: str = "demo"
    redis_url: str | None = None
    """A store that runs already; an embedded one when None."""
    first_port: int = 0
    """The first router's HTTP port, the next ones follow; 0 for free ones."""
    engine_urls: Sequence[str] = ()
    """Engines that run already, one worker each; `workers` simulated ones when empty."""
    kv_urls: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By the URL of an engine that runs already: where it publishes and where it replays its KV events."""
    engine_flags: Sequence[str] = ()
    engine_start_s: float = 60.0
    """How long an engine may take to be ready."""
    shared_flags: Flags = field(default_factory=dict)
    """Of every service: certificates and the like."""
    router_flags: Flags = field(default_factory=dict)
    worker_flags: Flags = field(default_factory=dict)
    rebalancer_flags: Flags = field(default_factory=dict)
    trace_endpoint: str = ""
    """An OTLP/gRPC collector that gets the spans of every request; none when empty."""
    route_deadline_ms: float = 100.0
    """Wider than in production: here a dozen processes share the cores of one machine."""


class Stack:
    """The running system; `async with` starts and stops it."""

    def __init__(self, options: StackOptions, said: Callable[[str], None] = lambda _: None) -> None:
        self.options = options
        self._said = said
        self._folder = tempfile.TemporaryDirectory(prefix="dualmap-stack-")
        self.logs = Path(self._folder.name)
        self.store: EmbeddedStore | None = None
        self.children: dict[str, Child] = {}
        self._commands: dict[str, Sequence[str]] = {}
        self.router_urls: list[str] = []
        self.engine_urls: list[str] = []
        self.kv_urls = dict(options.kv_urls)
        self._num_workers = 0

    @property
    def redis_url(self) -> str:
        """Where the store is."""
        if self.options.redis_url is not None:
            return self.options.redis_url
        assert self.store is not None
        return self.store.url

    @property
    def access(self) -> AccessSettings:
        """What it takes to reach the pool from outside."""
        names = {info.name for info in msgspec.structs.fields(AccessSettings)}
        shared: dict[str, Any] = {k: v for k, v in self.options.shared_flags.items() if k in names}
        return AccessSettings(**{"redis_url": self.redis_url, "pool": self.options.pool, **shared})

    async def __aenter__(self) -> "Stack":
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _start(self) -> None:
        options = self.options
        if options.redis_url is None:
            self.store = EmbeddedStore()
            await self.store.start()
            self._said(f"store      {self.store.url} (embedded Valkey)")
        if options.engine_urls:
            self.engine_urls += options.engine_urls
        else:
            await self.start_engines(options.workers)
        workers = [self.start_worker(url) for url in self.engine_urls]
        rebalancers = [self.start_rebalancer() for _ in range(options.rebalancers)]
        routers = [self.start_router() for _ in range(options.routers)]
        for name in workers:
            await self.event(name, "worker.ready", options.engine_start_s)
        self._said(f"workers    {', '.join(workers)}")
        for name in rebalancers:
            await self.event(name, "rebalancer.ready")
        self._said(f"rebalancer {', '.join(rebalancers) or 'none'}")
        for name in routers:
            ready = await self.event(name, "router.ready")
            self.router_urls.append(str(ready["url"]))
        await self.wait_ready(len(workers))
        self._said(f"routers    {', '.join(self.router_urls)}")

    async def stop(self) -> None:
        """Stop everything in an order that loses nothing: routers first, the store last."""
        for prefix in ("router", "rebalancer", "worker", "engine"):
            group = [child for name, child in self.children.items() if name.startswith(prefix)]
            await asyncio.gather(*(child.stop(grace_s=10.0) for child in group))
        if self.store is not None:
            await self.store.stop()
        self._folder.cleanup()

    # Parts

    def _child(self, name: str, *argv: str) -> str:
        log = self.logs / f"{name}.log"
        self._commands[name] = argv
        command = [sys.executable, "-m", "dualmap_cli", *argv]
        self.children[name] = start_child(
            command, name, log, self.environment(name), inherited=_is_no_setting
        )
        return name

    def environment(self, name: str) -> dict[str, str]:
        """What a part is started with besides this process's own variables."""
        return {"PYTHONUNBUFFERED": "1"}

    def start_again(self, name: str) -> str:
        """Start a part that has ended as it was started; its log begins anew, and the earlier ones are kept."""
        earlier = sum(1 for _ in self.logs.glob(f"{name}.*.log"))
        (self.logs / f"{name}.log").replace(self.logs / f"{name}.{earlier + 1}.log")
        return self._child(name, *self._commands[name])

    async def start_engines(self, count: int, *flags: str) -> list[str]:
        """Start one process with `count` simulated engines; returns and remembers their URLs."""
        options = self.options
        name = f"engine-{sum(1 for child in self.children if child.startswith('engine')) + 1}"
        self._child(
            name, "sim-engine", "--engines", str(count), "--port", "0",
            "--time-scale", str(options.time_scale), *options.engine_flags, *flags,
        )  # fmt: skip
        ready = await self.line(name, lambda line: "engines" in line, options.engine_start_s)
        engines = ready["engines"]
        assert isinstance(engines, list)
        urls = [str(engine["url"]) for engine in engines]
        for engine in engines:
            if engine["kv_events"]:
                self.kv_urls[engine["url"]] = (engine["kv_events"], engine["kv_replay"])
        self.engine_urls += urls
        self._said(f"engines    {', '.join(urls)} (simulated)")
        return urls

    def start_worker(self, engine_url: str, **flags: object) -> str:
        """Start a worker beside an engine; returns its name, which is also its instance's."""
        self._num_workers += 1
        name = f"worker-{self._num_workers}"
        kv_events_url, kv_replay_url = self.kv_urls.get(engine_url, ("", ""))
        merged = {
            "instance": name,
            "engine_url": engine_url,
            "kv_events_url": kv_events_url,
            "kv_replay_url": kv_replay_url,
            "age_bound_s": 60.0 / self.options.time_scale,
            "preempt_min_s": 0.25 / self.options.time_scale,
            "preempt_min_run_s": 0.25 / self.options.time_scale,
            **self.options.worker_flags,
            **flags,
        }
        return self._child(name, "worker", *self._service_flags(merged))

    def start_router(self, **flags: object) -> str:
        """Start a router."""
        number = sum(1 for child in self.children if child.startswith("router")) + 1
        options = self.options
        merged = {
            "router_id": f"router-{number}",
            "port": options.first_port + number - 1 if options.first_port else 0,
            "slo_ttft_s": options.slo_s / options.time_scale,
            "route_deadline_ms": options.route_deadline_ms,
            **options.router_flags,
            **flags,
        }
        return self._child(f"router-{number}", "router", *self._service_flags(merged))

    def start_rebalancer(self, **flags: object) -> str:
        """Start a rebalancer."""
        number = sum(1 for child in self.children if child.startswith("rebalancer")) + 1
        scale = self.options.time_scale
        merged = {
            "rebalancer_id": f"rebalancer-{number}",
            "metrics_port": 0,
            "slo_s": self.options.slo_s / scale,
            "max_wait_s": 3.0 / scale,
            "margin_s": 0.25 / scale,
            "cool_down_s": 1.0 / scale,
            "age_bound_s": 60.0 / scale,
            **self.options.rebalancer_flags,
            **flags,
        }
        return self._child(f"rebalancer-{number}", "rebalancer", *self._service_flags(merged))

    def _service_flags(self, flags: Mapping[str, object]) -> list[str]:
        options = self.options
        common: dict[str, object] = {
            "redis_url": self.redis_url,
            "pool": options.pool,
            **options.shared_flags,
        }
        if options.trace_endpoint:
            common |= {"trace_endpoint": options.trace_endpoint, "trace_share": 1.0}
        return as_arguments({**common, **flags})

    # Waiting

    async def event(self, name: str, event: str, timeout_s: float = 60.0) -> dict[str, object]:
        """The first log line of a part with this event."""
        return await self.line(name, lambda line: line.get("event") == event, timeout_s)

    async def line(
        self, name: str, wanted: Callable[[dict[str, object]], bool], timeout_s: float = 60.0
    ) -> dict[str, object]:
        """The first JSON line of a part's output that is wanted; StackError when it ends or takes too long."""
        child = self.children[name]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            alive = child.running
            for text in (self.logs / f"{name}.log").read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    line = json.loads(text)
                    if isinstance(line, dict) and wanted(line):
                        return line
            if not alive or loop.time() > deadline:
                what = "ended" if not alive else "was not ready in time"
                raise StackError(f"{name} {what}:\n{child.log_tail()}")
            await asyncio.sleep(0.05)

    async def wait_ready(self, instances: int, timeout_s: float = 30.0) -> None:
        """Until every router reaches that many instances."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        async with aiohttp.ClientSession() as http:
            for url in self.router_urls:
                while True:
                    state = await _get(http, f"{url}/readyz")
                    if state is not None and len(state.get("instances", ())) >= instances:
                        break
                    if loop.time() > deadline:
                        tails = "".join(child.log_tail(600) for child in self.children.values())
                        raise StackError(f"{url} does not reach {instances} instances: {state}\n{tails}")
                    await asyncio.sleep(0.05)


def _is_no_setting(variable: str) -> bool:
    """Every setting is a flag here: one of the person's shell could break a part, or hide that it is ready.

    The engines' key stays, since a flag would show it to everybody on the machine.
    """
    return not variable.startswith("DUALMAP_") or variable == "DUALMAP_WORKER_ENGINE_API_KEY"


async def _get(http: aiohttp.ClientSession, url: str) -> dict[str, list[str]] | None:
    try:
        async with http.get(url) as response:
            found: dict[str, list[str]] = await response.json()
            return found
    except (aiohttp.ClientError, ValueError):
        return None
