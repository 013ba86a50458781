"""Eight simulated engines, and one router, or several of a kind, in front of them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import msgspec

from bench.peers.launch import Engine
from bench.peers.peer_process import ArenaError, PeerRouter, places
from bench.peers.settings import peer_of
from dualmap_cli.leftovers import settle
from dualmap_cli.stack import Stack, StackOptions
from dualmap_service.ports import free_ports

NUM_ENGINES = 8
MODEL = "sim-model"
DUALMAP, ORACLE = "dualmap", "oracle"
_START_S = 180.0


@dataclass(frozen=True, slots=True)
class Setup:
    """The engines' side of a run."""

    time_scale: float = 2.0
    slo_s: float = 5.0
    engine_flags: tuple[str, ...] = ()


class Router(Protocol):
    """A router that runs; it can be stopped and started again where it was."""

    @property
    def url(self) -> str:
        """Where it listens."""

    @property
    def pid(self) -> int:
        """Its process."""

    async def start(self) -> None:
        """Start it and wait until it is ready."""

    async def stop(self) -> None:
        """Ask it to end and wait for that."""


class _OwnRouter:
    """One of DualMap's."""

    def __init__(self, stack: Stack, name: str, url: str) -> None:
        self._stack, self._name, self.url = stack, name, url

    @property
    def pid(self) -> int:
        return self._stack.children[self._name].pid

    async def start(self) -> None:
        self._stack.start_again(self._name)
        await self._stack.event(self._name, "router.ready")

    async def stop(self) -> None:
        await self._stack.children[self._name].stop(grace_s=40.0)


@dataclass(slots=True)
class Arena:
    """A running subject: where to send, and what to watch."""

    engines: list[Engine]
    others: list[int]
    """Process ids of all but the routers."""
    routers: Sequence[Router]
    stack: Stack | None = None

    @property
    def urls(self) -> list[str]:
        """Where to send."""
        return [router.url for router in self.routers]

    async def stats(self) -> list[dict[str, Any]]:
        """What every engine has counted."""
        async with aiohttp.ClientSession() as http:
            return [await _get(http, f"{engine.url}/admin/stats?requests=0") for engine in self.engines]

    async def at_rest(self, timeout_s: float = 15.0) -> None:
        """Wait until nothing is open anywhere; ArenaError if something stays."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while any(any(stats["leftovers"].values()) for stats in await self.stats()):
            if loop.time() > deadline:
                raise ArenaError("engines still hold requests")
            await asyncio.sleep(0.2)
        if self.stack is not None:
            stack = self.stack
            left = await settle(stack.redis_url, stack.options.pool, stack.router_urls)
            if not left.clean:
                raise ArenaError(f"the system holds what it should not: {left}")


@asynccontextmanager
async def arena(subject: str, setup: Setup, routers: int = 1) -> AsyncIterator[Arena]:
    """New engines with a subject in front; everything ends with the context."""
    async with AsyncExitStack() as exits:
        if subject == DUALMAP:
            stack = await exits.enter_async_context(Stack(_stack_options(setup, routers)))
            assert stack.store is not None
            others = [part.pid for name, part in stack.children.items() if not name.startswith("router")]
            own = [
                _OwnRouter(stack, f"router-{number}", url) for number, url in enumerate(stack.router_urls, 1)
            ]
            yield Arena(engines_of(stack), [stack.store.pid, *others], own, stack)
        else:
            stack = Stack(_stack_options(setup, routers))
            exits.push_async_callback(stack.stop)
            await stack.start_engines(NUM_ENGINES)
            others = [engine.pid for engine in stack.children.values()]
            peers = [
                PeerRouter(peer_of(subject), engines_of(stack), place)
                for place in places(stack.logs, routers, setup.time_scale)
            ]
            for router in peers:
                exits.push_async_callback(router.stop)
                await router.start()
            yield Arena(engines_of(stack), others, peers)


def engines_of(stack: Stack) -> list[Engine]:
    """The simulated engines of a stack, as who follows them knows them."""
    return [Engine(url, *stack.kv_urls[url]) for url in stack.engine_urls]


def _stack_options(setup: Setup, routers: int) -> StackOptions:
    return StackOptions(
        routers=routers,
        workers=NUM_ENGINES,
        # Fixed, so that a router that is started again is where it was.
        first_port=free_ports(routers),
        time_scale=setup.time_scale,
        slo_s=setup.slo_s,
        pool="peers",
        engine_start_s=_START_S,
        engine_flags=setup.engine_flags,
    )


async def _get(http: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with http.get(url, raise_for_status=True) as response:
        found: dict[str, Any] = msgspec.json.decode(await response.read())
        return found
