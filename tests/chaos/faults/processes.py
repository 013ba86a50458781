"""Processes that die, freeze, or are told to stop, and start again."""

import contextlib
import signal

from ..world import WHOLE_S, World
from . import base
from .base import Fault

_STOPS_S = 40.0
"""More than a drain lasts at most."""


async def start_again(world: World, name: str) -> None:
    """Start a part that has ended, and wait until it says that it is ready."""
    world.start_again(name)
    if name.startswith("engine"):
        await world.line(name, lambda line: "engines" in line, WHOLE_S)
    else:
        await world.event(name, f"{name.partition('-')[0]}.ready", WHOLE_S)


async def restart(world: World, name: str) -> None:
    """Tell a part to stop, as an orchestrator does, and start it again."""
    child = world.children[name]
    child.process.terminate()
    status = await child.wait(_STOPS_S)
    assert status == 0, f"{name} ended with {status} after SIGTERM:\n{child.log_tail()}"
    await start_again(world, name)


class Kill(Fault):
    """SIGKILL; it stays away for a while."""

    async def apply(self, world: World) -> None:
        world.children[self.part].process.kill()
        await world.children[self.part].wait(5.0)

    async def heal(self, world: World) -> None:
        await start_again(world, self.part)
        await recovered(world, self.part)


class Freeze(Fault):
    """SIGSTOP: connections stay open and nothing answers."""

    lasts_s = (0.5, 7.0)

    async def apply(self, world: World) -> None:
        world.children[self.part].process.send_signal(signal.SIGSTOP)

    async def heal(self, world: World) -> None:
        world.children[self.part].process.send_signal(signal.SIGCONT)
        await recovered(world, self.part)


class Restart(Fault):
    """SIGTERM, and a start when it has ended."""

    promise = base.SIGTERM
    lasts_s = (0.0, 0.0)

    async def apply(self, world: World) -> None:
        await restart(world, self.part)

    async def heal(self, world: World) -> None:
        await recovered(world, self.part)


class KillWorker(Kill):
    """kill -9 of a worker."""

    of = "worker"
    promise = base.LOST_HALF_WAY


class KillEngine(Kill):
    """kill -9 of an engine."""

    of = "engine"
    promise = base.LOST_HALF_WAY


class KillRouter(Kill):
    """kill -9 of a router: what it relayed breaks off."""

    of = "router"
    promise = base.ROUTER
    retried = base.CONNECTION_ENDS | base.TURNED_AWAY


class FreezeWorker(Freeze):
    """A worker that does not answer is left behind."""

    of = "worker"
    promise = base.LOST_HALF_WAY


class FreezeEngine(Freeze):
    """An engine that does not answer its health check is left behind."""

    of = "engine"
    promise = base.LOST_HALF_WAY


class FreezeRouter(Freeze):
    """Its clients wait, or ask another."""

    of = "router"
    promise = base.ROUTER
    # Beyond its lease it may find that others took its instances for lost, as one that was killed does.
    retried = base.CONNECTION_ENDS | base.TURNED_AWAY


class RestartWorker(Restart):
    """A worker drains."""

    of = "worker"


class RestartEngine(Restart):
    """An engine that stops without a word to its worker: as if it died."""

    of = "engine"
    promise = base.LOST_HALF_WAY


class RestartRouter(Restart):
    """A router drains: nothing new, and what runs finishes."""

    of = "router"
    retried = base.TURNED_AWAY


class KillLeader(Fault):
    """kill -9 of the rebalancer that leads."""

    promise = base.REBALANCER
    lasts_s = (1.0, 6.0)

    async def apply(self, world: World) -> None:
        self.part = await world.leader() or world.rebalancers[0]
        await Kill(self.part).apply(world)

    async def heal(self, world: World) -> None:
        await Kill(self.part).heal(world)


class FreezeLeader(Fault):
    """The leader sleeps past its lease and wakes up beside another: its token is old."""

    promise = base.REBALANCER
    lasts_s = (4.0, 6.0)

    async def apply(self, world: World) -> None:
        self.part = await world.leader() or world.rebalancers[0]
        await Freeze(self.part).apply(world)

    async def heal(self, world: World) -> None:
        await Freeze(self.part).heal(world)


class RestartLeader(Fault):
    """The leader is told to stop and gives up its lease."""

    promise = base.REBALANCER
    lasts_s = (0.0, 0.0)

    async def apply(self, world: World) -> None:
        self.part = await world.leader() or world.rebalancers[0]
        await restart(world, self.part)


class RestartEverything(Fault):
    """One process after the other, each when the one before is back: a rolling restart."""

    promise = base.SIGTERM
    retried = base.TURNED_AWAY
    lasts_s = (0.0, 0.0)

    async def apply(self, world: World) -> None:
        for name in (*world.routers, *world.rebalancers, *world.workers):
            await restart(world, name)
            await recovered(world, name)
        for worker in world.workers:
            await restart(world, world.engine_of(worker))
            await recovered(world, worker)
        assert world.store is not None
        await world.store.restart()


async def recovered(world: World, name: str) -> None:
    """Wait until routers reach every instance again; others' faults may stand in the way, so not for ever."""
    if not name.startswith("rebalancer"):
        with contextlib.suppress(Exception):
            await world.wait_ready(len(world.workers), 15.0)
