"""The store dies, sleeps, forgets, drags, fills up or loses its functions."""

from ..world import World
from . import base
from .base import Fault


class StoreFault(Fault):
    """Every one of them is invisible: routers decide alone until it is over."""

    promise = base.STORE


class StoreDies(StoreFault):
    """kill -9; it comes back empty, as after a failover without a replica."""

    lasts_s = (1.0, 10.0)

    async def apply(self, world: World) -> None:
        assert world.store is not None
        world.store.kill()

    async def heal(self, world: World) -> None:
        assert world.store is not None
        await world.store.restart()


class StoreFreezes(StoreFault):
    """SIGSTOP: it answers late, all at once, with every lease lapsed."""

    lasts_s = (1.0, 8.0)

    async def apply(self, world: World) -> None:
        assert world.store is not None
        world.store.pause()

    async def heal(self, world: World) -> None:
        assert world.store is not None
        world.store.resume()


class StoreForgets(StoreFault):
    """FLUSHALL."""

    lasts_s = (0.0, 0.0)

    async def apply(self, world: World) -> None:
        async with world.redis() as redis:
            await redis.flushall()


class StoreLosesFunctions(StoreFault):
    """FUNCTION FLUSH."""

    lasts_s = (0.0, 0.0)

    async def apply(self, world: World) -> None:
        async with world.redis() as redis:
            await redis.function_flush()


class StoreDrops(StoreFault):
    """CLIENT KILL: every connection is closed."""

    lasts_s = (0.0, 0.0)

    async def apply(self, world: World) -> None:
        async with world.redis() as redis:
            await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


class StoreIsFull(StoreFault):
    """It takes no more writes: maxmemory is reached and nothing may be evicted."""

    async def apply(self, world: World) -> None:
        async with world.redis() as redis:
            await redis.config_set("maxmemory-policy", "noeviction")
            await redis.config_set("maxmemory", 1)

    async def heal(self, world: World) -> None:
        async with world.redis() as redis:
            await redis.config_set("maxmemory", 0)


class StoreDrags(StoreFault):
    """50 ms more, each way, to every process."""

    lasts_s = (2.0, 6.0)

    async def apply(self, world: World) -> None:
        for name, link in world.links.items():
            if name.startswith("store:"):
                link.delay_s = 0.05

    async def heal(self, world: World) -> None:
        for name, link in world.links.items():
            if name.startswith("store:"):
                link.delay_s = 0.0
