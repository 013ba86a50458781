"""The whole system as processes, with a link at every joint where a network can fail."""

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from dualmap_cli.stack import StackOptions
from dualmap_service.ports import free_ports
from dualmap_wire.redis_keys import PoolKeys

from ..clocks import ClockedStack
from ..integration.load_checks import fetch, metric, rebalancer_url, until
from ..link import Link
from ..relay import Relay

WHOLE_S = 40.0
"""How long everything may take to be there again: a dozen interpreters may start on two cores."""

OPTIONS = StackOptions(
    routers=2,
    workers=4,
    rebalancers=2,
    slo_s=5.0,
    pool="chaos",
    # A hung engine is found out within a schedule.
    worker_flags={"first_byte_timeout_s": 8.0},
    router_flags={"client_stall_s": 10.0},
)
"""Four engines, each a process of its own beside its worker; two routers, a leader and a standby."""


class World(ClockedStack):
    """A `Stack` whose parts reach each other through links.

    A worker listens on 127.0.0.1 and advertises 127.0.1.N: there the same ports lead through its `session` link and
    its `reports` relay. Every process has its own `store` link, every worker an `engine` link and a `kv` relay.
    """

    def __init__(self, options: StackOptions = OPTIONS) -> None:
        super().__init__(options)
        self.links: dict[str, Link] = {}
        self.relays: dict[str, Relay] = {}
        self._addresses: dict[str, str] = {}
        self.broken = False
        """Whether a test has failed here: then what it left behind is nobody else's."""

    @property
    def workers(self) -> list[str]:
        """Their names, which are also the instances'."""
        return [f"worker-{number + 1}" for number in range(self.options.workers)]

    @property
    def routers(self) -> list[str]:
        """Their names."""
        return [f"router-{number + 1}" for number in range(self.options.routers)]

    @property
    def rebalancers(self) -> list[str]:
        """Their names."""
        return [f"rebalancer-{number + 1}" for number in range(self.options.rebalancers)]

    def engine_of(self, worker: str) -> str:
        """The engine's process beside a worker."""
        return worker.replace("worker", "engine")

    def engine_url(self, worker: str) -> str:
        """Where a test reaches that engine, whatever its link does."""
        return self.engine_urls[self.workers.index(worker)]

    def router_url(self, router: str) -> str:
        """Where clients reach a router."""
        return self.router_urls[self.routers.index(router)]

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each kind of part."""
        options = self.options
        return {"worker": options.workers, "engine": options.workers, "router": options.routers}

    # Building

    async def start_engines(self, count: int, *flags: str) -> list[str]:
        """Start the engines, and open the links before anything connects."""
        urls: list[str] = []
        for _ in range(count):
            ports = ("--port", str(free_ports()), "--kv-port", str(free_ports(2)))
            urls += await super().start_engines(1, "--exit-on-crash", *ports, *flags)
        for name in (*self.workers, *self.routers, *self.rebalancers):
            await self._link(f"store:{name}", self.redis_url.removesuffix("/0").replace("redis://", "tcp://"))
        for number, worker in enumerate(self.workers):
            await self._link(f"engine:{worker}", urls[number].replace("http://", "tcp://"))
            port = free_ports()
            await self._link(f"session:{worker}", f"tcp://127.0.0.1:{port}", f"127.0.1.{number + 1}", port)
            self._relay(f"reports:{worker}", f"tcp://127.0.0.1:{free_ports()}", number + 1)
            self._relay(f"kv:{worker}", self.kv_urls[urls[number]][0], number + 1)
        return urls

    async def _link(self, name: str, target: str, host: str = "127.0.0.1", port: int = 0) -> None:
        # The others have one peer each.
        link = Link(target, self._owner) if name.startswith("session:") else Link(target)
        self.links[name] = link
        self._addresses[name] = await link.open(host, port)

    def _relay(self, name: str, source: str, number: int) -> None:
        address = source.replace("127.0.0.1", f"127.0.1.{number}")
        self.relays[name] = Relay(source, address, seed=number)
        self._addresses[name] = address

    def _owner(self, port: int, to_port: int) -> str:
        """The router or rebalancer whose connection leads from one port to another."""
        inode = _socket_inode(port, to_port)
        for name in (*self.routers, *self.rebalancers):
            if inode is not None and name in self.children and _has_socket(self.children[name].pid, inode):
                return name
        return ""

    def _store_url(self, name: str) -> str:
        return self._addresses[f"store:{name}"].replace("tcp://", "redis://") + "/0"

    def start_worker(self, engine_url: str, **flags: object) -> str:
        """Start a worker whose ways lead through links."""
        worker = self.workers[self._num_workers]
        advertised, grpc_port = self._addresses[f"session:{worker}"].removeprefix("tcp://").split(":")
        ways = {
            "redis_url": self._store_url(worker),
            "kv_events_url": self._addresses[f"kv:{worker}"],
            "grpc_port": grpc_port,
            "telemetry_port": self._addresses[f"reports:{worker}"].rpartition(":")[2],
            "advertise_host": advertised,
        }
        engine_url = self._addresses[f"engine:{worker}"].replace("tcp://", "http://")
        return super().start_worker(engine_url, **{**ways, **flags})

    def start_router(self, **flags: object) -> str:
        """Start a router on a port that it keeps."""
        name = self.routers[sum(child.startswith("router") for child in self.children)]
        return super().start_router(**{"redis_url": self._store_url(name), "port": free_ports(), **flags})

    def start_rebalancer(self, **flags: object) -> str:
        """Start a rebalancer on a port that it keeps."""
        name = self.rebalancers[sum(child.startswith("rebalancer") for child in self.children)]
        ways = {"redis_url": self._store_url(name), "metrics_port": free_ports()}
        return super().start_rebalancer(**{**ways, **flags})

    async def stop(self) -> None:
        """Stop everything, the links last."""
        for child in self.children.values():
            if child.running:
                child.process.send_signal(signal.SIGCONT)
        await super().stop()
        for link in self.links.values():
            await link.close()
        for relay in self.relays.values():
            await relay.close()

    # Asking

    @contextlib.asynccontextmanager
    async def redis(self) -> AsyncIterator[Any]:
        """The store, past all links."""
        client = Redis.from_url(self.redis_url)
        try:
            yield client
        finally:
            await client.aclose()

    async def leader(self) -> str | None:
        """The rebalancer that holds the lease; None also while the store cannot say."""
        name: bytes | None = None
        with contextlib.suppress(RedisError, TimeoutError):
            async with self.redis() as redis, asyncio.timeout(1.0):
                name = await redis.get(PoolKeys(self.options.pool).key("leader"))
        return name.decode() if name else None

    async def engine_stats(self, worker: str, requests: bool = False) -> dict[str, Any]:
        """An engine's books."""
        page = await fetch(f"{self.engine_url(worker)}/admin/stats?requests={int(requests)}")
        stats: dict[str, Any] = msgspec.json.decode(page)
        return stats

    def logged(self, what: str) -> list[str]:
        """The lines of the parts that run now in whose logs this stands, each behind its part's name."""
        logs = [(name, child.log) for name, child in self.children.items() if child.log is not None]
        return [
            f"{name}: {line}"
            for name, log in logs
            for line in log.read_text(errors="replace").splitlines()
            if what in line
        ]

    async def whole(self, timeout_s: float = WHOLE_S) -> None:
        """Wait until every part is there, reaches all others, and the store decides."""
        for name, child in self.children.items():
            assert child.running, f"{name} has ended:\n{child.log_tail()}"
        await self.wait_ready(len(self.workers), timeout_s)
        await until(self._shares, timeout_s, "decisions with the store, and one leader that hears all")

    async def _shares(self) -> bool:
        try:
            for url in self.router_urls:
                if not await metric(url, "dualmap_store_available"):
                    return False
            leads = [
                await metric(await rebalancer_url(self, name), "dualmap_rebalancer_leader")
                for name in self.rebalancers
            ]
        except (aiohttp.ClientError, TimeoutError):
            return False
        return sum(leads) == 1


def _socket_inode(port: int, to_port: int) -> bytes | None:
    """The kernel's number of the TCP socket between these ports; psutil reads ten times as much for it.

    A local port alone may be several sockets', and of connections that have ended.
    """
    line = rb"\d: [0-9A-F]{8}:%04X [0-9A-F]{8}:%04X (?:\S+ +){6}(\d+)" % (port, to_port)
    found = re.search(line, Path("/proc/net/tcp").read_bytes())
    return found[1] if found else None


def _has_socket(pid: int, inode: bytes) -> bool:
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(descriptor.readlink()) == f"socket:[{inode.decode()}]":
                    return True
    return False


def with_flags(options: StackOptions, **flags: Any) -> StackOptions:
    """The options with more flags for routers, workers or rebalancers: `router_flags={...}`."""
    merged = {name: {**getattr(options, name), **more} for name, more in flags.items()}
    return replace(options, **merged)
