"""What is measured: the router in its whole system, and two plain arrangements in front of the same engines."""

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from bench.peers.arena import engines_of
from bench.peers.peer_process import PeerRouter, places
from bench.peers.peers import PEERS
from dualmap_cli.stack import Stack, StackOptions
from dualmap_service.child import start_child

ROUTER, PROXY, PLAIN, DIRECT = "router", "proxy", "plain", "direct"
LABELS = {
    ROUTER: "DualMap router",
    PROXY: "(a) aiohttp reverse proxy to one engine, no decision",
    PLAIN: "(b) plain: aiohttp.web, pydantic, redis-py pool (3 commands), one gRPC stream a request",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A process that takes requests."""

    name: str
    url: str
    pid: int


@dataclass(frozen=True, slots=True)
class Bench:
    """A running system with the plain arrangements beside it."""

    stack: Stack
    subjects: dict[str, Subject]


@asynccontextmanager
async def running(
    time_scale: float, engine_flags: Sequence[str], workers: int = 2, peers: Sequence[str] = ()
) -> AsyncIterator[Bench]:
    """One router, `workers` instances with simulated engines, a rebalancer, and what is compared with.

    That is the plain arrangements, or in their place other routers, by name, and an engine without any router.
    """
    options = StackOptions(routers=1, workers=workers, time_scale=time_scale, engine_flags=engine_flags)
    async with Stack(options) as stack, AsyncExitStack() as exits:
        if peers:
            yield Bench(stack, await _peers(stack, exits, peers))
            return
        try:
            yield Bench(stack, await _subjects(stack))
        finally:
            for name in (PROXY, PLAIN):
                if name in stack.children:
                    await stack.children[name].stop()


async def _peers(stack: Stack, exits: AsyncExitStack, names: Sequence[str]) -> dict[str, Subject]:
    engines = engines_of(stack)
    subjects = {
        ROUTER: Subject(ROUTER, stack.router_urls[0], stack.children["router-1"].pid),
        DIRECT: Subject(DIRECT, engines[0].url, stack.children["engine-1"].pid),
    }
    for name, place in zip(names, places(stack.logs / "peers", len(names), 1.0), strict=True):
        router = PeerRouter(PEERS[name], engines, replace(place, mesh_peers=()))
        exits.push_async_callback(router.stop)
        await router.start()
        subjects[name] = Subject(name, router.url, router.pid)
    return subjects


async def _subjects(stack: Stack) -> dict[str, Subject]:
    engines = stack.engine_urls
    proxy = await _start(stack, PROXY, "url", "proxy", "--engine", engines[0])
    # The stack stops whatever is named worker-* with its own workers.
    addresses = [
        await _start(stack, f"worker-plain-{number}", "address", "plain_worker", "--engine", engine)
        for number, engine in enumerate(engines, 1)
    ]
    named = [f"--worker={address}" for address in addresses]
    plain = await _start(stack, PLAIN, "url", "plain", "--redis", stack.redis_url, *named)
    return {
        ROUTER: Subject(ROUTER, stack.router_urls[0], stack.children["router-1"].pid),
        PROXY: Subject(PROXY, proxy, stack.children[PROXY].pid),
        PLAIN: Subject(PLAIN, plain, stack.children[PLAIN].pid),
    }


async def _start(stack: Stack, name: str, key: str, module: str, *argv: str) -> str:
    """Start a module of this bench; returns what its first line says under `key`."""
    command = [sys.executable, "-m", f"bench.router.{module}", *argv]
    stack.children[name] = start_child(command, name, stack.logs / f"{name}.log")
    return str((await stack.line(name, lambda line: key in line))[key])
