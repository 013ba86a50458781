"""What must be zero, or as it was, once traffic has stopped and faults are healed."""

import asyncio
from dataclasses import dataclass, field

import psutil

from dualmap_cli.leftovers import describe, find_leftovers
from dualmap_wire.redis_keys import PoolKeys
from dualmap_wire.telemetry import decode_registration

from ..integration.load_checks import metric
from .world import World

SETTLES_S = 20.0
USUAL_FDS = 48
"""What any part has at rest: one that has just started may not have opened all of its own yet."""
FD_SLACK = 12
"""Descriptors that a process may keep beyond those it had: connections that libraries hold open for a while."""


@dataclass
class Footprint:
    """Descriptors and resident bytes by part."""

    fds: dict[str, int] = field(default_factory=dict)
    rss: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, world: World) -> "Footprint":
        """As it is now."""
        taken = cls()
        pids = {name: child.pid for name, child in world.children.items()}
        if world.store is not None:
            pids["store"] = world.store.pid
        for name, pid in pids.items():
            process = psutil.Process(pid)
            taken.fds[name] = process.num_fds()
            taken.rss[name] = process.memory_info().rss
        return taken


async def remains(world: World, before: Footprint) -> dict[str, object]:
    """What is left by name; empty for a world at rest."""
    left: dict[str, object] = {}
    found = await find_leftovers(world.redis_url, world.options.pool, world.router_urls)
    if not found.clean:
        left["leftovers"] = found
    for url, name in zip(world.router_urls, world.routers, strict=True):
        # One is the connection that asks.
        if (connections := await metric(url, "dualmap_connections")) > 1:
            left[f"{name} connections"] = connections
    for worker in world.workers:
        engine = (await world.engine_stats(worker))["leftovers"]
        if any(engine.values()):
            left[world.engine_of(worker)] = engine
    left |= await _registry(world)
    for name, fds in Footprint.of(world).fds.items():
        if fds > max(before.fds[name], USUAL_FDS) + FD_SLACK:
            left[f"{name} fds"] = (before.fds[name], fds)
    return left


async def _registry(world: World) -> dict[str, object]:
    """What the store says of who is there, where that is not who is there; and sessions that nobody needs."""
    keys, left = PoolKeys(world.options.pool), {}
    async with world.redis() as redis:
        instances = await redis.hgetall(keys.instances)
        routers = {name.decode() for name in await redis.smembers(keys.routers)}
        leases = [key.decode() async for key in redis.scan_iter(keys.key("lease", "*"))]
    if {name.decode() for name in instances} != set(world.workers):
        left["instances"] = sorted(instances)
    if not routers <= set(world.routers):
        left["routers"] = sorted(routers)
    if len(leases) != len(world.workers) + len(world.routers):
        left["leases"] = sorted(leases)
    for name, packed in instances.items():
        sessions = (await describe(decode_registration(packed).grpc_address)).sessions
        if sessions != len(world.routers):
            left[f"{name.decode()} sessions"] = sessions
    return left


async def settle(world: World, before: Footprint) -> dict[str, object]:
    """What is left once it had time to go."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLES_S
    while True:
        left = await remains(world, before)
        if not left or loop.time() > deadline:
            return left
        await asyncio.sleep(0.25)
