"""Eight simulated engines, and one router, or several of a kind, in front of them."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from bench.peers.peer_process import ArenaError, start_peer
from bench.peers.peers import PEERS, Engine
from dualmap_cli.leftovers import settle
from dualmap_cli.stack import Stack, StackOptions
from dualmap_service.child import Child

NUM_ENGINES = 8
MODEL = "sim-model"
DUALMAP, ORACLE = "dualmap", "oracle"


@dataclass(frozen=True, slots=True)
class Setup:
    """The engines' side of a run."""

    time_scale: float = 2.0
    slo_s: float = 5.0
    engine_flags: tuple[str, ...] = ()


@dataclass(slots=True)
class Arena:
    """A running subject: where to send, and what to watch."""

    urls: list[str]
    engines: list[Engine]
    pids: dict[str, list[int]]
    """Process ids by what they are: router, engines, rest."""
    stack: Stack | None = None

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
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="dualmap-peers-")))
        engines, child = await _start_engines(setup, folder)
        exits.push_async_callback(child.stop)
        pids = {"engines": [child.pid], "router": [], "rest": []}
        if subject == ORACLE:
            yield Arena([engine.url for engine in engines], engines, pids)
        elif subject == DUALMAP:
            stack = await exits.enter_async_context(Stack(_stack_options(setup, engines, routers)))
            for name, part in stack.children.items():
                pids["router" if name.startswith("router") else "rest"].append(part.pid)
            assert stack.store is not None
            pids["rest"].append(stack.store.pid)
            yield Arena(stack.router_urls, engines, pids, stack)
        else:
            urls = []
            for number in range(routers):
                url, part = await start_peer(PEERS[subject], engines, folder / f"router-{number + 1}")
                exits.push_async_callback(part.stop)
                urls.append(url)
                pids["router"].append(part.pid)
            yield Arena(urls, engines, pids)


def _stack_options(setup: Setup, engines: Sequence[Engine], routers: int) -> StackOptions:
    return StackOptions(
        routers=routers,
        time_scale=setup.time_scale,
        slo_s=setup.slo_s,
        pool="peers",
        engine_urls=[engine.url for engine in engines],
        kv_urls={engine.url: (engine.kv_events, engine.kv_replay) for engine in engines},
    )


async def _start_engines(setup: Setup, folder: Path) -> tuple[list[Engine], Child]:
    # A stack without anything but its engines: they start as they do everywhere else.
    stack = Stack(StackOptions(time_scale=setup.time_scale, engine_flags=setup.engine_flags))
    stack.logs = folder
    await stack.start_engines(NUM_ENGINES, "--model", MODEL)
    engines = [Engine(url, *stack.kv_urls[url]) for url in stack.engine_urls]
    return engines, stack.children["engine-1"]


async def _get(http: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with http.get(url, raise_for_status=True) as response:
        found: dict[str, Any] = msgspec.json.decode(await response.read())
        return found
